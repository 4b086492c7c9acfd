"""One mistake, one finding, and the rest keeps its tree."""

from __future__ import annotations

import pytest

from tests.unit.syntax.showing import findings
from tokdsl.source import SourceFile
from tokdsl.syntax import tree
from tokdsl.syntax.compare import walk
from tokdsl.syntax.parser import parse


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("k = ; j = 3;", "2:3 TOK102 expected a value after `=`, found `;`"),
        ("k =\nj = 3", "2:3 TOK102 expected a value after `=`, found the end of the line"),
        ("k = a +", "2:7 TOK102 expected a value after `+`, found the end of the line"),
        ("f(a, , b)", "2:6 TOK102 expected a value after `,`, found `,`"),
        ("f(k = )", "2:7 TOK102 expected a value after `=`, found `)`"),
        ("repeat { a }", "2:8 TOK102 expected a value after `repeat`, found `{`"),
        ("f(a b)", "2:5 TOK103 expected `,` between `a` and `b`"),
        ("[1 2]", "2:4 TOK103 expected `,` between `1` and `2`"),
        ("require a b", "2:11 TOK103 expected `,` between `a` and `b`"),
        ("f(a\nb = c", "2:2 TOK104 unclosed `(`: expected a matching `)`"),
        ("f(g(a)\nb = [c]", "2:2 TOK104 unclosed `(`: expected a matching `)`"),
        ("a = [b, (c]", "2:9 TOK104 unclosed `(`: expected a matching `)`"),
        ("f(a))", "2:5 TOK105 unexpected `)`: nothing is open that it could close"),
        ("a = b]", "2:6 TOK105 unexpected `]`: nothing is open that it could close"),
        (
            'a = f("b)\nc = d',
            '2:7 TOK106 unterminated string: expected a closing `"` on the same line',
        ),
        ("a $ b", "2:3 TOK107 unknown character `$`"),
        ("a && b", "2:3 TOK107 unknown character `&&` (write `and`)"),
        ("a = 1e999", "2:5 TOK108 number `1e999` is out of range: numbers end at 1.8e308"),
        (
            "a = " + "1" * 10_000,
            "2:5 TOK108 number `111111111111...1111` is out of range: "
            "whole numbers end at 9223372036854775807 (64 bits)",
        ),
        ("a = 13Q", "2:5 TOK116 `13Q` is not a number with a known unit"),
        ("a = 8kib", "2:5 TOK116 `8kib` is not a number with a known unit (did you mean `KiB`?)"),
        ("a = 1 b = 2", "2:7 TOK115 expected `;` or a new line before `b`"),
        ("a() repeat 4 { b }", "2:5 TOK115 expected `;` or a new line before `repeat`"),
        (
            "objective a",
            "2:1 TOK114 `objective` cannot stand in a stage or definition: "
            "expected directly in a model",
        ),
        ("repat 4 { a }", "2:1 TOK117 unknown statement `repat` (did you mean `repeat`?)"),
        ('a = "\\q"', "2:6 TOK119 unknown escape `\\q` in a string (write `\\\\q` for a backslash, "
         "or use a string in single quotes)"),
        ("f(a) = b", "2:1 TOK120 expected a name to the left of `=`, found a call"),
        ("a = b[i: T]", "2:7 TOK121 index `i` cannot be declared here"),
        (
            "gate linear(x)",
            "2:6 TOK101 expected `=` or a new line, found `linear` "
            "(to define `gate`, write `gate = ...`)",
        ),
        (
            "a < b < c",
            "2:7 TOK101 expected a new line, found `<` "
            "(comparisons do not chain: write `a < b and b < c`)",
        ),
        (
            "if a = b { c }",
            "2:6 TOK101 expected `{`, found `=` (`==` compares two values; `=` defines a name)",
        ),
        ("if a { b } elif c { d }", "2:12 TOK101 expected `else` or a new line, found `elif` "
         "(write `else if`)"),
        ("repeat 4\n  a\n}\nb", "2:8 TOK118 expected `{` before the lines of the block"),
        ("- " * 300 + "x", "2:391 TOK109 nested too deeply: expected at most 200 levels"),
        (
            "(" * 300 + "x" + ")" * 300,
            "2:100 TOK109 nested too deeply: expected at most 200 levels",
        ),
    ],
)  # fmt: skip
def test_mistake_in_a_body(body: str, expected: str) -> None:
    text = f"fn f(x: [*, d]) {{\n{body}\n}}\nfn g(x: [*, d]) {{ x }}\n"
    assert findings(text) == [expected]
    module, _ = parse(SourceFile("t.tok", text))
    assert isinstance(module.items[-1], tree.Definition) and module.items[-1].name == "g"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "model m {\n  stage t() {\n    a()\n",
            ["1:9 TOK104 unclosed `{`: expected a matching `}`"],
        ),
        (
            "model m {\n  stage t() {\n    a()\n  objective b\n}\nfn f(x) { x }",
            ["2:13 TOK104 unclosed `{`: expected a matching `}`"],
        ),
        (
            "model m {\n  stage t() {\n    a()\n  }\n  }\n  objective b\n}\n",
            ["5:3 TOK105 unexpected `}`: nothing is open that it could close"],
        ),
        (
            "model m {\n  stage t(ids: [3] {\n    a()\n  }\n  objective b\n}\n",
            ["2:10 TOK104 unclosed `(`: expected a matching `)`"],
        ),
        ("fn f(a: int b: int) { a }", ["1:13 TOK103 expected `,` between `int` and `b`"]),
        ("blok f(x: [d]) { x }", ["1:1 TOK117 unknown definition `blok` (did you mean `block`?)"]),
        ("model", ["1:1 TOK101 expected a name, found the end of the file"]),
        (
            "model m {\n  a()\n  b()\n}",
            [
                "2:3 TOK114 a step cannot stand directly in a model: "
                "expected in a stage or definition"
            ],
        ),
        (
            "a = 3\nb = 4",
            [
                "1:1 TOK114 an equation cannot stand at the top of a file: "
                "expected in a model or definition"
            ],
        ),
        ("use a { b c }", ["1:11 TOK103 expected `,` between `b` and `c`"]),
        ("use a..b", ["1:7 TOK101 expected a name, found `.`"]),
        (
            "def f(x):\n    return x\n",
            [
                "1:1 TOK101 expected `use`, `model` or a definition, found `def` "
                "(a definition begins with its kind: `block name(x: [*, d]) { ... }`)"
            ],
        ),
        ("fn f(x)\n  x\n", ["1:7 TOK118 expected `{` before the lines of the block"]),
        ("# caf\ufffd\n", ["1:6 TOK111 the text is not valid UTF-8 (in 1 place)"]),
        ("\x7fELF\0\0", ["1:5 TOK112 expected text, found binary data"]),
        ("", []),
        ("\n\n# nothing\n", []),
    ],
)
def test_mistake_in_a_file(text: str, expected: list[str]) -> None:
    assert findings(text) == expected


