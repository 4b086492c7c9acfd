"""The jobs behind the verbs of the command line that need more than the compiler.

Modules of this folder may import torch, but only inside functions or behind the command that
needs it: importing `tokdsl.commands` itself is cheap.
"""
