"""Initialisers of parameters: names, arguments and torch statements."""

from __future__ import annotations

import math

#: arguments by name of the initialiser
INITIALISERS: dict[str, tuple[str, ...]] = {
    "zeros": (),
    "ones": (),
    "eye": (),
    "constant": ("value",),
    "normal": ("std", "mean"),
    "truncated_normal": ("std", "mean"),
    "uniform": ("low", "high"),
    "fan_in_normal": ("scale",),
    "fan_in_uniform": ("scale",),
    "log_uniform": ("low", "high"),
    "log_of_uniform": ("low", "high"),
    "inverse_softplus": ("low", "high"),
}
#: those whose arguments must be above 0
POSITIVE = ("log_uniform", "log_of_uniform", "inverse_softplus")
#: those whose arguments have no default
BARE = ("constant", "uniform", *POSITIVE)


def split(text: str) -> tuple[str, dict[str, float]]:
    """Return the name and arguments of an initialiser such as ``normal(std=0.02)``."""
    name, _, rest = text.partition("(")
    arguments: dict[str, float] = {}
    for part in rest.rstrip(")").split(","):
        if part.strip():
            key, _, value = part.partition("=")
            arguments[key.strip()] = float(value)
    return name, arguments


def statement(text: str, tensor: str, fan_in: int) -> str:
    """Return the torch statement that fills ``tensor``; ``fan_in`` is its number of inputs."""
    name, given = split(text)
    if name == "zeros":
        return f"nn.init.zeros_({tensor})"
    if name == "ones":
        return f"nn.init.ones_({tensor})"
    if name == "eye":
        return f"nn.init.eye_({tensor})"
    if name == "constant":
        return f"nn.init.constant_({tensor}, {given['value']!r})"
    if name == "uniform":
        return f"nn.init.uniform_({tensor}, {given['low']!r}, {given['high']!r})"
    if name == "log_uniform":
        low, high = math.log(given["low"]), math.log(given["high"])
        return f"nn.init.uniform_({tensor}.data, {low:.6g}, {high:.6g}).exp_()"
    if name == "log_of_uniform":
        return f"nn.init.uniform_({tensor}.data, {given['low']!r}, {given['high']!r}).log_()"
    if name == "inverse_softplus":  # y of which softplus(y), log-uniform, is log(1 + exp(y))
        low, high = math.log(given["low"]), math.log(given["high"])
        return f"nn.init.uniform_({tensor}.data, {low:.6g}, {high:.6g}).exp_().expm1_().log_()"
    scale = given.get("scale", 1.0) * fan_in**-0.5
    if name == "fan_in_normal":
        return f"nn.init.normal_({tensor}, std={scale:.6g})"
    if name == "fan_in_uniform":
        return f"nn.init.uniform_({tensor}, {-scale:.6g}, {scale:.6g})"
    mean = f", mean={given['mean']!r}" if given.get("mean") else ""
    std = given.get("std", 0.02)
    if name == "truncated_normal":
        return f"nn.init.trunc_normal_({tensor}, std={std!r}, a={-2 * std!r}, b={2 * std!r})"
    return f"nn.init.normal_({tensor}{mean}, std={std!r})"
