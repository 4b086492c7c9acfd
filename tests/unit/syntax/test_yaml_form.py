"""YAML as a second surface of the same tree."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.syntax.showing import module, yaml_findings
from tokdsl.source import SourceFile
from tokdsl.syntax.compare import same_tree, walk
from tokdsl.syntax.yaml_form import parse_yaml, to_yaml

PROGRAMS = sorted(Path(__file__).parent.glob("programs/*.tok"))

MIXTRAL = """\
- use: std.attention
  names: [gqa, rope]

- model: mixtral
  doc: A mixture.
  parameters:
    vocab: int = 32000
    d: int = 4096
    layers: int = 32
  body:
  - tokenizer = bpe("tokenizer.json")
  - stage: text
    inputs:
      ids: tokens[vocab]
    body:
    - embed(d)
    - repeat: layers
      body:
      - residual:
        - rmsnorm()
        - gqa(heads = 32, rotary = rope(theta = 1e6))
    - unembed(vocab)
  - objective: next_token(text, ids) + 0.02 * aux.balance
  - require: [causal, streaming]
"""

AS_TEXT = """\
use std.attention { gqa, rope }
# A mixture.
model mixtral(vocab: int = 32000, d: int = 4096, layers: int = 32) {
  tokenizer = bpe("tokenizer.json")
  stage text(ids: tokens[vocab]) {
    embed(d)
    repeat layers { residual { rmsnorm(); gqa(heads = 32, rotary = rope(theta = 1e6)) } }
    unembed(vocab)
  }
  objective next_token(text, ids) + 0.02 * aux.balance
  require causal, streaming
}
"""


def test_written_form() -> None:
    assert to_yaml(module(AS_TEXT)) == MIXTRAL


def test_read_form() -> None:
    read, found = parse_yaml(SourceFile("t.tok.yaml", MIXTRAL))
    assert found == []
    assert same_tree(read, module(AS_TEXT))


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
def test_programs_say_the_same(path: Path) -> None:
    text = module(path.read_text("utf-8"))
    read, found = parse_yaml(SourceFile("t.tok.yaml", to_yaml(text)))
    assert found == []
    assert same_tree(read, text)


@pytest.mark.parametrize(
    "text",
    [
        "- fn: f\n  body: ['a; b', 'repeat 4 { c }']",
        "- fn: f\n  body:\n  - |\n    a\n    b\n  - >\n    repeat 4\n    { c }",
        '- fn: f\n  body: ["a; b", "repeat 4 { c }"]',
        "- fn: f\n  body: [a, b, {repeat: 4, body: [c]}]",
        "fn: f\nbody: [a, b, {repeat: 4, body: [c]}]",
    ],
)
def test_statements_as_texts(text: str) -> None:
    read, found = parse_yaml(SourceFile("t.tok.yaml", text))
    assert found == []
    assert same_tree(read, module("fn f() { a; b; repeat 4 { c } }"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "- model: m\n  paramters: {d: int}\n  body: []",
            "2:3 TOK131 unknown key `paramters` in `model` (did you mean `parameters`?)",
        ),
        (
            "- modle: m\n  body: []",
            "1:3 TOK131 unknown key `modle` here (did you mean `model`?)",
        ),
        (
            "- fn: f\n  body:\n  - linear(x; heads: 8)",
            "3:5 TOK131 unknown key `linear(x; heads` here "
            "(put the whole text in quotes: `: ` begins a mapping in YAML)",
        ),
        ("- model: m", "1:3 TOK135 missing key `body` in `model`"),
        ("- model: m\n  body: x", "2:9 TOK132 expected a list of statements, found a text"),
        ("- model: [m]\n  body: []", "1:10 TOK132 expected a name, found a list"),
        ("- model: if\n  body: []", "1:10 TOK132 expected a name, found a text"),
        ("just a text", "1:1 TOK132 expected a list of items, found a text"),
        (
            "- model: m\n  body: []\n  body: []",
            "3:3 TOK133 key `body` is given twice",
        ),
        (
            "- model: m\n  body: [require: causal",
            "2:25 TOK130 not well-formed YAML: did not find expected ',' or ']'",
        ),
        ("- &a model: m\n  body: []", "1:3 TOK134 the anchor `&a` cannot be used in the YAML form"),
        ("- model: !x m\n  body: []", "1:10 TOK134 the tag `!x` cannot be used in the YAML form"),
        (
            "- model: m\n  body: []\n---\n- model: n\n  body: []",
            "3:1 TOK134 a second document cannot be used in the YAML form",
        ),
        (
            "- fn: f\n  body:\n  - repeat: 4 +\n    body: []",
            "3:15 TOK102 expected a value after `+`, found the end of the text",
        ),
        (
            "- fn: f\n  body:\n  - 'é = \"ü\" $ 3'",
            "3:14 TOK107 unknown character `$`",
        ),
        (
            '- fn: f\n  body:\n  - "a = \\"\\u00fc\\" $ 3"',
            "3:21 TOK107 unknown character `$`",
        ),
        (
            "- fn: f\n  body:\n  - |\n    a = b\n    c = (d",
            "5:9 TOK104 unclosed `(`: expected a matching `)`",
        ),
        (
            "- fn: f\n  body:\n  - a = f(b,\n      c d)",
            "4:9 TOK103 expected `,` between `c` and `d`",
        ),
        (
            "- fn: f\n  parameters: {a: int b}\n  body: []",
            "2:23 TOK101 expected `[`, `=` or the end of the text, found `b`",
        ),
        (
            "- model: m\n  body:\n  - embed(d)",
            "3:5 TOK114 a step cannot stand directly in a model: expected in a stage or definition",
        ),
        (
            "- model: m\n  body:\n  - repeat: 4\n    body: [a]",
            "3:5 TOK114 `repeat` cannot stand directly in a model: "
            "expected in a stage or definition",
        ),
        (
            "- fn: f\n  result: '[*, d'\n  body: []",
            "2:12 TOK104 unclosed `[`: expected a matching `]`",
        ),
        ("a\ufffd", "1:2 TOK111 the text is not valid UTF-8 (in 1 place)"),
    ],
)
def test_mistake(text: str, expected: str) -> None:
    found = yaml_findings(text)
    assert expected in found
    assert len(found) == 1 or "TOK111" in expected


def test_an_empty_file_is_an_empty_module() -> None:
    for text in ("", "# nothing\n", "---\n", "[]"):
        read, found = parse_yaml(SourceFile("t.tok.yaml", text))
        assert (read.items, found) == ((), [])


def test_an_alias_bomb_is_refused() -> None:
    text = "a: &a [x, x]\n" + "".join(
        f"{chr(98 + n)}: &{chr(98 + n)} [*{chr(97 + n)}, *{chr(97 + n)}]\n" for n in range(20)
    )
    assert any("TOK134" in line for line in yaml_findings(text))


def test_deep_nesting_is_refused() -> None:
    assert "TOK109" in "".join(yaml_findings("[" * 2000))
    blocks = "".join(f"{'  ' * n}- residual:\n" for n in range(1, 80))
    assert "TOK109" in "".join(yaml_findings(f"- fn: f\n  body:\n{blocks}"))


def test_spans_lie_in_the_yaml_text() -> None:
    source = SourceFile("t.tok.yaml", MIXTRAL)
    read, _ = parse_yaml(source)
    texts = {node.span.text for node in walk(read)}
    assert {"rope(theta = 1e6)", "aux.balance", "layers", "tokens[vocab]"} <= texts
    assert all(node.span.file is source for node in walk(read))
