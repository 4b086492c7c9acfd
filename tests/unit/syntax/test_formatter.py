"""One way to write a program."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.syntax.showing import formatted, module
from tokdsl.source import SourceFile
from tokdsl.syntax.compare import same_tree
from tokdsl.syntax.formatter import format_module, print_module
from tokdsl.syntax.parser import parse

PROGRAMS = sorted(Path(__file__).parent.glob("programs/*.tok"))


def lines(*texts: str) -> str:
    return "\n".join(texts) + "\n"


def test_spaces_and_indentation() -> None:
    text = "fn f( x:[*,d] ;n :int=3 )->[ * , d ]{\ny=-x**2+(x)*f(x;n,over=*)\nif n==3{y}else{x}\n}"
    assert formatted(text) == lines(
        "fn f(x: [*, d]; n: int = 3) -> [*, d] {",
        "  y = -x ** 2 + x * f(x; n, over = *)",
        "  if n == 3 { y } else { x }",
        "}",
    )


def test_equations_are_aligned() -> None:
    text = "fn f(x: [d]) {\n a=x\n bcd=x\n\n e=x\n a_very_long_name_indeed=x\n s[i: T]=x\n g=x\n}"
    assert formatted(text) == lines(
        "fn f(x: [d]) {",
        "  a   = x",
        "  bcd = x",
        "",
        "  e = x",
        "  a_very_long_name_indeed = x",
        "  s[i: T] = x",
        "  g = x",
        "}",
    )


def test_long_weight_rules_begin_a_line_with_the_path() -> None:
    name, path = f'"{"published." * 7}weight"', f"text.layers[i].{'inner.' * 5}weight"
    assert formatted(f"model m {{ weights w {{ {name} = {path} }} }}") == lines(
        "model m {",
        "  weights w {",
        f"    {name} =",
        f"      {path}",
        "  }",
        "}",
    )


def test_round_brackets_only_where_needed() -> None:
    text = "fn f(x) {\n (a + (b * c)) - (d - e)\n ((a) ** (b)) ** c\n (-a) ** b\n not (a and b)\n}"
    assert formatted(text) == lines(
        "fn f(x) {",
        "  a + b * c - (d - e)",
        "  (a ** b) ** c",
        "  (-a) ** b",
        "  not (a and b)",
        "}",
    )


def test_long_calls_are_filled() -> None:
    names = ", ".join(f"argument_{number} = value_{number}" for number in range(7))
    assert formatted(f"fn f(x) {{\n  y = call({names})\n}}") == lines(
        "fn f(x) {",
        "  y = call(argument_0 = value_0, argument_1 = value_1, argument_2 = value_2, "
        "argument_3 = value_3,",
        "           argument_4 = value_4, argument_5 = value_5, argument_6 = value_6)",
        "}",
    )


def test_long_sums_break_behind_an_operator() -> None:
    terms = " + ".join(f"a_rather_long_name_{number}" for number in range(6))
    assert formatted(f"fn f(x) {{ y = {terms} }}") == lines(
        "fn f(x) {",
        "  y = a_rather_long_name_0 + a_rather_long_name_1 + a_rather_long_name_2 + "
        "a_rather_long_name_3 +",
        "      a_rather_long_name_4 + a_rather_long_name_5",
        "}",
    )


def test_blocks_stay_on_one_line_or_on_several() -> None:
    text = lines("fn f(x) {", "  residual { a(); b() }", "  residual {", "    a()", "  }", "}")
    assert formatted(text) == text


def test_a_block_that_does_not_fit_is_broken() -> None:
    name = "a" * 50
    assert formatted(f"fn f(x) {{\n  residual {{ {name}(); {name}() }}\n}}") == lines(
        "fn f(x) {", "  residual {", f"    {name}()", f"    {name}()", "  }", "}"
    )


def test_statements_on_one_line_stay_together() -> None:
    text = lines("fn f(x) {", "  repeat 4 { a() }; b()", "}")
    assert formatted(text) == text


def test_blank_lines() -> None:
    text = "\n\nuse a\nuse b\nfn f(x) {\n\n  a\n\n\n  b\n\n}\n# doc\nfn g(x) { x }\n\n\n"
    assert formatted(text) == lines(
        "use a", "use b", "", "fn f(x) {", "  a", "", "  b", "}", "", "# doc", "fn g(x) { x }"
    )


def test_comments_are_kept_in_their_places() -> None:
    text = lines(
        "# first",
        "",
        "# doc",
        "fn f(",
        "  x: [*, d];  # the input",
        "  # how many",
        "  n: int",
        ") {  # opening",
        "  # leading",
        "  a   = x  # one",
        "  bcd = x  # two",
        "  e = call(",
        "    a,  # why a",
        "    # why b",
        "    b",
        "    # end",
        "  )",
        "  # last",
        "}  # closing",
        "",
        "# end",
    )
    assert formatted(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "fn f(x) {\n  a = # here\n    b\n}",
        "fn f(x) {\n  if a { b } # here\n  else { c }\n}",
        "fn # here\n f(x) { a }",
        "fn f(x) # here\n -> [d] { a }",
        "model m # here\n { }",
        "model m { # here\n}",
        "use a { # here\n b }",
        "fn f(x) { a[ # here\n b] }",
        "model m { weights w { # here\n } }",
        "model m { weights w # here\n { 'a' = b } }",
    ],
)
def test_comments_in_odd_places_are_kept(text: str) -> None:
    result = formatted(text)
    assert result.count("# here") == 1
    assert same_tree(module(result), module(text))
    assert formatted(result) == result


def test_numbers_and_strings_stay_as_written() -> None:
    text = lines("fn f(x) {", '  a(1e6, 1_000, 13B, 0x, \'b\', "c", "\\u00e9")', "}")
    text = text.replace("0x, ", "")
    assert formatted(text) == text


def test_words_of_statements_as_names() -> None:
    text = "fn f(x) {\n  (residual)(x)\n  (require)\n  repeat (-x) { y }\n  stage = (repeat)\n}\n"
    result = formatted(text)
    assert same_tree(module(result), module(text))
    assert "(residual)(x)" in result and "stage = repeat" in result


def test_a_text_with_mistakes_is_returned_as_it_is() -> None:
    text = "fn  f(x) { a = ; b }"
    source = SourceFile("t.tok", text)
    assert format_module(source, parse(source)[0]) == text


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
def test_programs(path: Path) -> None:
    text = path.read_text("utf-8")
    result = formatted(text)
    assert same_tree(module(result), module(text))
    assert formatted(result) == result
    assert result.count("#") == text.count("#")
    assert same_tree(module(print_module(module(text))), module(text))
    assert all(len(line) <= 100 for line in result.split("\n") if "#" not in line)
