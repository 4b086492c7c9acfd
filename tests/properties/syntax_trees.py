"""Random syntax trees, as the parser can make them."""

from __future__ import annotations

from hypothesis import strategies as st

from tokdsl.source import SourceFile, Span
from tokdsl.syntax import tree
from tokdsl.syntax.literals import UNITS
from tokdsl.syntax.printing import _BINARY

HERE = Span(SourceFile("<tree>", ""), 0, 0)

NAMES = """
    x d gate heads it é _a1 T route loss mask stage repeat residual aux shared block of as use
    model require objective weights fn tokenizer
"""
names = st.sampled_from(NAMES.split())
numbers = st.one_of(
    st.integers(0, 2**63 - 1).map(lambda n: tree.Number(HERE, n)),
    st.floats(0, allow_nan=False, allow_infinity=False).map(lambda x: tree.Number(HERE, x)),
    st.tuples(st.integers(0, 999), st.sampled_from([u for u in UNITS if u[0] in "KM"])).map(
        lambda pair: tree.Number(HERE, pair[0] * UNITS[pair[1]], pair[1])
    ),
)
texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=8)
strings = texts.map(lambda text: tree.String(HERE, text))
atoms = st.one_of(
    names.map(lambda name: tree.Name(HERE, name)),
    numbers,
    strings,
    st.booleans().map(lambda value: tree.Boolean(HERE, value)),
    st.just(tree.Nothing(HERE)),
)
star = st.just(tree.Star(HERE))


def few(strategy: st.SearchStrategy, least: int = 0) -> st.SearchStrategy:
    return st.lists(strategy, min_size=least, max_size=3).map(tuple)


def argument(value: st.SearchStrategy) -> st.SearchStrategy:
    return st.one_of(
        st.builds(tree.Argument, st.just(HERE), value | star),
        st.builds(tree.Argument, st.just(HERE), value | star, name=names),
        st.builds(tree.Argument, st.just(HERE), value, axis=names),
    )


def calls(inner: st.SearchStrategy) -> st.SearchStrategy:
    arguments = few(argument(inner))
    return st.one_of(
        st.builds(tree.Call, st.just(HERE), inner, arguments),
        st.builds(tree.Call, st.just(HERE), inner, arguments, arguments, st.just(True)),
    )


def branches(value: st.SearchStrategy) -> st.SearchStrategy:
    body = few(simple_statements(value)).map(lambda steps: tree.Body(HERE, steps))
    return st.builds(tree.If, st.just(HERE), value, body, st.none() | body)


def larger(inner: st.SearchStrategy) -> st.SearchStrategy:
    repeated = st.builds(tree.Repeated, st.just(HERE), inner, inner)
    return st.one_of(
        st.builds(tree.ListExpression, st.just(HERE), few(inner | star | repeated)),
        st.builds(tree.Unary, st.just(HERE), st.sampled_from(["-", "not"]), inner),
        st.builds(tree.Binary, st.just(HERE), st.sampled_from(list(_BINARY)), inner, inner),
        calls(inner),
        st.builds(tree.Attribute, st.just(HERE), inner, names),
        st.builds(tree.Index, st.just(HERE), inner, few(inner | star)),
        st.builds(tree.Lambda, st.just(HERE), few(names, 1), inner),
        branches(inner),
    )


def simple_statements(value: st.SearchStrategy) -> st.SearchStrategy:
    index = st.builds(tree.IndexDeclaration, st.just(HERE), names, names)
    target = st.builds(tree.Target, st.just(HERE), names, few(index))
    plain = st.builds(tree.Target, st.just(HERE), names)
    return st.one_of(
        st.builds(tree.Step, st.just(HERE), value),
        st.builds(tree.Assign, st.just(HERE), few(target, 1), value),
        st.builds(tree.Assign, st.just(HERE), few(plain, 1), value, st.just(True)),
        st.builds(tree.Aux, st.just(HERE), names, value),
        st.builds(tree.Require, st.just(HERE), few(value, 1)),
    )


expressions = st.recursive(atoms, larger, max_leaves=8)


@st.composite
def axes(draw: st.DrawFn, sized: bool = True) -> tree.AxisType:
    kind = draw(st.integers(0, 3 if sized else 2))
    if kind == 0:
        return tree.AxisType(HERE, None, None, star=True)
    if kind == 1:
        return tree.AxisType(HERE, draw(names), None)
    size = draw(expressions)
    if kind == 2:
        return tree.AxisType(HERE, None, tree.Unary(HERE, "-", size))
    return tree.AxisType(HERE, draw(names), size)


tensors = st.builds(tree.TensorType, st.just(HERE), st.none() | names, few(axes()))
listed = st.recursive(
    st.one_of(
        st.builds(tree.NamedType, st.just(HERE), names),
        st.builds(tree.TensorType, st.just(HERE), st.none() | names, few(axes(sized=False))),
    ),
    lambda inner: few(inner, 1).map(lambda items: tree.NamedType(HERE, "list", items)),
    max_leaves=3,
)
types = st.recursive(
    st.one_of(tensors, listed),
    lambda inner: few(inner, 1).map(lambda items: tree.TupleType(HERE, items)),
    max_leaves=3,
)


def declared(node: type) -> st.SearchStrategy:
    one = st.builds(node, st.just(HERE), names, st.none() | types, st.none() | expressions | star)
    return few(one)


def blocks(inner: st.SearchStrategy) -> st.SearchStrategy:
    body = few(inner).map(lambda statements: tree.Body(HERE, statements))
    arguments = few(argument(expressions))
    return st.one_of(
        st.builds(tree.Repeat, st.just(HERE), expressions, st.none() | names, body),
        st.builds(tree.Residual, st.just(HERE), arguments, body),
        st.builds(tree.Stage, st.just(HERE), names, declared(tree.Operand), arguments, body),
    )


simple = simple_statements(expressions)
statements = st.recursive(simple, blocks, max_leaves=5)
bodies = few(statements).map(lambda inner: tree.Body(HERE, inner))
stages = st.builds(
    tree.Stage, st.just(HERE), names, declared(tree.Operand), few(argument(expressions)), bodies
)
rules = st.builds(tree.WeightRule, st.just(HERE), few(strings, 1), expressions)
members = st.one_of(
    simple.filter(lambda node: not isinstance(node, tree.Step)),
    stages,
    st.builds(tree.Objective, st.just(HERE), expressions),
    st.builds(tree.Weights, st.just(HERE), names, few(rules)),
)
docs = st.sampled_from(["", "what it is", "two\nlines", "a list:\n\n  - `x`: one", "# sharp"])
imports = st.builds(tree.Import, st.just(HERE), names, st.none() | names)
items = st.one_of(
    st.builds(tree.Use, st.just(HERE), few(names, 1), few(imports, 1)),
    st.builds(tree.Use, st.just(HERE), few(names, 1), st.just(()), st.none() | names),
    st.builds(
        tree.Definition,
        st.just(HERE),
        st.sampled_from(tree.DEFINITION_KINDS),
        names,
        st.just(HERE),
        declared(tree.Operand),
        declared(tree.Parameter),
        st.none() | types,
        bodies,
        docs,
    ),
    st.builds(
        tree.Model,
        st.just(HERE),
        names,
        st.just(HERE),
        declared(tree.Parameter),
        few(members),
        docs,
    ),
)
modules = few(items).map(lambda inner: tree.Module(HERE, inner))
