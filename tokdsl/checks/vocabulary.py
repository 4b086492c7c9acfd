"""Whether the tokenizer and the token inputs agree on how many tokens there are."""

from __future__ import annotations

from pathlib import Path

from tokdsl.checks.facts import Facts
from tokdsl.diagnostics import Diagnostic, Label, Report, Severity
from tokdsl.graph.diagnostics import VocabularyMismatch
from tokdsl.graph.program import Input, Program
from tokdsl.tokenizers import (
    TokenizerFileError,
    Vocabulary,
    byte_pair_vocabulary,
    bytes_vocabulary,
    character_vocabulary,
    read_tokenizer_file,
    special_tokens,
    vocabulary,
)
from tokdsl.types.dims import Dim
from tokdsl.types.tensors import Axis

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


class MisplacedSegments(
    Diagnostic, code="TOK432", name="misplaced-segments", severity=Severity.ERROR
):
    """A step of the tokenizer fills an input that is not a flag per token.

    A step such as `words` says of every token whether a segment begins with it. It fills the input
    of its name (`starts`, or the name that the tokenizer gives to it), which therefore is a `bool`
    on the clock of the tokens.

    ```tok error
    tokenizer words_of_bytes() { bytes(); words() }

    model m(d: int = 8) {
      tokenizer = words_of_bytes()
      stage text(ids: tokens[256], starts: [T]) { embed(ids; d) * starts; unembed(256) }
    }
    ```
    ```tok ok
    tokenizer words_of_bytes() { bytes(); words() }

    model m(d: int = 8) {
      tokenizer = words_of_bytes()
      stage text(ids: tokens[256], starts: bool[T]) {
        embed(ids; d)
        where(starts, it, 2 * it)
        unembed(256)
      }
    }
    ```
    """

    input: str
    found: str

    def message(self) -> str:
        """Return what was found."""
        return f"the tokenizer says where segments begin, but `{self.input}` is {self.found}"


class SegmentsReadAhead(
    Diagnostic, code="TOK433", name="segments-read-ahead", severity=Severity.WARNING
):
    """A model that predicts tokens is told segments that follow from later tokens.

    The analysis of time takes an input for what it is. Some segments are known only when the whole
    text is: the units of a lexer, and pairs of tokens that are frequent in a batch. A model that
    reads where they begin, and is trained to predict the next token, learns from what it will not
    have. Cut the text by a rule that reads up to one character, such as `words` or `delimiters`.

    ```tok error
    tokenizer code() { bytes(); units() }

    model m(d: int = 8) {
      tokenizer = code()
      stage text(ids: tokens[256], starts: bool[T]) {
        embed(ids; d)
        where(starts, it, 2 * it)
        unembed(256)
      }
      objective next_token(text, ids)
    }
    ```
    ```tok ok
    tokenizer code() { bytes(); delimiters() }

    model m(d: int = 8) {
      tokenizer = code()
      stage text(ids: tokens[256], starts: bool[T]) {
        embed(ids; d)
        where(starts, it, 2 * it)
        unembed(256)
      }
      objective next_token(text, ids)
    }
    ```
    """

    input: str
    step: str

    def message(self) -> str:
        """Return what was found."""
        return f"`{self.input}` follows from later tokens: `{self.step}` reads the whole text"


def check(program: Program, facts: Facts, report: Report) -> None:
    """Report inputs that do not take what the tokenizer gives."""
    if program.tokenizer is None:
        return
    _check_segments(program, facts, report)
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


def _check_segments(program: Program, facts: Facts, report: Report) -> None:
    """Report inputs that are filled by a step of the tokenizer and do not fit it."""
    clocks = {axis.clock for i in program.inputs if i.classes is not None for axis in _axes(i)}
    predicts = any(facts.causal.values()) and program.objective is not None
    for step, span in program.segments:
        given = next((i for i in program.inputs if i.name == step.name), None)
        if given is None:
            continue
        axes = _axes(given)
        is_flag = len(axes) == 1 and axes[0].clock in clocks and given.value.type.dtype == "bool"
        if not is_flag:
            report.add(
                MisplacedSegments(
                    span=given.value.span,
                    input=given.name,
                    found=f"`{given.value.type}`",
                    labels=(Label(span, f"`{step.segmentation}` fills it"),),
                    help=f"write `{given.name}: bool[T]` beside the tokens",
                )
            )
        elif predicts and step.source in ("whole", "tokens"):
            labels = (Label(given.value.span, "fills this input"),)
            report.add(
                SegmentsReadAhead(
                    span=span, input=given.name, step=step.segmentation, labels=labels
                )
            )


def _axes(given: Input) -> tuple[Axis, ...]:
    return given.value.type.axes


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
    if name == "bytes":
        return bytes_vocabulary(special_tokens(arguments), str(arguments.get("place", "after")))
    if name == "chars":
        return character_vocabulary(str(arguments.get("alphabet", "")))
    if name == "byte_bpe":
        size = arguments.get("vocab")
        number = size.number if isinstance(size, Dim) else None
        return None if number is None else byte_pair_vocabulary(number, _roles(arguments))
    file = folder / str(arguments.get("file", "tokenizer.json"))
    if not file.exists():
        return None  # it may come with the weights; building needs it, checking does not
    return vocabulary(read_tokenizer_file(file))
