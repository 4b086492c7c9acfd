"""Reading of the rules of ``weights`` clauses, at every index at which they apply."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from tokdsl.checks import pieces
from tokdsl.checks.layouts import Group, Pattern, Rule, RuleFault, bind, names_in, number
from tokdsl.checks.pieces import Piece, PieceFault, View
from tokdsl.diagnostics import did_you_mean
from tokdsl.graph.parameters import ParameterInfo
from tokdsl.source import Span
from tokdsl.syntax import tree

#: what a name in the middle of a path stands for: its attributes or layers, or a parameter
Place = Mapping[str, "Place"] | ParameterInfo


class Absent(Exception):
    """A path does not exist, or a condition does not hold, at the indices at hand."""


class Declined(Absent):
    """A condition does not hold."""


@dataclass(frozen=True, slots=True)
class Segment:
    """One part of a path: an attribute (``key``), or the number of a layer or row (``index``)."""

    key: str
    index: tree.Expression | None
    span: Span


def nested(table: Mapping[str, ParameterInfo]) -> dict[str, Place]:
    """Return the parameters as a tree of attributes and layers."""
    root: dict[str, Place] = {}
    for name, info in table.items():
        place = root
        *above, last = name.split(".")
        for part in above:
            place = place.setdefault(part, {})  # type: ignore[assignment]
        place[last] = info
    return root


class RuleReader:
    """Reads the rules of one clause.

    Args:
        places: the parameters of the model as a tree.
        constants: the static parameters of the model that are whole numbers.
    """

    def __init__(self, places: Mapping[str, Place], constants: Mapping[str, int]) -> None:
        self.places = places
        self.constants = constants
        self.axes: dict[str, int] = {}
        self.axis_names: set[str] = set()

    def rule(self, node: tree.WeightRule, published: tuple[Pattern, ...]) -> Rule:
        """Return a rule with all indices at which it applies.

        Raises:
            RuleFault: it cannot be read, or applies nowhere.
        """
        variables = self._variables(node, published)
        paths = paths_in(node.value)
        self.axis_names = row_variables(node.value, variables)
        free = tuple(name for name in variables if name not in self.axis_names)
        groups: list[Group] = []
        covered: list[View] = []
        declined = False
        for numbers in self._bindings(node.value, paths, free):
            self.axes = {}
            try:
                made = self._published(node, numbers, len(published))
            except Declined:
                # a condition on sizes alone says of which models the rule speaks
                declined = not free
                continue
            except Absent:
                continue
            except PieceFault as fault:
                raise RuleFault("weight-shape", fault.text, node.value.span, fault.help) from None
            values = tuple(numbers[name] for name in free)
            home = next((g for g in groups if g.pieces == made and g.axes == self.axes), None)
            if home is None:
                home = Group(made, [], dict(self.axes))
                groups.append(home)
            home.bindings.append(values)
            covered += [view for piece in made for view in pieces.views(piece)]
        if not groups and not declined:
            raise self._nowhere(node, paths)
        return Rule(published, free, groups, covered, node.span)

    def _variables(self, node: tree.WeightRule, published: tuple[Pattern, ...]) -> tuple[str, ...]:
        first = published[0].variables
        for other in published[1:]:
            if set(other.variables) != set(first):
                raise RuleFault(
                    "weight-rule", "all names of a rule need the same indices", other.span
                )
        used = {part.id for part in walk(node.value) if isinstance(part, tree.Name)}
        for name in first:
            if name not in used:
                raise RuleFault(
                    "weight-rule",
                    f"the index `{{{name}}}` is not used on the right, so its values are unknown",
                    published[0].span,
                )
        return first

    # ----------------------------------------------------------------- indices

    def _bindings(
        self, value: tree.Expression, paths: list[tree.Expression], free: tuple[str, ...]
    ) -> Iterator[dict[str, int]]:
        """Yield the values of the indices at which all paths may exist."""
        conditional = any(isinstance(part, tree.If) for part in walk(value))
        certain = [] if conditional else [segments(path) for path in paths]

        def extend(numbers: dict[str, int], left: tuple[str, ...]) -> Iterator[dict[str, int]]:
            if not left:
                yield numbers
                return
            for i in range(self._limit(left[0], value, paths)):
                more = {**numbers, left[0]: i}
                if all(self._may_exist(path, more) for path in certain):
                    yield from extend(more, left[1:])

        yield from extend(dict(self.constants), free)

    def _limit(self, variable: str, value: tree.Expression, paths: list[tree.Expression]) -> int:
        """Return a number that no value of an index reaches."""
        longest = 1
        for path in paths:
            reached: list[Place] = [self.places]
            product = 1
            for segment in segments(path):
                if segment.index is not None and variable in names_in(segment.index):
                    product *= max((_length(place) for place in reached), default=1)
                reached = [inner for place in reached for inner in below(place, segment)]
            longest = max(longest, product)
        # how far numbers in the expressions can shift an index
        bound = [bind(index, self.constants) for index in _indices(value)]
        shift = sum(n.value for e in bound for n in walk(e) if isinstance(n, tree.Number))
        return longest + int(shift)

    def _may_exist(self, path: list[Segment], numbers: Mapping[str, int]) -> bool:
        """Whether a path exists as far as its indices are known."""
        place: Place = self.places
        for segment in path:
            if isinstance(place, ParameterInfo):
                return segment.index is not None
            if segment.index is not None and any(n not in numbers for n in names_in(segment.index)):
                return True
            key = segment.key if segment.index is None else str(number(segment.index, numbers))
            if key not in place:
                return False
            place = place[key]
        return True

    def _nowhere(self, node: tree.WeightRule, paths: list[tree.Expression]) -> RuleFault:
        """Return why a rule applies at no index."""
        for path in paths:
            places: list[Place] = [self.places]
            for segment in segments(path):
                reached = [inner for place in places for inner in below(place, segment)]
                if not reached:
                    return no_such(path, segment, places)
                places = reached
        return RuleFault(
            "unknown-parameter",
            "there is no index at which everything that this rule names exists",
            node.value.span,
        )

    # ----------------------------------------------------------------- values

    def _published(
        self, node: tree.WeightRule, numbers: Mapping[str, int], count: int
    ) -> tuple[Piece, ...]:
        value = self._chosen(node.value, numbers)
        if isinstance(value, tree.Call) and verb_of(value) == "split":
            (operand,), named = _arguments(value, 1, ("dim", "sizes"))
            sizes = named.get("sizes")
            parts = pieces.split(
                self._piece(operand, numbers),
                count,
                self._number(named.get("dim"), numbers, 0),
                None if sizes is None else self._numbers(sizes, numbers),
            )
            return parts
        if count > 1:
            raise RuleFault(
                "weight-rule",
                f"{count} published names need a `split`",
                node.value.span,
                'write `"a", "b" = split(parameter; dim = 0)`',
            )
        return (self._piece(value, numbers),)

    def _chosen(self, node: tree.Expression, numbers: Mapping[str, int]) -> tree.Expression:
        """Return the branch of a condition that holds.

        Raises:
            Declined: none does.
        """
        if not isinstance(node, tree.If):
            return node
        branch = node.then if number(node.condition, numbers) else node.otherwise
        if branch is None:
            raise Declined
        statement = branch.statements[0] if len(branch.statements) == 1 else None
        if not isinstance(statement, tree.Step):
            raise RuleFault("weight-rule", "a branch holds one expression", branch.span)
        return self._chosen(statement.value, numbers)

    def _piece(self, node: tree.Expression, numbers: Mapping[str, int]) -> Piece:
        node = self._chosen(node, numbers)
        if isinstance(node, tree.Call):
            return self._call(node, numbers)
        if isinstance(node, tree.Index) and not is_path(node):
            piece = self._piece(node.value, numbers)
            for index in node.indices:
                piece = self._select(piece, index, numbers)
            return piece
        if is_path(node):
            return self._path(node, numbers)
        raise RuleFault("weight-rule", "a parameter or a verb is needed here", node.span)

    def _path(self, node: tree.Expression, numbers: Mapping[str, int]) -> Piece:
        place: Place = self.places
        parts: list[str | tree.Expression] = []
        keys: list[str] = []
        piece: Piece | None = None
        for segment in segments(node):
            if piece is not None and segment.index is not None:
                piece = self._select(piece, segment.index, numbers)
                continue
            key = segment.key
            if segment.index is not None and set(names_in(segment.index)) & self.axis_names:
                break
            if segment.index is not None:
                key = str(number(segment.index, numbers))
            if isinstance(place, ParameterInfo) or key not in place:
                raise Absent
            if segment.index is None:
                parts.append(key)
            else:
                parts.append(bind(segment.index, self.constants))
            keys.append(key)
            place = place[key]
            if isinstance(place, ParameterInfo):
                piece = View(tuple(parts), (), place.shape, ".".join(keys))
        if piece is None:
            assert isinstance(place, Mapping)
            raise RuleFault(
                "unknown-parameter",
                f"`{node.span.text}` is not one parameter; it has {listed(list(place))}",
                node.span,
            )
        return piece

    def _select(self, piece: Piece, index: tree.Expression, numbers: Mapping[str, int]) -> Piece:
        if isinstance(index, tree.Name) and index.id in self.axis_names:
            rows = piece.shape[0] if piece.shape else 0
            if self.axes.setdefault(index.id, rows) != rows:
                raise PieceFault(
                    f"`{index.id}` goes over {self.axes[index.id]} rows of one parameter and "
                    f"{rows} of another"
                )
            return pieces.select(piece, index, None)
        at = number(index, numbers)
        if piece.shape and not 0 <= at < piece.shape[0] and any(True for _ in names_in(index)):
            raise Absent
        return pieces.select(piece, bind(index, self.constants), at)

    def _call(self, node: tree.Call, numbers: Mapping[str, int]) -> Piece:
        verb = verb_of(node)
        if verb == "fuse":
            operands, named = _arguments(node, 0, ("dim",))
            parts = tuple(self._piece(operand, numbers) for operand in operands)
            return pieces.fuse(parts, self._number(named.get("dim"), numbers, 0))
        if verb in ("reshape", "permute"):
            (operand, *rest), _ = _arguments(node, -1, ())
            given = tuple(number(part, numbers) for part in rest)
            change = pieces.reshape if verb == "reshape" else pieces.permute
            return change(self._piece(operand, numbers), given)
        if verb == "transpose":
            (operand, *rest), _ = _arguments(node, -1, ())
            if len(rest) not in (0, 2):
                raise RuleFault("weight-rule", "`transpose` takes two dimensions", node.span)
            dims = [number(part, numbers) for part in rest]
            return pieces.transpose(self._piece(operand, numbers), *dims)
        if verb in ("interleave", "deinterleave"):
            (operand,), named = _arguments(node, 1, ("heads", "dim", "skip"))
            heads = self._number(named.get("heads"), numbers, 1)
            dim = self._number(named.get("dim"), numbers, 0)
            skip = self._number(named.get("skip"), numbers, 0)
            inner = self._piece(operand, numbers)
            return pieces.interleave(inner, heads, dim, skip, verb == "deinterleave")
        if verb in ("split", "tied"):
            raise RuleFault(
                "weight-rule", f"`{verb}` stands alone on the right of a rule", node.span
            )
        raise RuleFault(
            "weight-rule",
            f"there is no verb `{node.function.span.text}`",
            node.function.span,
            did_you_mean(verb, VERBS) or f"verbs are {', '.join(f'`{v}`' for v in VERBS)}",
        )

    def _number(
        self, node: tree.Expression | None, numbers: Mapping[str, int], default: int
    ) -> int:
        return default if node is None else number(node, numbers)

    def _numbers(self, node: tree.Expression, numbers: Mapping[str, int]) -> tuple[int, ...]:
        if not isinstance(node, tree.ListExpression):
            raise RuleFault("weight-rule", "`sizes` must be a list of numbers", node.span)
        return tuple(number(item, numbers) for item in node.items)


VERBS = (
    "fuse", "split", "transpose", "permute", "reshape", "interleave", "deinterleave", "tied",
    "ignore",
)  # fmt: skip


def verb_of(node: tree.Call) -> str:
    """Return the name of the function that is called."""
    return node.function.id if isinstance(node.function, tree.Name) else ""


def _arguments(
    node: tree.Call, count: int, names: tuple[str, ...]
) -> tuple[list[tree.Expression], dict[str, tree.Expression]]:
    """Return the operands and the named arguments of a verb.

    ``count`` is the number of operands, 0 for one or more, -1 for an operand and its numbers.
    """
    operands: list[tree.Expression] = []
    named: dict[str, tree.Expression] = {}
    for argument in (*node.operands, *node.statics):
        if argument.axis is not None or (argument.name is not None and argument.name not in names):
            found = argument.name or argument.axis or ""
            takes = ", ".join(f"`{name}`" for name in names) or "no names"
            raise RuleFault(
                "weight-rule",
                f"`{verb_of(node)}` takes {takes}, found `{found}`",
                argument.span,
                did_you_mean(found, names),
            )
        if argument.name is not None:
            named[argument.name] = argument.value
        else:
            operands.append(argument.value)
    if not operands or (count > 0 and len(operands) != count):
        wanted = "one parameter" if count == 1 else "a parameter"
        raise RuleFault(
            "weight-rule", f"`{verb_of(node)}` takes {wanted}, found {len(operands)}", node.span
        )
    return operands, named


# --------------------------------------------------------------------------- paths


def _length(place: Place) -> int:
    """Return the number of layers or rows that an index can go over."""
    if isinstance(place, ParameterInfo):
        return place.shape[0] if place.shape else 1
    return max(len(place), 1)


def _indices(node: tree.Expression) -> list[tree.Expression]:
    """Return the index expressions of a right side."""
    return [i for part in walk(node) if isinstance(part, tree.Index) for i in part.indices]


def is_path(node: tree.Expression) -> bool:
    """Whether an expression is a name with attributes and indices."""
    while isinstance(node, tree.Attribute | tree.Index):
        node = node.value
    return isinstance(node, tree.Name)


def segments(node: tree.Expression) -> list[Segment]:
    """Return the parts of a path from left to right."""
    found: list[Segment] = []
    while not isinstance(node, tree.Name):
        if isinstance(node, tree.Attribute):
            found.append(Segment(node.name, None, node.span))
        else:
            assert isinstance(node, tree.Index)
            found += [Segment("", index, index.span) for index in reversed(node.indices)]
        node = node.value
    return [Segment(node.id, None, node.span), *found[::-1]]


def walk(node: object) -> Iterator[object]:
    """Yield a node of a rule's right side and all nodes below it."""
    yield node
    below: tuple[object, ...] = ()
    if isinstance(node, tree.Call):
        below = tuple(a.value for a in (*node.operands, *node.statics))
    elif isinstance(node, tree.Attribute):
        below = (node.value,)
    elif isinstance(node, tree.Index):
        below = (node.value, *node.indices)
    elif isinstance(node, tree.If):
        branches = (node.then, node.otherwise)
        steps = [s for b in branches if b is not None for s in b.statements]
        below = (node.condition, *(s.value for s in steps if isinstance(s, tree.Step)))
    elif isinstance(node, tree.Unary):
        below = (node.operand,)
    elif isinstance(node, tree.Binary):
        below = (node.left, node.right)
    elif isinstance(node, tree.ListExpression):
        below = node.items
    for part in below:
        yield from walk(part)


