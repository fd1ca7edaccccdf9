"""Checks a request's fields before any server gets them."""

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from harness.router.errors import RouterError
from harness.router.http.json_body import LONGEST_NAME, Json, dump
from harness.router.requests.bounds import BoundError, Conditional
from harness.router.requests.fields import NEUTRAL, PASSED, REFUSED, REFUSED_IN, Api
from harness.router.requests.grammar import check_grammar
from harness.router.requests.schema import SchemaCheck

IGNORED_HEADER = "x-llama-ignored"
_HEADER_NAMES = 20
_NAME_CHARS = 100
_ENDS_A_TEXT = re.compile(r'["\\\x00-\x1f\x7f]')
WITH_SCHEMAS = frozenset({"grammar", "json_schema", "response_format", "tools"})
"""Fields whose check may take tens of milliseconds."""


@dataclass
class CheckedRequest:
    """A request within all bounds, and the parts of it that a llama-server does not get."""

    fields: Json
    """The given dictionary; schemas in it may have been changed."""
    unknown: list[str] = field(default_factory=list)
    """Fields without effect."""
    left_out: list[str] = field(default_factory=list)
    """Constraints of schemas that no llama-server can take: they were removed."""
    schemas_changed: bool = False
    spelled: Callable[[str], str] = str
    given: Json | None = None
    """The client's own body, if ``fields`` were made of it; its schemas are those of ``fields``."""
    _dropped: set[str] = field(default_factory=set)
    _conditional: list[Conditional] = field(default_factory=list)

    def for_llama_server(self, build: int | None, *, as_it_came: bool) -> tuple[bytes | None, dict[str, str]]:
        """The body for the server that was chosen, and the headers that name what it does not get.

        Args:
            build: release number of the server; None where it is not known.
            as_it_came: None is returned in place of a body where the client's own bytes can be passed on.
        """
        too_new = [part for part in self._conditional if self._is_too_new(part, build)]
        if as_it_came and not (self._dropped or self.schemas_changed or too_new):
            return None, {}
        for part in too_new:
            part.container.pop(part.key, None)
        passed = {name: value for name, value in self.fields.items() if name not in self._dropped}
        constraints = [*self.left_out, *(part.path for part in too_new)]
        return _dump(passed), _header([*self.unknown, *map(self.spelled, constraints)])

    def _is_too_new(self, part: Conditional, build: int | None) -> bool:
        """Whether a part is not for the build. An unknown one may be another program: it gets all fields."""
        return part.container is not self.fields if build is None else build < part.since

    def for_others(self) -> tuple[bytes | None, dict[str, str]]:
        """The same for a server with fields of its own, such as an Ollama: only schemas are changed."""
        changed = _dump(self.fields if self.given is None else self.given) if self.schemas_changed else None
        return changed, _header([*map(self.spelled, self.left_out)])


def check_request(
    api: Api, fields: Json, spelled: Callable[[str], str] = str, given: Json | None = None
) -> CheckedRequest:
    """Check a request.

    Args:
        spelled: gives the client's own name for the path of a field.
        given: the client's own body, if ``fields`` were made of it.

    Raises:
        RouterError: a field is refused, of another kind or beyond its bounds (400).
    """
    checked = CheckedRequest(fields, spelled=spelled, given=given)
    try:
        _check_fields(api, checked)
        if not WITH_SCHEMAS.isdisjoint(fields):
            _check_schemas(checked)
        if api is Api.CHAT and fields.get("messages"):
            _check_media(fields["messages"])
    except BoundError as error:
        message = f"{spelled(error.path)}: {error.expected}"
        raise RouterError(400, "bad_request", message) from None
    except RecursionError:
        raise _too_deep() from None
    return checked


def _check_fields(api: Api, checked: CheckedRequest) -> None:
    passed = PASSED[api]
    for name, value in checked.fields.items():
        known = passed.get(name)
        if value is None:
            checked._dropped.add(name)  # some releases do not treat null as absent
        elif known is None:
            checked._dropped.add(name)
            if name in REFUSED and api in REFUSED_IN.get(name, PASSED):
                if value not in NEUTRAL.get(name, ()):
                    raise BoundError(name, f"not possible here: {REFUSED[name]}")
            else:
                checked.unknown.append(name)
        elif not known.kind.accepts(value):
            raise BoundError(name, f"{known.kind} is expected")
        elif known.since:
            checked._conditional.append(Conditional(checked.fields, name, name, known.since))


