"""Whatever lies on the disk gives a text or a finding."""

from __future__ import annotations

from pathlib import Path

from tokdsl.syntax.parser import parse
from tokdsl.syntax.reading import read_source


def messages(path: Path | str) -> list[str]:
    source, found = read_source(path)
    found = found or parse(source)[1]
    return [f"{finding.code} {finding.message()}" for finding in found]


def test_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.tok"
    path.write_bytes(b"\xef\xbb\xbfmodel m {\r\n  require causal\r\n}\r\n")
    source, found = read_source(path)
    assert (source.name, found) == (str(path), [])
    assert source.text == "model m {\n  require causal\n}\n"
    assert messages(path) == []


def test_no_file(tmp_path: Path) -> None:
    (tmp_path / "model.tok").write_text("")
    source, (finding,) = read_source(tmp_path / "modle.tok")
    assert source.text == ""
    assert finding.message() == f"cannot read `{tmp_path}/modle.tok`: there is no such file"
    assert finding.help == "did you mean `model.tok`?"


def test_a_folder(tmp_path: Path) -> None:
    assert messages(tmp_path) == [f"TOK110 cannot read `{tmp_path}`: it is a folder"]


def test_something_else() -> None:
    assert messages("/dev/null") == ["TOK110 cannot read `/dev/null`: it is no ordinary file"]
    assert messages("a\0b") == ["TOK110 cannot read `a\0b`: embedded null byte"]


def test_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "a.tok"
    path.write_bytes("# café\nmodel m { require causal }".encode("latin-1"))
    assert messages(path) == ["TOK111 the text is not valid UTF-8 (in 1 place)"]


def test_binary(tmp_path: Path) -> None:
    path = tmp_path / "a.tok"
    for content in (b"\x7fELF\0\0", bytes(range(128, 256)) * 20):
        path.write_bytes(content)
        assert messages(path) == ["TOK112 expected text, found binary data"]


def test_too_large(tmp_path: Path) -> None:
    path = tmp_path / "a.tok"
    path.write_bytes(b"# a\n" * 1_500_000)
    assert messages(path) == [
        f"TOK113 `{path}` is too large: expected at most 4 MiB, found 5.7 MiB"
    ]
