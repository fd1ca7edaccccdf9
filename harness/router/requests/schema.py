"""Checks the JSON schemas of a request, and removes what crashes llama.cpp's converter.

Checked against ``common/json-schema-to-grammar.cpp`` of 6751 and of 11549, and ``common/json-schema.cpp``
of 11549. They follow ``allOf`` into references without an end, match names with a regular expression that
recurses per character, and take cubic time over the optional properties of an object.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from harness.router.requests.bounds import BoundError, Conditional
from harness.router.requests.kinds import is_whole
from harness.router.requests.pattern import InvalidPatternError, UnsupportedPatternError, rewrite

DEEPEST_SCHEMA = 32
"""Schemas in schemas."""
MOST_SCHEMAS = 2000
"""All schemas of one request together."""
MOST_PROPERTIES = 200
"""Of one object."""
MOST_ALTERNATIVES = 50
"""Of one ``anyOf``, ``oneOf`` or ``allOf``."""
MOST_VALUES = 1000
"""Of all ``enum`` together; OpenAI's limit."""
LONGEST_NAME = 256
"""Bytes of a property's name."""
LONGEST_PATH = 2048
"""Bytes of the names from the root to a property together."""
MOST_TEXT = 512 * 1024
"""Characters of all names and texts."""
HIGHEST_COUNTS = {"minItems": 500, "maxItems": 500, "minLength": 2000, "maxLength": 2000}
"""Since 10566, llama.cpp repeats at most 2,000 rules: an item is up to four of them, a character one."""
ALL_PATTERNS = 20_000
"""Characters of all patterns of one request together."""
ALL_COUNTS = 20_000
"""All counts of one request together: each is that many rules."""
INT64_BUILD = 6792
"""The first build whose converter takes the bounds of an integer as 64 bits."""

_DATA = frozenset({"const", "enum", "default", "examples", "example", "required"})
"""Keywords whose value is data, not schemas."""
_MAPS = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})
_ALTERNATIVES = ("anyOf", "oneOf", "allOf")
_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
_INT32 = (1 << 31) - 1
_INT64 = (1 << 63) - 1


