"""The `tokenizer` member of a model: which one, and how many classes it has."""

from __future__ import annotations

from tokdsl.graph.builder import Builder
from tokdsl.graph.frame import Frame
from tokdsl.source import Span
from tokdsl.syntax import tree

#: tokenizers by name and the arguments they take
TOKENIZERS: dict[str, tuple[str, ...]] = {
    "bytes": ("bos", "eos", "pad"),
    "chars": ("alphabet",),
    "pretrained": ("file",),
    "byte_bpe": ("vocab", "specials"),
}


def read_tokenizer(
    builder: Builder, frame: Frame, node: tree.Expression
) -> tuple[str, dict[str, object], Span]:
    """Return the tokenizer's name and arguments.

    Raises:
        Poison: if it is not a known tokenizer (reported).
    """
    call = node if isinstance(node, tree.Call) else None
    head = call.function if call is not None else node
    name = head.id if isinstance(head, tree.Name) else ""
    name = {"bpe": "pretrained"}.get(name, name)
    if name not in TOKENIZERS or call is None:
        known = ", ".join(f"`{n}`" for n in TOKENIZERS)
        raise builder.fail(
            frame,
            "not-callable",
            node.span,
            f"`{node.span.text}` is no tokenizer; there are {known}",
        )
    given: dict[str, object] = {}
    for i, argument in enumerate((*call.operands, *call.statics)):
        takes = TOKENIZERS[name]
        key = argument.name or (takes[i] if i < len(takes) else "")
        if key not in takes:
            raise builder.fail(
                frame,
                "unknown-argument",
                argument.span,
                f"`{name}` takes {', '.join(takes) or 'nothing'}, found `{argument.span.text}`",
            )
        given[key] = builder.evaluate(frame, argument.value)
    return name, given, node.span