def _check_schemas(checked: CheckedRequest) -> None:
    schemas = SchemaCheck(checked.left_out, checked._conditional)
    for name, value in checked.fields.items():
        if name not in WITH_SCHEMAS or name in checked._dropped:
            continue
        if name == "grammar":
            check_grammar(value)
        for schema, path in _schemas(name, value):
            schemas.check(schema, path)
    checked.schemas_changed = schemas.changed


def _schemas(name: str, value: Any) -> Iterable[tuple[Any, str]]:
    match name:
        case "json_schema":
            yield value, name
        case "response_format":
            yield from _format_schemas(value)
        case "tools":
            for number, tool in enumerate(value):
                yield from _tool_schemas(tool, f"tools[{number}].function")


def _tool_schemas(tool: Json, path: str) -> Iterable[tuple[Any, str]]:
    function = tool.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise BoundError(path, "an object with a name is expected")
    if len(function["name"]) > LONGEST_NAME:
        raise BoundError(f"{path}.name", f"at most {LONGEST_NAME} characters are allowed")
    _check_spliced(function["name"], f"{path}.name")
    parameters = function.get("parameters")
    properties = parameters.get("properties") if isinstance(parameters, dict) else None
    for name in properties if isinstance(properties, dict) else ():
        _check_spliced(name, f"{path}.parameters.properties")
    if parameters is not None:
        yield parameters, f"{path}.parameters"


def _check_spliced(name: str, path: str) -> None:
    """Refuse a name that would end the text in which it stands in a grammar.

    Releases before 10566 write the names of tools and of their parameters into grammars as they are
    (``common/chat.cpp``): a quote would begin a grammar of the client's own, beyond all bounds.
    """
    if _ENDS_A_TEXT.search(name):
        raise BoundError(path, f"{name[:40]!a}: no quote, backslash or control character is allowed")


def _format_schemas(response_format: Json) -> Iterable[tuple[Any, str]]:
    kind = response_format.get("type", "text")
    if kind not in ("text", "json_object", "json_schema"):
        raise BoundError("response_format.type", "text or json_object or json_schema is expected")
    if response_format.get("schema") is not None:
        yield response_format["schema"], "response_format.schema"
    wrapper = response_format.get("json_schema")
    if wrapper is not None:
        if not isinstance(wrapper, dict):
            raise BoundError("response_format.json_schema", "an object is expected")
        if wrapper.get("schema") is not None:
            yield wrapper["schema"], "response_format.json_schema.schema"


def _check_media(messages: Iterable[Json]) -> None:
    """Refuse media by address: llama-server would fetch it, from any address that the head node reaches."""
    for number, message in enumerate(messages):
        content = message.get("content")
        if not isinstance(content, list):
            continue
        for part in content:
            for kind in ("image_url", "video_url", "input_video", "input_audio"):
                media = part.get(kind) if isinstance(part, dict) else None
                for address in media.values() if isinstance(media, dict) else [media]:
                    if isinstance(address, str) and ":" in address[:32] and not address.startswith("data:"):
                        raise BoundError(f"messages[{number}].content.{kind}", "a data: address is expected")


def _dump(fields: Json) -> bytes:
    try:
        return dump(fields)
    except RecursionError:
        raise _too_deep() from None


def _too_deep() -> RouterError:
    return RouterError(400, "bad_request", "the body is nested too deeply")


def _header(names: list[str]) -> dict[str, str]:
    """The header with at most 20 names of 100 characters."""
    if not names:
        return {}
    shown = [json.dumps(name)[1:-1][:_NAME_CHARS] for name in names[:_HEADER_NAMES]]
    more = [f"and {len(names) - len(shown)} more"] if len(names) > len(shown) else []
    return {IGNORED_HEADER: ", ".join([*shown, *more])}
