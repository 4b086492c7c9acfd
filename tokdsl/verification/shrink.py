"""Small parameters for a spec, so that its contract can be run in seconds.

The shape of a model is what is tested, not its size: a parameter is divided by powers of two, so
that what divided it still does, and a number of layers becomes two. Whether the result is still a
model is decided by the compiler.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tokdsl.graph.program import LoopNode, Program
from tokdsl.types.dims import Dim

#: a model with fewer parameters is run as it is
SMALL = 400_000
#: with more than this, single parameters are made smaller one by one
LARGE = 8_000_000
#: how much the parameters of middle size, such as heads, are divided by; tried in order
DIVISORS = (8, 4, 2, 1)
#: sizes from here on are widths and vocabularies, below they are counts
WIDTH = 128
LEAST_WIDTH = 32
#: single parameters are not made smaller than this
FLOOR = 16
#: a vocabulary keeps as many
CLASSES = 64
#: what a window becomes, so that a probe sees it from both sides
WINDOW = 6

Sizes = dict[str, int]
#: returns the number of parameters of the model with these sizes, or None if it is none
Count = Callable[[Sizes], float | None]


def shrink(program: Program, parameters: float, count: Count) -> Sizes:
    """Return parameter settings that make a model small.

    Args:
        program: the model at its real size.
        parameters: how many numbers it has.
        count: what the compiler says about settings.
    """
    if parameters <= SMALL:
        return {}
    numbers = {
        name: value.number
        for name, value in program.parameters.items()
        if isinstance(value, Dim) and value.number is not None
    }
    best: Sizes = {}
    size = parameters
    for proposal in _proposals(program, numbers):
        made = count(proposal)
        if made is not None:
            best, size = proposal, made
            break
    return _one_by_one(numbers, best, size, count)


def _proposals(program: Program, numbers: Sizes) -> Iterator[Sizes]:
    layers = _layer_counts(program, numbers)
    classes = {i.classes.number for i in program.inputs if i.classes is not None}
    least_deep = max([2, *(_kinds(node) for node in _loops(program))])
    for deep in (least_deep, least_deep + 2, 2 * least_deep + 2, None):
        for divisor in DIVISORS:
            for least in (LEAST_WIDTH, 2 * LEAST_WIDTH, 8 * LEAST_WIDTH):
                made: Sizes = {}
                for name, n in numbers.items():
                    if n in classes:
                        made[name] = _halved(n, CLASSES)
                    elif "window" in name:
                        made[name] = min(n, WINDOW)
                    elif name in layers:
                        made[name] = n if deep is None else min(n, deep)
                    elif n >= WIDTH:
                        made[name] = _halved(n, least)
                    elif n >= 16 and n % divisor == 0:
                        made[name] = n // divisor
                yield {name: n for name, n in made.items() if n != numbers[name]}


def _layer_counts(program: Program, numbers: Sizes) -> set[str]:
    """Return the parameters that say how often something is repeated."""
    loops = {len(node.modules) for node in _loops(program)}
    named = {name for name in numbers if "layer" in name or name in ("depth", "blocks")}
    return {n for n in named if numbers[n] < WIDTH and (numbers[n] in loops or numbers[n] > 6)}


def _loops(program: Program) -> list[LoopNode]:
    return [
        node for module in program.modules for node in module.nodes if isinstance(node, LoopNode)
    ]


def _kinds(node: LoopNode) -> int:
    """Return how many layers it takes until every kind of layer was there."""
    first: dict[int, int] = {}
    for i, module in enumerate(node.modules):
        first.setdefault(id(module), i)
    return max(first.values()) + 1


def _halved(number: int, least: int) -> int:
    while number % 2 == 0 and number // 2 >= least:
        number //= 2
    return number


def _one_by_one(numbers: Sizes, best: Sizes, size: float, count: Count) -> Sizes:
    """Halve single parameters while the model is large and that helps."""
    for name in sorted(numbers, key=lambda n: -numbers[n]):
        while size > LARGE:
            now = best.get(name, numbers[name])
            if now < 2 * FLOOR or now % 2:
                break
            proposal = {**best, name: now // 2}
            made = count(proposal)
            if made is None or made >= size:
                break
            best, size = proposal, made
    return best
