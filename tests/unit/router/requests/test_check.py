"""The table of fields: passed within bounds, without effect, refused by name."""

import json
from typing import Any

import pytest
from harness.router.errors import RouterError
from harness.router.requests.check import IGNORED_HEADER, check_request
from harness.router.requests.fields import PASSED, REFUSED, Api
from hypothesis import given
from hypothesis import strategies as st

Json = dict[str, Any]
MESSAGES = [{"role": "user", "content": "hi"}]
PROMPT: dict[Api, Json] = {
    Api.CHAT: {"model": "m", "messages": MESSAGES},
    Api.COMPLETION: {"model": "m", "prompt": "hi"},
    Api.EMBEDDING: {"model": "m", "input": "hi"},
    Api.INFILL: {"model": "m", "input_prefix": "a", "input_suffix": "b"},
}
NEWEST = 11549


def sent(api: Api, more: Json, build: int | None = NEWEST) -> tuple[Json, str]:
    """What a llama-server gets of a request, and the header."""
    fields = PROMPT[api] | more
    body, headers = check_request(api, fields).for_llama_server(build, as_it_came=True)
    return (fields if body is None else json.loads(body)), headers.get(IGNORED_HEADER, "")


def refusal(api: Api, more: Json) -> str:
    with pytest.raises(RouterError) as refused:
        check_request(api, PROMPT[api] | more)
    assert (refused.value.status, refused.value.error_class) == (400, "bad_request")
    return refused.value.message


def test_plain_request_is_passed_on_as_the_clients_own_bytes() -> None:
    fields = PROMPT[Api.CHAT] | {"temperature": 0.7, "stream": True, "max_tokens": 5.0, "stop": "x"}
    assert check_request(Api.CHAT, fields).for_llama_server(6751, as_it_came=True) == (None, {})


def test_field_without_effect_is_named_and_not_passed_on() -> None:
    passed, header = sent(Api.CHAT, {"user": "me", "metadata": {"a": 1}, "whatever": [1], "top_k": 3})
    assert passed == PROMPT[Api.CHAT] | {"top_k": 3}
    assert header == "user, metadata, whatever"


def test_header_is_bounded_and_has_no_control_characters() -> None:
    _, header = sent(Api.CHAT, {f"{n}\r\n\u2028": 1 for n in range(50)} | {"x" * 10_000: 1})
    assert header.endswith("and 31 more")
    assert header.isascii()
    assert header.isprintable()
    assert len(header) < 3000


def test_many_unknown_fields_cost_no_more_than_to_read_them() -> None:
    fields = PROMPT[Api.CHAT] | {f"x{n}": 1 for n in range(200_000)}
    body, headers = check_request(Api.CHAT, fields).for_llama_server(NEWEST, as_it_came=True)
    assert json.loads(body or b"") == PROMPT[Api.CHAT]
    assert headers[IGNORED_HEADER].endswith("and 199980 more")


def test_null_is_as_without_the_field() -> None:
    nothing = dict.fromkeys(["temperature", "suffix", "best_of", "user", "lora", "grammar", "stop"])
    assert sent(Api.COMPLETION, nothing) == (PROMPT[Api.COMPLETION], "")


def test_value_of_a_refused_field_that_asks_for_nothing_is_left_out() -> None:
    assert sent(Api.COMPLETION, {"best_of": 1, "suffix": ""}) == (PROMPT[Api.COMPLETION], "")


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_refused_field_is_named_with_a_way_out(name: str) -> None:
    api = Api.EMBEDDING if name == "content" else Api.COMPLETION
    assert refusal(api, {name: 99}) == f"{name}: not possible here: {REFUSED[name]}"


def test_field_that_only_later_builds_know_depends_on_the_server() -> None:
    more = {"max_completion_tokens": 5}
    assert sent(Api.CHAT, more, 6751) == (PROMPT[Api.CHAT], "max_completion_tokens")
    assert sent(Api.CHAT, more, NEWEST) == (PROMPT[Api.CHAT] | more, "")
    assert sent(Api.CHAT, more, None) == (PROMPT[Api.CHAT] | more, "")