def paths_in(node: tree.Expression) -> list[tree.Expression]:
    """Return the paths of a right side: the operands of its verbs."""
    if isinstance(node, tree.Call):
        # the operands after the first of these verbs are numbers
        many = verb_of(node) == "fuse"
        given = [a.value for a in (*node.operands, *node.statics) if a.name is None]
        return [path for value in given[: None if many else 1] for path in paths_in(value)]
    if isinstance(node, tree.If):
        steps = [s for b in (node.then, node.otherwise) if b is not None for s in b.statements]
        return [p for s in steps if isinstance(s, tree.Step) for p in paths_in(s.value)]
    if is_path(node):
        return [node]
    return paths_in(node.value) if isinstance(node, tree.Index) else []


def row_variables(node: tree.Expression, variables: tuple[str, ...]) -> set[str]:
    """Return the variables that only stand as the last index: they go over the rows."""
    rows: set[str] = set()
    other: set[str] = set()

    def visit(part: object, last: bool) -> None:
        if isinstance(part, tree.Index):
            for index in part.indices:
                if last and isinstance(index, tree.Name):
                    rows.add(index.id)
                else:
                    other.update(names_in(index))
            visit(part.value, last)
        elif isinstance(part, tree.Attribute):
            visit(part.value, False)
        elif isinstance(part, tree.Call):
            for argument in (*part.operands, *part.statics):
                visit(argument.value, True)
        elif isinstance(part, tree.If):
            other.update(n.id for n in walk(part.condition) if isinstance(n, tree.Name))
            for branch in (part.then, part.otherwise):
                for statement in branch.statements if branch is not None else ():
                    visit(getattr(statement, "value", None), True)
        elif not isinstance(part, tree.Name):
            other.update(n.id for n in walk(part) if isinstance(n, tree.Name))

    visit(node, True)
    return {name for name in variables if name in rows - other}


