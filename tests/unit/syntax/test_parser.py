"""From text to tree."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.syntax.showing import module, prefix, shape, statements
from tokdsl.syntax import tree
from tokdsl.syntax.compare import walk

PROGRAMS = sorted(Path(__file__).parent.glob("programs/*.tok"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a + b * c", "(+ a (* b c))"),
        ("a * b + c", "(+ (* a b) c)"),
        ("a - b - c", "(- (- a b) c)"),
        ("-a ** 2", "(- (** a 2))"),
        ("a ** -b ** c", "(** a (- (** b c)))"),
        ("(a + b) * c", "(* (+ a b) c)"),
        ("a / b % c // d", "(// (% (/ a b) c) d)"),
        ("not a == b and c or d", "(or (and (not (== a b)) c) d)"),
        ("a.b.c", "(Attribute c (Attribute b a))"),
        ("a.b[i](c)", "(Call (Index (Attribute b a) i) (Argument c))"),
        ("f()", "(Call f)"),
        ("f(a, b)", "(Call f (Argument a) (Argument b))"),
        ("f(a; b)", "(Call True f (Argument a) (Argument b))"),
        ("f(;)", "(Call True f)"),
        ("f(over = d, heads: 8)", "(Call f (Argument over d) (Argument heads 8))"),
        ("f(x; over = *)", "(Call True f (Argument x) (Argument over (Star)))"),
        ("f(x, over = [*, d],)", "(Call f (Argument x) (Argument over (ListExpression (Star) d)))"),
        ("|i, j| j <= i", "(Lambda (<= j i))"),
        ("[64 of f(), 1 of g]", "(ListExpression (Repeated 64 (Call f)) (Repeated 1 g))"),
        ("if a { b } else { c }", "(If a {b} {c})"),
        ("if a { b } else if c { d }", "(If a {b} {(If c {d})})"),
        ("if a {\n b\n c }\n else { d; e }", "(If a {b; c} {d; e})"),
        ("true and none", "(and True (Nothing))"),
        ('"a\\n\\"b\\" \\u00e9"', "'a\\n\"b\" é'"),
        ("'\\s+'", "'\\\\s+'"),
    ],
)
def test_expression(text: str, expected: str) -> None:
    assert shape(text) == expected


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("12", 12),
        ("1_000", 1000),
        ("1.5", 1.5),
        ("1e-4", 1e-4),
        ("1e6", 1e6),
        ("13B", 13_000_000_000),
        ("1.5K", 1500),
        ("128KiB", 131072),
        ("80GB", 80_000_000_000),
        ("0.0005K", 0.5),
        ("9223372036854775807", 2**63 - 1),
    ],
)
def test_number(text: str, value: float) -> None:
    (step,) = statements(text)
    assert isinstance(step, tree.Step) and isinstance(step.value, tree.Number)
    assert step.value.value == value
    assert type(step.value.value) is type(value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a = b", "(Assign (Target a) b)"),
        ("a, b = f(x)", "(Assign (Target a) (Target b) (Call f (Argument x)))"),
        (
            "s[i: T, j: T] = k[i]",
            "(Assign (Target s (IndexDeclaration i T) (IndexDeclaration j T)) (Index k i))",
        ),
        ("shared f = g()", "(Assign True (Target f) (Call g))"),
        ("aux balance = a", "(Aux balance a)"),
        ("require a < 13B, b", "(Require (< a 13000000000~B) b)"),
        ("repeat 4 as i { a }", "(Repeat i 4 {a})"),
        ("repeat 4 { a(); b() }; c()", "(Repeat 4 {(Call a); (Call b)}); (Call c)"),
        ("residual { a }", "(Residual {a})"),
        ("residual(scale = 2) { a }", "(Residual (Argument scale 2) {a})"),
        ("stage s { a }", "(Stage s {a})"),
        (
            "stage s(ids: tokens[v]) { a }",
            "(Stage s (Operand ids (TensorType tokens (AxisType v))) {a})",
        ),
        ("stage s(width = d) { a }", "(Stage s (Argument width d) {a})"),
        ("stage s(m; w = d) { a }", "(Stage s (Operand m) (Argument w d) {a})"),
        (
            "stage s(p: [c: 3, h: 32]) { a }",
            "(Stage s (Operand p (TensorType (AxisType c 3) (AxisType h 32))) {a})",
        ),
    ],
)
def test_statement(text: str, expected: str) -> None:
    assert shape(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "router = x",
        "mask = x",
        "stage = 3; repeat = 4",
        "aux = stage - 1",
        "loss(router, block)",
        "f(x; block = block, of = as)",
        "residual.x",
        "weights[i]",
        "repeat[i: T] = x",
        "model = use",
        "of = as",
        "objective = 3",
    ],
)
def test_words_of_statements_are_names_elsewhere(text: str) -> None:
    names = {node.id for statement in statements(text) for node in walk(statement)
             if isinstance(node, tree.Name)}  # fmt: skip
    targets = {node.name for statement in statements(text) for node in walk(statement)
               if isinstance(node, tree.Target)}  # fmt: skip
    assert names | targets


@pytest.mark.parametrize(
    "text",
    [
        "a = b +\n  c",
        "a = b\n  + c",
        "a = b\n  .c",
        "a =\n  b",
        "f(a,\n  b)",
        "f(\n  a\n  , b\n)",
        "a = (b\n  - c)",
        "a, b =\n  f(x)",
        "a = b and\n  c",
        "a = b # remark\n  + c",
        "repeat 4\n{ a }",
        "if a { b }\nelse { c }",
        "require a,\n  b",
    ],
)
def test_one_statement_over_several_lines(text: str) -> None:
    assert len(statements(text)) == 1


@pytest.mark.parametrize("text", ["a\nb", "a\n-b", "a\n[b]", "a\n(b)", "a;b", "a\n\n\nb", ";a;;b;"])
def test_two_statements(text: str) -> None:
    assert len(statements(text)) == 2


def test_definition() -> None:
    (item,) = module(
        "# what it is\n#  - indented\n"
        "router r(x: [*, d], m: i64[S] = none; n, top: int = 2, k: list[block]) "
        "-> ([*, d], [*]) { x }"
    ).items
    assert isinstance(item, tree.Definition)
    assert (item.kind, item.name, item.name_span.text) == ("router", "r", "r")
    assert item.doc == "what it is\n - indented"
    assert [prefix(operand) for operand in item.operands] == [
        "(Operand x (TensorType (AxisType True) (AxisType d)))",
        "(Operand m (TensorType i64 (AxisType S)) (Nothing))",
    ]
    assert [prefix(parameter) for parameter in item.parameters] == [
        "(Parameter n)",
        "(Parameter top (NamedType int) 2)",
        "(Parameter k (NamedType list (NamedType block)))",
    ]
    assert item.result is not None
    assert prefix(item.result) == (
        "(TupleType (TensorType (AxisType True) (AxisType d)) (TensorType (AxisType True)))"
    )


def test_a_comment_apart_is_no_doc() -> None:
    (item,) = module("# a remark\n\nfn f() {}").items
    assert isinstance(item, tree.Definition)
    assert item.doc == ""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("use std", ("std",)),
        ("use std.attention { gqa, rope as r }", ("std", "attention", "gqa", "rope as r")),
        ("use std.attention {\n  gqa,\n  rope,\n}", ("std", "attention", "gqa", "rope")),
        ("use my.models as m", ("my", "models", "as m")),
    ],
)
def test_use(text: str, expected: tuple[str, ...]) -> None:
    (item,) = module(text).items
    assert isinstance(item, tree.Use)
    names = [f"{n.name} as {n.alias}" if n.alias else n.name for n in item.names]
    alias = [f"as {item.alias}"] if item.alias else []
    assert (*item.module, *names, *alias) == expected


def test_weights() -> None:
    (item,) = module(
        'model m { weights hf { "a.{i}" = b[i].c  "d", "e" = split(f; dim = 0)\n "g" = h } }'
    ).items
    assert isinstance(item, tree.Model)
    (weights,) = item.members
    assert isinstance(weights, tree.Weights)
    assert [[name.value for name in rule.published] for rule in weights.rules] == [
        ["a.{i}"],
        ["d", "e"],
        ["g"],
    ]


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
def test_spans_cover_what_they_stand_for(path: Path) -> None:
    for node in walk(module(path.read_text("utf-8"))):
        text = node.span.text
        assert text == text.strip() or isinstance(node, tree.Module)
        if isinstance(node, tree.Name):
            assert text == node.id
        elif isinstance(node, (tree.Definition, tree.Model)):
            assert node.name_span.text == node.name
            assert text.endswith("}")
        elif isinstance(node, tree.Body):
            assert text.startswith(("{", "if ")) and text.endswith("}")
        elif isinstance(node, (tree.Argument, tree.Operand, tree.Parameter, tree.Target)):
            assert text.startswith(getattr(node, "name", None) or "")
