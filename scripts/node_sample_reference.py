#!/usr/bin/env python3
"""Writes the table in docs/node-sample.md, from the model that samples are checked with.

Run ``python scripts/node_sample_reference.py`` after a change of harness/monitor/sample.py.
"""

import types
from collections.abc import Iterator
from enum import EnumType, StrEnum
from pathlib import Path
from typing import Annotated, Any, Union, cast, get_args, get_origin

from harness.monitor.sample import Sample
from pydantic import BaseModel

PAGE = Path(__file__).resolve().parents[1] / "docs" / "node-sample.md"
_MARK = "<!-- Generated from monitor/sample.py by scripts/node_sample_reference.py. Do not edit. -->\n"
_HEADER = "\n| Field | Type | Meaning |\n|---|---|---|\n"


def markdown() -> str:
    """The whole page: the text up to the mark, then a row for each field."""
    text, mark, _ = PAGE.read_text().partition(_MARK)
    return text + mark + _HEADER + "".join(f"{row}\n" for row in _rows(Sample, ""))


def _rows(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        path = f"{prefix}{name}"
        kind, nested, suffix = _describe(field.annotation)
        meaning = field.description or (" ".join((nested.__doc__ or "").split()) if nested else "")
        yield f"| `{path}` | {kind} | {meaning} |"
        if nested:
            yield from _rows(nested, f"{path}{suffix}.")


def _describe(annotation: Any) -> tuple[str, type[BaseModel] | None, str]:
    """Type in words, the model inside it if any, and the path's separator into it."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        (inner,) = (argument for argument in arguments if argument is not type(None))
        kind, nested, suffix = _describe(inner)
        return f"{kind} or null", nested, suffix
    if origin is Annotated:
        return _describe(arguments[0])
    if origin is list:
        kind, nested, _ = _describe(arguments[0])
        return f"list of {kind}", nested, "[]"
    if origin is dict:
        kind, nested, _ = _describe(arguments[1])
        return f"{kind} by name", nested, ".*"
    if isinstance(annotation, EnumType):
        values = cast("type[StrEnum]", annotation)
        return " or ".join(f"`{value}`" for value in values), None, ""
    if issubclass(annotation, BaseModel):
        return "object", annotation, ""
    return {int: "integer", float: "number", str: "text", bool: "true or false"}[annotation], None, ""


if __name__ == "__main__":
    PAGE.write_text(markdown())
