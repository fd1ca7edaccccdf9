"""JSON schemas of requests: what llama.cpp's converter dies of is changed, left out or refused."""

from typing import Any

import pytest
from harness.router.requests import schema as limits
from harness.router.requests.bounds import BoundError, Conditional
from harness.router.requests.schema import SchemaCheck

Json = dict[str, Any]


def checked(schema: Any) -> SchemaCheck:
    check = SchemaCheck([], [])
    check.check(schema, "s")
    return check


def nested(levels: int) -> Json:
    schema: Json = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


def test_ordinary_schema_is_not_touched() -> None:
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "minLength": 1, "maxLength": 80},
            "age": {"type": "integer", "minimum": 0},
            "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 5},
            "pattern": {"type": "string"},
        },
        "required": ["name"],
        "additionalProperties": False,
    }
    before = repr(schema)
    check = checked(schema)
    assert (check.changed, check.left_out, check.conditional, repr(schema)) == (False, [], [], before)


def test_pattern_is_rewritten_wherever_it_stands_and_what_is_lost_is_named() -> None:
    schema: Json = {
        "anyOf": [{"type": "string", "pattern": "^(?:x)y$"}],
        "$defs": {"d": {"items": {"pattern": "^(?=x)y$"}, "not": {"pattern": r"(a)\1"}}},
        "default": {"pattern": "^(?=x)y$"},
    }
    check = checked(schema)
    assert schema["anyOf"][0]["pattern"] == "^([x][y])$"
    assert schema["$defs"]["d"]["items"]["pattern"] == "^([y])$"
    assert "pattern" not in schema["$defs"]["d"]["not"]
    assert schema["default"] == {"pattern": "^(?=x)y$"}, "data, not a schema"
    assert check.changed
    assert check.left_out == ["s.$defs.d.items.pattern", "s.$defs.d.not.pattern"]


def test_high_maximum_is_left_out_and_high_minimum_refused() -> None:
    schema: Json = {"items": {"type": "string", "maxLength": 100_000}, "maxItems": 10**9}
    assert checked(schema).left_out == ["s.maxItems", "s.items.maxLength"]
    assert schema == {"items": {"type": "string"}}
    with pytest.raises(BoundError, match=r"s\.minItems"):
        checked({"items": {}, "minItems": 10**8})


def test_all_counts_together_are_bounded() -> None:
    properties = {f"p{n}": {"type": "string", "maxLength": 2000} for n in range(11)}
    assert checked({"properties": properties}).left_out == ["s.properties.p10.maxLength"]


def test_bound_of_more_than_32_bits_waits_for_the_build() -> None:
    safe = (1 << 53) - 1
    schema: Json = {"type": "integer", "minimum": -safe, "maximum": 10}
    check = checked(schema)
    assert check.conditional == [Conditional(schema, "minimum", "s.minimum", limits.INT64_BUILD)]
    assert checked({"type": "integer", "maximum": 1e300}).left_out == ["s.maximum"]


def test_pydantics_reference_in_all_of_is_the_reference() -> None:
    schema: Json = {
        "$ref": "#/$defs/Node",
        "$defs": {"Node": {"properties": {"child": {"allOf": [{"$ref": "#/$defs/Node"}], "title": "C"}}}},
    }
    assert checked(schema).changed
    assert schema["$defs"]["Node"]["properties"]["child"] == {"title": "C", "$ref": "#/$defs/Node"}


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}},
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
        {"allOf": [{"$ref": "#/$defs/a"}, {}], "$defs": {"a": {"$ref": "#/$defs/a"}}},
        {
            "$ref": "#/$defs/a",
            "$defs": {"a": {"properties": {"x": {"allOf": [{"$ref": "#/$defs/a"}, {"title": "t"}]}}}},
        },
        {"allOf": [{"anyOf": [{"$ref": "#"}]}]},
        {"$ref": "https://example.org/schema"},
        {"$ref": "#/$defs/missing"},
        {"$ref": 7},
        {"$ref": "#/default/x", "default": {"x": {"pattern": "^(?=x)$"}}},
    ],
    ids=range(9),
)  # fmt: skip
def test_reference_without_an_end_or_a_target_is_refused(schema: Json) -> None:
    with pytest.raises(BoundError):
        checked(schema)


def test_all_of_that_doubles_at_each_level_is_refused() -> None:
    defs: Json = {
        f"d{n}": {"properties": {name: {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}, {}]} for name in "pq"}}
        for n in range(20)
    }
    with pytest.raises(BoundError, match="allOf"):
        checked({"$ref": "#/$defs/d0", "$defs": defs | {"d20": {"properties": {"x": {}}}}})


def test_all_of_that_many_properties_use_passes() -> None:
    target = {"properties": {f"t{n}": {"type": "string"} for n in range(20)}}
    one = {"allOf": [{"$ref": "#/$defs/t"}, {"properties": {"more": {"$ref": "#/$defs/t"}}}]}
    checked({"properties": {f"p{n}": one for n in range(50)}, "$defs": {"t": target}})


@pytest.mark.parametrize(
    "schema",
    [
        nested(limits.DEEPEST_SCHEMA + 1),
        {"properties": {f"p{n}": {} for n in range(limits.MOST_PROPERTIES + 1)}},
        {"properties": {"_" * 257: {}}},
        {"anyOf": [{}] * (limits.MOST_ALTERNATIVES + 1)},
        {"enum": list(range(limits.MOST_VALUES + 1))},
        {"type": ["string"] * 8},
        {"description": "x" * (limits.MOST_TEXT + 1)},
        {"properties": {"a": {"items": [{"anyOf": [{}] * 49}] * 49}}},
        {"pattern": "^+a$"},
        {"pattern": 7},
        {"properties": {f"p{n}": {"pattern": "x" * 1900} for n in range(11)}},
        {"maxLength": "7"},
        {"minItems": -1},
        {"minimum": "0"},
        [],
        "text",
    ],
    ids=range(16),
)
def test_schema_beyond_a_bound_is_refused(schema: Any) -> None:
    with pytest.raises(BoundError):
        checked(schema)


def test_names_add_up_along_the_path() -> None:
    schema: Json = {}
    for _ in range(10):
        schema = {"properties": {"n" * 250: schema}}
    with pytest.raises(BoundError, match="too long"):
        checked(schema)