def test_independent_mistakes_are_all_reported() -> None:
    text = "fn f(x: [*, d]) {\n  a = \n  b = 13Q\n  c d\n  e = f(g h)\n}\nblok k() { l = }\n"
    assert [line.split(" ")[1] for line in findings(text)] == [
        "TOK102", "TOK116", "TOK101", "TOK103", "TOK117", "TOK102",
    ]  # fmt: skip


def test_the_rest_of_a_broken_item_keeps_its_tree() -> None:
    text = (
        "model m {\n  stage t(ids: [T]) {\n    a()\n    b c d\n    e(f = )\n  }\n  objective g\n}"
    )
    module, found = parse(SourceFile("t.tok", text))
    assert len(found) == 2
    kinds = [type(node).__name__ for node in walk(module)]
    assert kinds.count("BrokenStatement") == 1 and kinds.count("Missing") == 1
    assert {"Stage", "Objective", "Call"} <= set(kinds)


def test_a_misspelled_word_is_read_as_what_was_meant() -> None:
    module, _ = parse(SourceFile("t.tok", "blok f(x: [*, d]) { residul { x } }"))
    kinds = [type(node).__name__ for node in walk(module)]
    assert "Definition" in kinds and "Residual" in kinds


@pytest.mark.parametrize(
    "text",
    [
        "fn f() { g(a b) }",
        "fn f() { g(a)) }",
        "blok f() { g }",
        "fn f() { a = 1 b = 2 }",
        "fn f()\n  a\n}",
        'fn f() { a = "b\n}',
        "fn f() { g(a }",
    ],
)
def test_fixes_repair_the_text(text: str) -> None:
    (finding,) = parse(SourceFile("t.tok", text))[1]
    assert finding.fix is not None
    (edit,) = finding.fix.edits
    repaired = text[: edit.span.start] + edit.text + text[edit.span.end :]
    assert findings(repaired) == []