def test_bound_of_64_bits_depends_on_the_server() -> None:
    def asked() -> Json:
        return {"json_schema": {"type": "integer", "maximum": (1 << 53) - 1}}

    for build in (6751, None):
        assert sent(Api.COMPLETION, asked(), build)[1] == "json_schema.maximum"
    assert sent(Api.COMPLETION, asked(), NEWEST)[0]["json_schema"] == asked()["json_schema"]


@pytest.mark.parametrize(
    ("api", "more"),
    [
        (Api.COMPLETION, {"n_probs": 10**9}),
        (Api.COMPLETION, {"n_probs": -5}),
        (Api.COMPLETION, {"logprobs": 10**9}),
        (Api.CHAT, {"logprobs": True, "top_logprobs": 10**9}),
        (Api.COMPLETION, {"repeat_last_n": 2147483647}),
        (Api.COMPLETION, {"dry_penalty_last_n": 2147483647}),
        (Api.COMPLETION, {"dry_sequence_breakers": ["a"] * 3000}),
        (Api.COMPLETION, {"dry_allowed_length": -1}),
        (Api.COMPLETION, {"mirostat": 99}),
        (Api.COMPLETION, {"mirostat": True}),
        (Api.COMPLETION, {"prompt": ["", ""]}),
        (Api.COMPLETION, {"prompt": []}),
        (Api.COMPLETION, {"prompt": [1, "x"]}),
        (Api.COMPLETION, {"prompt": {"prompt_string": "x"}}),
        (Api.COMPLETION, {"prompt": [-5]}),
        (Api.COMPLETION, {"max_tokens": 10**12}),
        (Api.COMPLETION, {"samplers": ["top_k"] * 1000}),
        (Api.COMPLETION, {"stop": ["x" * 1000] * 100}),
        (Api.COMPLETION, {"logit_bias": {str(n): 1 for n in range(2000)}}),
        (Api.COMPLETION, {"logit_bias": {"1": 1e30}}),
        (Api.COMPLETION, {"echo": True}),
        (Api.COMPLETION, {"temperature": "0.7"}),
        (Api.COMPLETION, {"n": 0}),
        (Api.COMPLETION, {"grammar": 'root ::= ((("a")*)*)*'}),
        (Api.COMPLETION, {"json_schema": {"pattern": "^+a$"}}),
        (Api.CHAT, {"messages": "hi"}),
        (Api.CHAT, {"messages": ["hi"]}),
        (Api.CHAT, {"tools": [1]}),
        (Api.CHAT, {"tools": [{"type": "function"}]}),
        (Api.CHAT, {"tools": [{"function": {"name": "a", "parameters": {"pattern": "^+a$"}}}]}),
        (Api.CHAT, {"tools": [{"function": {"name": "a" * 300}}]}),
        (Api.CHAT, {"tools": [{"function": {"name": 'x" ((("a")*)*)* "'}}]}),
        (Api.CHAT, {"tools": [{"function": {"name": "x\\"}}]}),
        (Api.CHAT, {"tools": [{"function": {"name": "x\nrecv failed ("}}]}),
        (
            Api.CHAT,
            {"tools": [{"function": {"name": "a", "parameters": {"properties": {'x" ("a"*)* "': {}}}}}]},
        ),
        (Api.CHAT, {"tool_choice": "x" * 100_000}),
        (Api.CHAT, {"response_format": {"type": "x" * 100_000}}),
        (Api.CHAT, {"response_format": "json"}),
        (Api.CHAT, {"response_format": {"type": "json_schema", "json_schema": 7}}),
        (Api.CHAT, {"response_format": {"type": ["json_object"]}}),
        (Api.EMBEDDING, {"input": [["a"]]}),
        (Api.EMBEDDING, {"input": [""] * 3000}),
        (Api.EMBEDDING, {"encoding_format": "x"}),
    ],
    ids=str,
)
def test_value_beyond_its_bounds_is_refused_by_name(api: Api, more: Json) -> None:
    name = list(more)[-1]
    message = refusal(api, more)
    assert message.startswith(name)
    assert message.endswith(("expected", "allowed")) or "not a pattern" in message or name == "grammar"
    assert len(message) < 500, "one line that does not repeat the request"


