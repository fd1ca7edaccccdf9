"""Requests of one user that end, hang or slow down a llama-server; found on the builds that each names."""

import json
from dataclasses import dataclass
from typing import Any

CHAT, COMPLETION, INFILL, EMBEDDING = "/v1/chat/completions", "/v1/completions", "/infill", "/v1/embeddings"
OLLAMA = "/api/generate"


@dataclass(frozen=True)
class Hostile:
    """One request, and the builds that it ends where nothing is before them."""

    name: str
    path: str
    body: Any
    ends: frozenset[int] = frozenset()

    def __str__(self) -> str:
        return self.name


def completion(name: str, *ends: int, **fields: Any) -> Hostile:
    """A completion with these fields."""
    body = {"model": "tiny", "prompt": "hi", "max_tokens": 4} | fields
    return Hostile(name, COMPLETION, body, frozenset(ends))


def chat(name: str, *ends: int, **fields: Any) -> Hostile:
    """A chat with these fields."""
    body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4} | fields
    return Hostile(name, CHAT, body, frozenset(ends))


def schema(name: str, *ends: int, **fields: Any) -> Hostile:
    """A chat whose answer has this schema."""
    wrapped = {"type": "json_schema", "json_schema": {"name": "x", "schema": fields}}
    return chat(name, *ends, response_format=wrapped)


def of_pattern(pattern: str) -> dict[str, Any]:
    """The schema of an object with one text of this pattern."""
    texts = {"a": {"type": "string", "pattern": pattern}}
    return {"type": "object", "properties": texts, "required": ["a"]}


def raw(name: str, text: bytes) -> Hostile:
    """A completion with this text after its prompt."""
    return Hostile(name, COMPLETION, b'{"model":"tiny","prompt":"hi","max_tokens":4,' + text + b"}")


DEEP = "(" * 60_000 + '"a"' + ")" * 60_000
SELF = {"a": {"$ref": "#/$defs/a"}}
TREE = {"Node": {"properties": {"c": {"allOf": [{"$ref": "#/$defs/Node"}, {"properties": {"d": {}}}]}}}}

REFUSED = [
    completion("probabilities", 6751, n_probs=10**9),
    completion("logprobs", 6751, logprobs=10**9),
    chat("top_logprobs", 6751, logprobs=True, top_logprobs=10**9),
    completion("mirostat", 6751, mirostat=99),
    completion("empty prompts", 6751, prompt=["", ""]),
    completion("slot", id_slot=99),
    completion("adapter", lora=[{"id": 99, "scale": 1}]),
    completion("8 GiB of last tokens", repeat_last_n=2147483647, repeat_penalty=1.1),
    completion("sequence breakers", dry_sequence_breakers=["a"] * 3000, dry_multiplier=1),
    completion("trigger type", 11549, grammar='root ::= "a"', grammar_lazy=True,
               grammar_triggers=[{"type": 99, "value": "a"}]),
    completion("trigger pattern", 6751, 11549, grammar='root ::= "a"', grammar_lazy=True,
               grammar_triggers=[{"type": 2, "value": "(" * 100_000 + ")" * 100_000}]),
    completion("grammar that repeats nothing", 6751, grammar='root ::= ((("a")*)*)*'),
    completion("grammar of many groups", 6751, 11549, grammar="root ::= " + DEEP),
    completion("grammar of counts", grammar='root ::= (("a"{0,100}){0,100}){0,100}'),
    completion("grammar of counted rules", 6751,
               grammar='root ::= b{0,1000}\nb ::= a{0,1000}\na ::= "x"{0,1000}'),
    completion("grammar with a high count", grammar='root ::= "a"{1000000000}'),
    schema("pattern of many groups", 6751, **of_pattern("^" + "(" * 100_000 + "x" + ")" * 100_000 + "$")),
    schema("pattern that repeats nothing", 6751, **of_pattern("^+a$")),
    schema("reference to itself in allOf", 6751, 11549, allOf=[{"$ref": "#/$defs/a"}, {}], **{"$defs": SELF}),
    schema("recursion in allOf", 6751, 11549, **{"$ref": "#/$defs/Node", "$defs": TREE}),
    schema("long name", 6751, 11549, type="object", properties={"_" * 200_000: {"type": "string"}}),
    schema("many values", enum=[f"v{n}" for n in range(5000)]),
    schema("many items at least", type="array", items={"type": "string"}, minItems=10**8),
    chat("type of a format", response_format={"type": "x" * 1_000_000}),
    chat("tool that is none", tools=[1]),
    chat("tool without a name", tools=[{"type": "function", "function": {}}]),
    Hostile("half a pair in UTF-8", COMPLETION, b'{"model":"tiny","prompt":"\xed\xa0\x80"}'),
    Hostile("half a pair", COMPLETION, b'{"model":"tiny","prompt":"\\ud800"}'),
    raw("infinity", b'"temperature":1e999'),
    raw("4,000 digits", b'"seed":' + b"9" * 4000),
    Hostile("long model name", COMPLETION, {"model": "x" * (8 << 20), "prompt": "hi"}),
    Hostile("option of a sampler", OLLAMA, {"model": "tiny", "prompt": "hi", "options": {"mirostat": 99}}),
    Hostile("format of Ollama", OLLAMA, {"model": "tiny", "prompt": "hi", "format": of_pattern("^+a$")}),
    Hostile("embeddings of objects", EMBEDDING, {"model": "tiny", "input": [{"content": [{"type": "x"}]}]}),
]  # fmt: skip
"""All are a 400 of the router, which names the field."""

NOT_X = of_pattern("^(?!x)y$")
LOOK_AHEAD = [
    schema("look-ahead", 6751, **of_pattern("^(?=x)y$")),
    schema("group", 6751, **of_pattern("^(?:x)y$")),
    schema("look-behind", 6751, **of_pattern("^(?<=x)*$")),
    schema("named group", 6751, **of_pattern("^(?P<n>x)y$")),
    chat("pattern of a tool", 6751, tool_choice="required", tools=[
        {"type": "function", "function": {"name": "f", "description": "", "parameters": NOT_X}}
    ]),
]  # fmt: skip
"""All are answered: such patterns are what ordinary client libraries write."""

EMAIL = r"^(?!\.)(?!.*\.\.)([A-Za-z0-9_'+\-\.]*)[A-Za-z0-9_+-]@([A-Za-z0-9][A-Za-z0-9\-]*\.)+[A-Za-z]{2,}$"
DATETIME = (
    r"^(?:(?:\d\d[2468][048]|\d\d[13579][26]|\d\d0[48]|[02468][048]00|[13579][26]00)-02-29|"
    r"\d{4}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\d|3[01])|(?:0[469]|11)-(?:0[1-9]|[12]\d|30)|"
    r"(?:02)-(?:0[1-9]|1\d|2[0-8])))T(?:(?:[01]\d|2[0-3]):[0-5]\d(?::[0-5]\d(?:\.\d+)?)?(?:Z))$"
)
"""As zod 4 writes ``z.email()`` and ``z.iso.datetime()``."""


def encoded(body: Any) -> bytes:
    """The body as it is sent."""
    return body if isinstance(body, bytes) else json.dumps(body).encode()