def below(place: Place, segment: Segment) -> list[Place]:
    """Return what a segment may stand for; an index stands for every layer or row."""
    if segment.index is None:
        found = place.get(segment.key) if isinstance(place, Mapping) else None
        return [found] if found is not None else []
    if isinstance(place, ParameterInfo):
        return [place]
    if not all(key.isdigit() for key in place):
        return []
    if isinstance(segment.index, tree.Number):
        at = place.get(str(segment.index.value))
        return [at] if at is not None else []
    return list(place.values())


def no_such(path: tree.Expression, segment: Segment, places: list[Place]) -> RuleFault:
    """Return the finding about the first part of a path that does not exist."""
    start = path.span.start
    before = path.span.file.text[start : segment.span.end]
    before = before[: before.rfind("[" if segment.index is not None else ".")].rstrip()
    names = list(dict.fromkeys(k for p in places if isinstance(p, Mapping) for k in p))
    if segment.index is not None:
        if names and all(name.isdigit() for name in names):
            text = f"`{before}` has the layers 0 to {len(names) - 1}, not {segment.span.text}"
        else:
            text = f"`{before}` is not a list of layers; it has {listed(names)}"
        return RuleFault("unknown-parameter", text, segment.span)
    span = Span(segment.span.file, segment.span.end - len(segment.key), segment.span.end)
    if isinstance(path, tree.Name) or span.start == start:
        text = f"the model has no stage `{segment.key}`; it has {listed(names)}"
    elif not names:
        text = f"`{before}` is a parameter and has no `{segment.key}`"
    elif all(name.isdigit() for name in names):
        text = f"`{before}` is a list of layers and has no `{segment.key}`"
        return RuleFault("unknown-parameter", text, span, f"index it: `{before}[i]`")
    else:
        text = f"`{before}` has no `{segment.key}`; it has {listed(names)}"
    return RuleFault("unknown-parameter", text, span, did_you_mean(segment.key, names))


def listed(names: list[str]) -> str:
    """Return names for a message."""
    return ", ".join(f"`{name}`" for name in names) or "none"
