"""The keys of the YAML form: the one table for its reader and its JSON Schema."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tokdsl.syntax.tree import DEFINITION_KINDS

#: What stands behind a key.
Shape = Literal[
    "name", "module", "expression", "expressions", "type", "doc",
    "imports", "annotations", "arguments", "body", "rules", "published",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Key:
    """A key of a form.

    Args:
        name: the key.
        shape: what stands behind it.
        doc: what it means, for editors.
        required: whether it must be there.
    """

    name: str
    shape: Shape
    doc: str
    required: bool = False


@dataclass(frozen=True, slots=True)
class Form:
    """A mapping of the YAML form; its first key says which one it is."""

    keys: tuple[Key, ...]
    doc: str

    @property
    def names(self) -> tuple[str, ...]:
        """The keys that it may have."""
        return tuple(key.name for key in self.keys)


_BODY = Key("body", "body", "the statements, in order", required=True)
_PARAMETERS = Key("parameters", "annotations", "static parameters: `top: int = 2`")
_DOC = Key("doc", "doc", "what it is, in words")


def _definition(kind: str) -> Form:
    keys = (
        Key(kind, "name", "the name of the definition", required=True),
        _DOC,
        Key("operands", "annotations", 'tensors: `x: "[*, d]"`'),
        _PARAMETERS,
        Key("result", "type", "the type of the result"),
        _BODY,
    )
    return Form(keys, f"defines a `{kind}`")


#: The forms that stand in the list that makes up a file.
ITEM_FORMS: dict[str, Form] = {
    "use": Form(
        (
            Key("use", "module", "the module: `std.attention`", required=True),
            Key("names", "imports", "the names to use from it: `[gqa, rope as r]`"),
            Key("as", "name", "another name for the module"),
        ),
        "makes definitions of another file known",
    ),
    "model": Form(
        (
            Key("model", "name", "the name of the model", required=True),
            _DOC,
            _PARAMETERS,
            _BODY,
        ),
        "defines a model",
    ),
    **{kind: _definition(kind) for kind in DEFINITION_KINDS},
}

#: The forms that stand in a ``body``; a statement without a block may be a text instead.
STATEMENT_FORMS: dict[str, Form] = {
    "stage": Form(
        (
            Key("stage", "name", "the name of the stage", required=True),
            Key("inputs", "annotations", 'what flows in: `ids: "tokens[vocab]"`'),
            Key("arguments", "arguments", "settings of the stage: `width: d1`"),
            _BODY,
        ),
        "a stage: steps that a stream flows through",
    ),
    "repeat": Form(
        (
            Key("repeat", "expression", "how often", required=True),
            Key("as", "name", "a name for the number of the round"),
            _BODY,
        ),
        "repeats steps, each time with weights of their own",
    ),
    "residual": Form(
        (
            Key("residual", "body", "the statements, in order", required=True),
            Key("arguments", "arguments", "settings of the residual"),
        ),
        "adds the result of steps to what came in",
    ),
    "if": Form(
        (
            Key("if", "expression", "the condition", required=True),
            Key("then", "body", "the statements when it holds", required=True),
            Key("else", "body", "the statements when it does not hold"),
        ),
        "chooses between steps when the model is built",
    ),
    "objective": Form(
        (Key("objective", "expression", "what is minimised", required=True),),
        "the objective of a model",
    ),
    "require": Form(
        (Key("require", "expressions", "what must hold", required=True),),
        "states what must hold, or the build fails",
    ),
    "weights": Form(
        (
            Key("weights", "name", "the name of the layout", required=True),
            Key("rules", "rules", "one rule for each tensor or group of tensors", required=True),
        ),
        "maps the tensors of a published checkpoint",
    ),
}

#: One rule of a ``weights`` clause.
RULE_FORM = Form(
    (
        Key("published", "published", "the name of the tensor, or several", required=True),
        Key("value", "expression", "what it is in this model", required=True),
    ),
    "maps one tensor or one group of tensors",
)