def test_media_by_address_is_refused() -> None:
    for address in ("http://127.0.0.1:28083/private", "file:///etc/passwd", "https://example.org/a.png"):
        content = [{"type": "image_url", "image_url": {"url": address}}]
        assert "data:" in refusal(Api.CHAT, {"messages": [{"role": "user", "content": content}]})
    content = [{"type": "input_audio", "input_audio": {"data": "http://10.0.0.1/", "format": "wav"}}]
    assert "data:" in refusal(Api.CHAT, {"messages": [{"role": "user", "content": content}]})
    content = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}]
    check_request(Api.CHAT, {"model": "m", "messages": [{"role": "user", "content": content}]})


@pytest.mark.parametrize("path", ["response_format", "default", "tools", "chat_template_kwargs"])
def test_any_depth_that_can_be_parsed_is_passed_on_or_refused(path: str) -> None:
    for levels in (100, 900, 980, 990):
        nested: Any = json.loads("[" * levels + "]" * levels) if levels < 900 else _list(levels)
        schema = {"properties": {"a": {"default": nested, "x-more": nested}}}
        more = {
            "response_format": {"response_format": {"type": "json_object", "schema": schema}},
            "default": {"response_format": {"type": "json_object", "schema": {"default": nested}}},
            "tools": {"tools": [{"function": {"name": "a", "parameters": schema}}], "user": "me"},
            "chat_template_kwargs": {"chat_template_kwargs": {"a": nested}, "user": "me"},
        }[path]
        try:
            check_request(Api.CHAT, PROMPT[Api.CHAT] | more).for_llama_server(None, as_it_came=False)
        except RouterError as error:
            assert error.status == 400  # noqa: PT017 - either way is fine


def _list(levels: int) -> Any:
    nested: Any = []
    for _ in range(levels):
        nested = [nested]
    return nested


def test_pattern_behind_a_list_of_lists_is_rewritten() -> None:
    schema: Json = {"$ref": "#/x/0/0", "x": [[{"type": "string", "pattern": "^(?=x)y$"}]]}
    passed, header = sent(Api.COMPLETION, {"json_schema": schema})
    assert passed["json_schema"]["x"] == [[{"type": "string", "pattern": "^([y])$"}]]
    assert header == "json_schema.x[0][0].pattern"


def test_schema_of_every_place_is_made_safe() -> None:
    def schema() -> Json:
        return {"properties": {"a": {"type": "string", "pattern": "^(?=x)y$"}}}

    more = {
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": schema()}},
        "tools": [{"type": "function", "function": {"name": "f", "parameters": schema()}}],
    }
    passed, header = sent(Api.CHAT, more)
    assert "?=" not in json.dumps(passed)
    assert header == (
        "response_format.json_schema.schema.properties.a.pattern, "
        "tools[0].function.parameters.properties.a.pattern"
    )


def test_ollama_gets_its_own_fields_and_safe_schemas() -> None:
    given_fields = {
        "model": "m",
        "format": {"pattern": "^(?=x)y$"},
        "options": {"num_ctx": 7},
        "keep_alive": 3,
    }
    converted = {
        "model": "m",
        "messages": MESSAGES,
        "response_format": {"type": "json_schema", "json_schema": {"schema": given_fields["format"]}},
    }
    body, headers = check_request(Api.CHAT, converted, given=given_fields).for_others()
    assert json.loads(body or b"") == given_fields | {"format": {"pattern": "^([y])$"}}
    assert headers == {IGNORED_HEADER: "response_format.json_schema.schema.pattern"}
    assert check_request(Api.CHAT, {"messages": MESSAGES}).for_others() == (None, {})


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
names = (
    st.sampled_from(sorted({name for table in PASSED.values() for name in table} | set(REFUSED))) | st.text()
)


@given(st.sampled_from(Api), st.dictionaries(names, values, max_size=6))
def test_any_request_is_passed_within_bounds_or_refused(api: Api, fields: Json) -> None:
    try:
        body, _ = check_request(api, fields).for_llama_server(None, as_it_came=False)
    except RouterError:
        return
    passed = json.loads(body or b"")
    assert set(passed) <= set(PASSED[api])
    assert all(PASSED[api][name].kind.accepts(value) for name, value in passed.items())
