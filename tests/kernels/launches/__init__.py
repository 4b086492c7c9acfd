"""Calls of kernels at the sizes of real models, a module for every template.

A module has

- ``launches() -> dict[str, Callable[[torch.dtype], object]]``: by name, a function that makes the
  arguments and calls a launcher. It is recorded on a machine without a GPU (nothing runs: memory
  of the CPU, ``torch.empty`` for what is large) and timed on one that has it. So tensors are made
  on the default device, never on a named one, indices are ones that exist, and arguments are made
  where they can be made cheaply.
- ``work() -> dict[str, tuple[float, float]]``, optional: by the same names, the floating point
  operations, and the bytes of a two-byte dtype, that no way to compute the result can do without.
  The share of the roofline is measured against these. Without it the bytes are those of all
  distinct tensors of the launch, once each, and operations are not counted.

`tests.kernels.resources` makes a table from the launches, `benchmarks.kernels` times them.
"""
