"""What holds for every tree and every text."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.properties.syntax_trees import modules
from tokdsl.diagnostics import Diagnostic
from tokdsl.source import SourceFile
from tokdsl.syntax import tree
from tokdsl.syntax.compare import same_tree
from tokdsl.syntax.formatter import Formatter, format_module, print_module
from tokdsl.syntax.lexer import lex
from tokdsl.syntax.parser import parse
from tokdsl.syntax.yaml_form import parse_yaml, to_yaml

PROGRAMS = {
    path.stem: path.read_text("utf-8")
    for path in sorted(Path(__file__).parents[1].glob("unit/syntax/programs/*.tok"))
}
programs = st.sampled_from(sorted(PROGRAMS.values()))
slow = settings(deadline=None, max_examples=40, suppress_health_check=list(HealthCheck))
SIGNS = '{ } ( ) [ ] ; , = == < * - | -> : . 12 1e999 13Q "a" " \' # $ é \0'
WORDS = "if else of as not model stage repeat residual block use require x f weights"
pieces = st.sampled_from(["\n", *SIGNS.split(" "), *WORDS.split(" ")])
yaml_pieces = st.sampled_from(["- ", "  ", "body", ": ", "&a", "*a", "? "])


def read(text: str) -> tuple[tree.Module, list[Diagnostic]]:
    """Parse a text and check that each finding can be shown."""
    source = SourceFile("t.tok", text)
    module, found = parse(source)
    check(source, found)
    return module, found


def check(source: SourceFile, found: list[Diagnostic]) -> None:
    for finding in found:
        line, column = source.position(finding.span.start)
        assert 1 <= line <= source.text.count("\n") + 1 and column >= 1
        assert 0 <= finding.span.start <= finding.span.end <= len(source.text)
        assert finding.message() and not finding.message().endswith(".")
        assert "\n" not in finding.message() and "__" not in finding.message()
        for label in finding.labels:
            assert 0 <= label.span.start <= label.span.end <= len(source.text)


# ----------------------------------------------------------------------------- trees


@slow
@given(modules)
def test_a_printed_tree_is_read_back(module: tree.Module) -> None:
    text = print_module(module)
    again, found = read(text)
    assert [f.message() for f in found] == []
    assert same_tree(again, module)


@slow
@given(modules)
def test_formatting_twice_changes_nothing(module: tree.Module) -> None:
    text = formatted(print_module(module))
    assert formatted(text) == text


@slow
@given(modules)
def test_yaml_says_the_same(module: tree.Module) -> None:
    source = SourceFile("t.tok.yaml", to_yaml(module))
    again, found = parse_yaml(source)
    assert [f.message() for f in found] == []
    assert same_tree(again, module)


def formatted(text: str) -> str:
    """Format a text without the safety net, so that a mistake is seen."""
    source = SourceFile("t.tok", text)
    module, found = parse(source)
    assert not found
    result = Formatter(source).module(module)
    assert same_tree(parse(SourceFile("t.tok", result))[0], module)
    return result


# ----------------------------------------------------------------------------- texts


@slow
@given(st.text())
def test_any_text_is_read(text: str) -> None:
    module, found = read(text)
    if found:
        assert format_module(SourceFile("t.tok", text), module) == text


@slow
@given(st.lists(pieces, max_size=60).map(" ".join))
def test_any_row_of_tokens_is_read(text: str) -> None:
    module, found = read(text)
    if not found:
        assert same_tree(parse(SourceFile("t.tok", print_module(module)))[0], module)


@slow
@given(st.binary(max_size=300))
def test_any_bytes_are_read(content: bytes) -> None:
    read(content.decode("utf-8", "replace"))
    source = SourceFile("t.tok.yaml", content.decode("utf-8", "replace"))
    check(source, parse_yaml(source)[1])


@slow
@given(st.lists(pieces | yaml_pieces).map("".join))
def test_any_yaml_is_read(text: str) -> None:
    source = SourceFile("t.tok.yaml", text)
    check(source, parse_yaml(source)[1])


@slow
@given(programs, st.integers(0), pieces, st.booleans())
def test_one_change_gives_few_findings(
    program: str, place: int, piece: str, replaced: bool
) -> None:
    tokens = lex(program).tokens
    place %= len(tokens)
    start, end = tokens.starts[place], tokens.ends[place]
    text = program[:start] + (piece if replaced else "") + program[end:]
    assert len(read(text)[1]) <= 4


@slow
@given(programs, st.integers(0), st.sampled_from(["# remark\n", "  # remark\n", "\n# remark\n"]))
def test_a_comment_anywhere_is_kept(program: str, place: int, comment: str) -> None:
    tokens = lex(program).tokens
    at = tokens.starts[place % len(tokens)]
    text = program[:at] + comment + program[at:]
    if parse(SourceFile("t.tok", text))[1]:
        return  # the line break ended a statement
    result = formatted(text)
    assert result.count("# remark") == 1
    assert result.count("#") == text.count("#")
    assert formatted(result) == result


# ----------------------------------------------------------------------------- depth


@pytest.mark.parametrize(
    ("opening", "closing"),
    [("- ", ""), ("1 + ", ""), ("f(", ")"), ("[", "]"), ("|i| ", ""), ("f(if a { ", " })"),
     ("if a { b } else ", ""), ("if a { ", " }")],
)  # fmt: skip
def test_the_deepest_texts_go_through_everything(opening: str, closing: str) -> None:
    last = "if a { b }" if "if" in opening else "x"
    texts = [f"fn f(x) {{ y = {opening * n}{last}{closing * n} }}" for n in range(20, 200)]
    sources = [SourceFile("t.tok", text) for text in texts]
    fitting = [source for source in sources if not parse(source)[1]]
    assert 0 < len(fitting) < len(sources)
    module = parse(fitting[-1])[0]
    assert "y" in format_module(fitting[-1], module)
    assert same_tree(parse_yaml(SourceFile("t.tok.yaml", to_yaml(module)))[0], module)
    assert repr(module)


# ----------------------------------------------------------------------------- time


@pytest.mark.parametrize(
    "text",
    [
        "(" * 20_000,
        "{" * 20_000,
        "fn f(x) { y = " + "-" * 20_000 + "x }",
        "fn f(x) { y = " + "1 + " * 20_000 + "x }",
        "fn f(x) { y = x" + ".a" * 20_000 + " }",
        "fn f(x) {\n" + "  f(a\n" * 4_000 + "}\n",
        "model m {\n" + "  stage a {\n" * 8_000,
        "fn f(x) {\n" + "  if a {\n  b\n" * 5_000 + "}\n" * 3,
        "fn f(x) { f(" + "," * 20_000 + ") }",
        "fn f(x) { f(" + "a b " * 10_000 + ") }",
        "fn f(x) { " + "a = ; " * 10_000 + "}",
        "$ " * 20_000,
        '"\n' * 20_000,
        "}\n" * 20_000,
        "model m { weights w { " + '"a" = b ' * 10_000 + "$ } }",
        "1" * 100_000,
        "#" * 100_000,
        "fn f(x) { if a { b } else " * 3_000,
    ],
    ids=lambda text: text[:24].replace("\n", " "),
)
def test_time_is_bounded(text: str) -> None:
    start = time.process_time()
    module, found = read(text)
    assert time.process_time() - start < 5
    assert found or text.startswith("#")
    assert format_module(SourceFile("t.tok", text), module) == text or not found


def test_time_is_linear() -> None:
    program = "\n".join(PROGRAMS.values())

    def seconds(copies: int) -> float:
        source = SourceFile("t.tok", program * copies)
        start = time.process_time()
        parse(source)
        return time.process_time() - start

    seconds(1)
    small, large = seconds(10), seconds(60)
    assert large < 12 * small + 0.1


def test_many_mistakes_take_linear_time() -> None:
    lines = "\n".join(PROGRAMS.values()).splitlines()
    chance = random.Random(0)
    kept = [line for _ in range(30) for line in lines if chance.random() > 0.05]
    start = time.process_time()
    read("\n".join(kept))
    assert time.process_time() - start < 5
