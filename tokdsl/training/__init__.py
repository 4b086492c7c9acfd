"""Running built models: the only folder of the compiler that imports torch.

It is behind the verbs `train` and `generate`; nothing that checks or builds imports it.
"""
