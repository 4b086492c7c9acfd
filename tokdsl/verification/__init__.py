"""Dynamic proofs: what the compiler says about a model, tested by running its package.

The only part besides training that imports torch. `verify_package` is the entry.
"""
