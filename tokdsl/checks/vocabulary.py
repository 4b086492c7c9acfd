"""Whether the tokenizer and the token inputs agree on how many tokens there are."""

from __future__ import annotations

from pathlib import Path

from tokdsl.checks.facts import Facts
from tokdsl.diagnostics import Diagnostic, Label, Report, Severity
from tokdsl.graph.diagnostics import VocabularyMismatch
from tokdsl.graph.program import Program
from tokdsl.tokenizers import (
    TokenizerFileError,
    Vocabulary,
    byte_pair_vocabulary,
    bytes_vocabulary,
    character_vocabulary,
    read_tokenizer_file,
    vocabulary,
)
from tokdsl.types.dims import Dim

ORDER = 50

#: what special tokens are for
ROLES = ("bos", "eos", "pad")


class UnreadableTokenizer(
    Diagnostic, code="TOK431", name="unreadable-tokenizer", severity=Severity.ERROR
):
    """A tokenizer cannot be made from what the model gives.

    The alphabet of `chars` names every character once; the file of `pretrained` is a
    `tokenizer.json` beside the model's file.

    ```tok error
    model m(d: int = 8) {
      tokenizer = chars("abca")
      stage text(ids: tokens[4]) { embed(d); unembed(4) }
    }
    ```
    ```tok ok
    model m(d: int = 8) {
      tokenizer = chars("abcd")
      stage text(ids: tokens[4]) { embed(d); unembed(4) }
    }
    ```
    """

    reason: str

    def message(self) -> str:
        """Return what was found."""
        return self.reason


def check(program: Program, facts: Facts, report: Report) -> None:
    """Report token inputs that cannot take every id of the tokenizer."""
    if program.tokenizer is None:
        return
    name, arguments, span = program.tokenizer
    try:
        found = _vocabulary(name, arguments, Path(span.file.name).parent)
    except TokenizerFileError as error:
        report.add(UnreadableTokenizer(span=span, reason=str(error)))
        return
    if found is None:
        return
    facts.tables["vocabulary"] = found
    inputs = [i for i in program.inputs if i.classes is not None]
    for given in inputs:
        size = given.classes.number if given.classes is not None else None
        if size is not None and size < found.size:
            report.add(
                VocabularyMismatch(
                    span=given.value.span,
                    text=f"`{given.name}` takes {size} kinds of tokens, "
                    f"the tokenizer has {found.size}",
                    labels=(Label(span, f"{found.size} tokens"),),
                    notes=_made_of(found),
                    help=f"write `{given.name}: tokens[{found.size}]`",
                )
            )


def _made_of(found: Vocabulary) -> tuple[str, ...]:
    if not found.specials:
        return ()
    listed = ", ".join(f"`{name}` = {number}" for name, number in found.specials.items())
    return (f"special tokens: {listed}",)


def _roles(arguments: dict[str, object]) -> list[str]:
    """Return the special tokens of byte pairs that are to be learned.

    Raises:
        TokenizerFileError: one of them has no role.
    """
    given = arguments.get("specials")
    named = [str(item) for item in given] if isinstance(given, (list, tuple)) else []
    for name in named:
        if name not in ROLES:
            raise TokenizerFileError(f"special tokens are {', '.join(ROLES)}, not {name!r}")
    return named


def _vocabulary(name: str, arguments: dict[str, object], folder: Path) -> Vocabulary | None:
    """Return a tokenizer's vocabulary, or None if it is known only later.

    Raises:
        TokenizerFileError: the arguments make no tokenizer.
    """
    specials = [key for key in ROLES if arguments.get(key) not in (None, False)]
    if name == "bytes":
        return bytes_vocabulary(specials)
    if name == "chars":
        return character_vocabulary(str(arguments.get("alphabet", "")), specials)
    if name == "byte_bpe":
        size = arguments.get("vocab")
        number = size.number if isinstance(size, Dim) else None
        return None if number is None else byte_pair_vocabulary(number, _roles(arguments))
    file = folder / str(arguments.get("file", "tokenizer.json"))
    if not file.exists():
        return None  # it may come with the weights; building needs it, checking does not
    return vocabulary(read_tokenizer_file(file))
