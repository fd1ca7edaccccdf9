"""Prints docs/node-sample.md from the model that the samples are checked with.

Run ``python -m harness.monitor.fields > docs/node-sample.md`` after a change of the model.
"""

import types
from collections.abc import Iterator
from enum import EnumType, StrEnum
from typing import Any, Union, cast, get_args, get_origin

from pydantic import BaseModel

from harness.monitor.sample import Sample

_INTRODUCTION = """\
# The node sample

Made from `harness/monitor/sample.py` by `python -m harness.monitor.fields`; edit that file, not this page.

`llama-node-monitor` writes one JSON object a second, on the whole second, into the node's ring:
`/var/lib/llama-harness/monitor/*.jsonl`, the last ten minutes. `llama-node-monitor tail --since NS`
prints them, `--follow` goes on; a run keeps the same records in `samples.jsonl`. The same record goes to
Redis: to the stream `llama:samples:<node>` (id: the sample's time, `<ms>-0`; field `sample`), and to
`llama:latest:<node>`, which is gone five seconds after the node has fallen silent; on the head node
`llama-node-monitor latest NODE...` prints what is there.

Units are part of a name: `_bytes`, `_s` (seconds), `_ns` (nanoseconds). Counters only grow, until
the node or the process starts again. A figure that is not known is null, never zero.

A lab node shares its host's kernel. Its memory, CPU time and disk traffic are those of its machine cgroup;
its pressure too with control groups of version 2. Version 1 counts pressure for the whole host only, so
that it is null, and its disk traffic leaves out what the kernel wrote back later. Its kernel log is the
host's records about that cgroup. The load is the host's.

NVIDIA's GPUs are asked through NVML where the kernel has their driver, AMD's are read from amdgpu's files
in /sys. Neither has been tried on hardware yet: they are tested against figures written after the
documentation.

| Field | Type | Meaning |
|---|---|---|
"""


def markdown() -> str:
    """The whole page."""
    return _INTRODUCTION + "".join(f"{row}\n" for row in _rows(Sample, ""))


def _rows(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        path = f"{prefix}{name}"
        kind, nested, suffix = _describe(field.annotation)
        meaning = field.description or (" ".join((nested.__doc__ or "").split()) if nested else "")
        yield f"| `{path}` | {kind} | {meaning} |"
        if nested:
            yield from _rows(nested, f"{path}{suffix}.")


def _describe(annotation: Any) -> tuple[str, type[BaseModel] | None, str]:
    """Type in words, the model inside it if any, and how a path goes on into it."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        (inner,) = (argument for argument in arguments if argument is not type(None))
        kind, nested, suffix = _describe(inner)
        return f"{kind} or null", nested, suffix
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
    print(markdown(), end="")