@dataclass
class SchemaCheck:
    """Checks the schemas of one request against bounds that they share; leaves out what cannot be."""

    left_out: list[str]
    """Gets the paths of the constraints that are left out."""
    conditional: list[Conditional]
    """Gets the constraints that only later builds can take."""
    changed: bool = False
    _schemas: int = 0
    _values: int = 0
    _text: int = 0
    _counts: int = 0
    _patterns: int = 0

    def check(self, schema: Any, path: str) -> None:
        """Check one schema and all that is in it.

        Args:
            path: its place in the request, for messages.

        Raises:
            BoundError: it is beyond a bound, or refers to itself without an end.
        """
        self._visit(schema, path, 0, 0)
        if isinstance(schema, dict):
            _check_references(schema, path)

    def _visit(self, schema: Any, path: str, depth: int, name_bytes: int) -> None:
        if not isinstance(schema, dict):
            if isinstance(schema, bool):
                return
            raise BoundError(path, "a JSON schema, which is an object, is expected")
        self._schemas += 1
        if self._schemas > MOST_SCHEMAS:
            raise BoundError(path, f"at most {MOST_SCHEMAS} schemas in one request are allowed")
        if depth > DEEPEST_SCHEMA:
            raise BoundError(path, f"at most {DEEPEST_SCHEMA} schemas in schemas are allowed")
        self._unwrap(schema)
        self._keywords(schema, path)
        for key, value in schema.items():
            self._count_text(key, path)
            if key in _DATA or not isinstance(value, dict | list):
                self._data(key, value, path)
            elif key in _MAPS and isinstance(value, dict):
                self._map(value, f"{path}.{key}", depth, name_bytes)
            else:
                if key in _ALTERNATIVES and len(value) > MOST_ALTERNATIVES:
                    raise BoundError(f"{path}.{key}", f"at most {MOST_ALTERNATIVES} alternatives are allowed")
                self._below(value, f"{path}.{key}", depth + 1, name_bytes)

    def _below(self, value: Any, path: str, depth: int, name_bytes: int) -> None:
        """A schema, or a list of some: whatever a reference can lead to."""
        if isinstance(value, dict):
            self._visit(value, path, depth, name_bytes)
        elif isinstance(value, list):
            if depth > DEEPEST_SCHEMA:
                raise BoundError(path, f"at most {DEEPEST_SCHEMA} schemas in schemas are allowed")
            for number, item in enumerate(value):
                self._below(item, f"{path}[{number}]", depth + 1, name_bytes)
        elif isinstance(value, str):
            self._count_text(value, path)

    def _map(self, value: dict[str, Any], path: str, depth: int, name_bytes: int) -> None:
        if len(value) > MOST_PROPERTIES and path.endswith("roperties"):
            raise BoundError(path, f"at most {MOST_PROPERTIES} properties of one object are allowed")
        for name, item in value.items():
            size = len(name.encode("utf-8", "replace"))
            if size > LONGEST_NAME or name_bytes + size > LONGEST_PATH:
                limits = f"at most {LONGEST_NAME} bytes, {LONGEST_PATH} with the names above it"
                raise BoundError(path, f"the name {name[:40]!a}... is too long: {limits}")
            self._count_text(name, path)
            self._visit(item, f"{path}.{name}", depth + 1, name_bytes + size)

    def _unwrap(self, schema: dict[str, Any]) -> None:
        """``allOf`` with one reference, as pydantic writes it, is that reference: there it may recurse."""
        match schema.get("allOf"):
            case [{"$ref": str() as reference}] if "$ref" not in schema:
                del schema["allOf"]
                schema["$ref"] = reference
                self.changed = True

    def _keywords(self, schema: dict[str, Any], path: str) -> None:
        if (pattern := schema.get("pattern")) is not None and not isinstance(pattern, dict):
            self._pattern(schema, pattern, path)
        for keyword in HIGHEST_COUNTS:
            if keyword in schema:
                self._count(schema, keyword, path)
        for keyword in _BOUNDS:
            if keyword in schema:
                self._bound(schema, keyword, path)
        kinds = schema.get("type")
        if isinstance(kinds, list) and len(kinds) > 7:
            raise BoundError(f"{path}.type", "at most 7 types are allowed")

    def _pattern(self, schema: dict[str, Any], pattern: Any, path: str) -> None:
        if not isinstance(pattern, str):
            raise BoundError(f"{path}.pattern", "a text is expected")
        self._patterns += len(pattern)
        if self._patterns > ALL_PATTERNS:
            raise BoundError(
                f"{path}.pattern", f"at most {ALL_PATTERNS} characters in all patterns are allowed"
            )
        try:
            rewritten = rewrite(pattern)
        except UnsupportedPatternError:
            del schema["pattern"]
            self._leave_out(f"{path}.pattern")
        except InvalidPatternError as error:
            raise BoundError(f"{path}.pattern", f"not a pattern that can be used: {error}") from None
        else:
            schema["pattern"] = rewritten.text
            self.changed = True
            if not rewritten.exact:
                self._leave_out(f"{path}.pattern")

    def _count(self, schema: dict[str, Any], keyword: str, path: str) -> None:
        value = schema[keyword]
        if not is_whole(value) or value < 0:
            raise BoundError(f"{path}.{keyword}", "a whole number, zero or more, is expected")
        schema[keyword] = value = int(value)
        if value <= HIGHEST_COUNTS[keyword] and self._counts + value <= ALL_COUNTS:
            self._counts += value
        elif keyword.startswith("max"):
            del schema[keyword]
            self._leave_out(f"{path}.{keyword}")
        else:
            limits = f"at most {HIGHEST_COUNTS[keyword]}, and {ALL_COUNTS} over all counts, are allowed"
            raise BoundError(f"{path}.{keyword}", limits)

    def _bound(self, schema: dict[str, Any], keyword: str, path: str) -> None:
        value = schema[keyword]
        if isinstance(value, bool):  # draft 4's exclusiveMinimum: llama.cpp knows the later form alone
            del schema[keyword]
            self._leave_out(f"{path}.{keyword}")
        elif not isinstance(value, int | float):
            raise BoundError(f"{path}.{keyword}", "a number is expected")
        elif not -_INT64 < value < _INT64:
            del schema[keyword]
            self._leave_out(f"{path}.{keyword}")
        elif not -_INT32 < value < _INT32:
            self.conditional.append(Conditional(schema, keyword, f"{path}.{keyword}", INT64_BUILD))

    def _data(self, key: str, value: Any, path: str) -> None:
        if key == "enum" and isinstance(value, list):
            self._values += len(value)
            if self._values > MOST_VALUES:
                raise BoundError(f"{path}.enum", f"at most {MOST_VALUES} values over all enums are allowed")
        for text in _texts(value):
            self._count_text(text, path)

    def _count_text(self, text: str, path: str) -> None:
        self._text += len(text)
        if self._text > MOST_TEXT:
            raise BoundError(
                path, f"at most {MOST_TEXT} characters in the schemas of one request are allowed"
            )

    def _leave_out(self, path: str) -> None:
        self.changed = True
        self.left_out.append(path)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, item in value.items():
            yield name
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)


