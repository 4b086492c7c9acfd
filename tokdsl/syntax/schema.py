"""The JSON Schema of the YAML form, for the completion and checks of any YAML editor."""

from __future__ import annotations

from functools import reduce
from operator import or_
from typing import Any

from tokdsl.syntax.yaml_keys import ITEM_FORMS, RULE_FORM, STATEMENT_FORMS, Form, Shape

_NAME = r"^[^\W\d]\w*$"


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of `model.tok.yaml`, made by pydantic from models of its forms."""
    from pydantic import RootModel

    shapes = _shapes()
    items = [_model(head, form, shapes) for head, form in ITEM_FORMS.items()]
    statements = [_model(head, form, shapes) for head, form in STATEMENT_FORMS.items()]
    rule = _model("rule", RULE_FORM, shapes)
    for model in (*items, *statements, rule):
        model.model_rebuild(
            _types_namespace={
                "Statement": reduce(or_, statements, str),
                "Rule": rule,
            }
        )
    item = reduce(or_, items)
    schema = RootModel[list[item] | item].model_json_schema()  # type: ignore[valid-type]
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "tokdsl: the YAML form of a program"
    return schema


def _shapes() -> dict[Shape, Any]:
    """Return the type of each shape; forms that refer to each other do so by name."""
    from typing import Annotated

    from pydantic import Field

    text = Annotated[str, Field(min_length=1)]
    name = Annotated[str, Field(pattern=_NAME)]
    scalar = text | int | float | bool
    return {
        "name": name,
        "module": Annotated[str, Field(pattern=r"^[^\W\d]\w*(\.[^\W\d]\w*)*$")],
        "expression": scalar,
        "expressions": scalar | list[scalar],
        "type": text,
        "doc": str,
        "imports": list[Annotated[str, Field(pattern=r"^[^\W\d]\w*( as [^\W\d]\w*)?$")]],
        "annotations": dict[name, text | None] | list[text],
        "arguments": dict[name, scalar] | list[scalar],
        "body": "list[Statement]",
        "rules": "list[Rule]",
        "published": text | list[text],
    }


def _model(head: str, form: Form, shapes: dict[Shape, Any]) -> Any:
    """Return the pydantic model of a form."""
    from typing import Optional

    from pydantic import ConfigDict, Field, create_model

    fields: dict[str, Any] = {}
    for place, key in enumerate(form.keys):
        shape = shapes[key.shape]
        if key.required:
            field = (shape, Field(alias=key.name, description=key.doc))
        else:
            wide = f"{shape} | None" if isinstance(shape, str) else Optional[shape]  # noqa: UP045
            field = (wide, Field(default=None, alias=key.name, description=key.doc))
        fields[f"key_{place}"] = field
    return create_model(
        head.capitalize(), __config__=ConfigDict(extra="forbid"), __doc__=form.doc, **fields
    )