def _check_references(root: dict[str, Any], path: str) -> None:
    """Refuse references that lead outside, and those that llama.cpp would follow without an end."""
    references = [reference for node in _nodes(root) if (reference := node.get("$ref")) is not None]
    if len(references) > MOST_SCHEMAS // 4:
        raise BoundError(path, f"at most {MOST_SCHEMAS // 4} references in one schema are allowed")
    for reference in references:
        _target(root, reference, path)
    if any("allOf" in node for node in _nodes(root)):
        _Expansion(root, path).visit(root)


def _nodes(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
        for key, item in value.items():
            if key not in _DATA:
                yield from _nodes(item)
    elif isinstance(value, list):
        for item in value:
            yield from _nodes(item)


def _target(root: dict[str, Any], reference: Any, path: str) -> Any:
    """The schema that a reference leads to, over further references."""
    seen: set[str] = set()
    while True:
        if isinstance(reference, dict):
            return reference  # a property of this name
        if not isinstance(reference, str) or not reference.startswith("#/"):
            raise BoundError(f"{path}.$ref", "a reference into the same schema, '#/...', is expected")
        if reference in seen:
            raise BoundError(f"{path}.$ref", f"{reference[:80]} leads to itself")
        seen.add(reference)
        node: Any = root
        for name in reference.split("/")[1:]:
            if name in _DATA:
                raise BoundError(f"{path}.$ref", f"{reference[:80]} leads to a value, not to a schema")
            if isinstance(node, list) and name.isdecimal() and int(name) < len(node):
                node = node[int(name)]
            elif isinstance(node, dict) and name in node:
                node = node[name]
            else:
                raise BoundError(f"{path}.$ref", f"{reference[:80]} leads nowhere")
        if not isinstance(node, dict) or "$ref" not in node:
            return node
        reference = node["$ref"]


class _Expansion:
    """Visits what llama.cpp visits: a reference once, but what is behind an ``allOf`` each time."""

    def __init__(self, root: dict[str, Any], path: str) -> None:
        self._root = root
        self._path = path
        self._visits = 0
        self._open: set[int] = set()
        self._references: set[int] = set()

    def visit(self, node: Any) -> None:
        """Visit a schema and those below it.

        Raises:
            BoundError: an ``allOf`` leads to itself, or multiplies the schemas.
        """
        if not isinstance(node, dict):
            return
        self._visits += 1
        if id(node) in self._open or self._visits > 2 * MOST_SCHEMAS:
            raise BoundError(self._path, "allOf leads to itself, or to too many schemas")
        if "$ref" in node:
            target = _target(self._root, node["$ref"], self._path)
            if id(target) not in self._references:
                self._references.add(id(target))
                self.visit(target)
            return
        self._open.add(id(node))
        for schema in [*self._parts(node.get("allOf")), node]:
            self._visit_parts(schema)
        self._open.discard(id(node))

    def _parts(self, all_of: Any) -> Iterator[Any]:
        for part in all_of if isinstance(all_of, list) else ():
            alternatives = part.get("anyOf") if isinstance(part, dict) else None
            for one in alternatives if isinstance(alternatives, list) else [part]:
                if isinstance(one, dict):
                    yield _target(self._root, one["$ref"], self._path) if "$ref" in one else one

    def _visit_parts(self, schema: Any) -> None:
        if not isinstance(schema, dict):
            return
        properties = schema.get("properties")
        for item in properties.values() if isinstance(properties, dict) else ():
            self.visit(item)
        for key in ("items", "prefixItems", "additionalProperties", "anyOf", "oneOf"):
            below = schema.get(key)
            for item in below if isinstance(below, list) else [below]:
                self.visit(item)
