"""The fields of a request: passed within bounds, without effect here, or refused by name.

Read in llama-server's own parser: ``tools/server/server.cpp`` and ``utils.hpp`` of 6666 to 6792,
``server-schema.cpp``, ``server-common.cpp`` and ``server-context.cpp`` of 10566 to 11549; OpenAI's limits
are those of its API reference. A field that is in no column is without effect here.
``docs/request-fields.md`` is made from this table.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from harness.router.requests.kinds import (
    TOKEN_MOST,
    Anything,
    Boolean,
    Integer,
    Kind,
    ListOf,
    MapOf,
    Number,
    Object,
    Pair,
    Text,
    either,
    one_of,
)

REWRITTEN_BUILD = 10566
"""The first build of the catalogue with the parser of fields that llama.cpp has had since 2026."""
HIGHEST_COUNT_OF_TOKENS = 1_000_000
"""For windows of tokens: llama-server allocates them."""


class Api(Enum):
    """What a request asks a llama-server for; the value is the path."""

    CHAT = "/v1/chat/completions"
    COMPLETION = "/v1/completions"
    INFILL = "/infill"
    EMBEDDING = "/v1/embeddings"


@dataclass(frozen=True)
class Field:
    """A field that is passed on."""

    kind: Kind
    since: int = 0
    """The first build that knows it."""


_BOOLEAN = Boolean()
_TOKEN = Integer(0, TOKEN_MOST)
_TEXT = Text()
_WINDOW = Integer(-1, HIGHEST_COUNT_OF_TOKENS)
_SMALL = Number(-100, 100)
_PROBABILITY = Number(0, 1)
_TOKENS = ListOf(_TOKEN, 1_000_000, least=1)
_STOP = Text(1000)
_BIAS = either(_SMALL, one_of([False]))

_COMMON: Mapping[str, Field] = {"model": Field(Text(256))}

SAMPLING: Mapping[str, Field] = {
    "max_tokens": Field(Integer(-1, TOKEN_MOST)),
    "n_predict": Field(Integer(-2, TOKEN_MOST)),
    "max_completion_tokens": Field(Integer(-1, TOKEN_MOST), REWRITTEN_BUILD),
    "temperature": Field(_SMALL),
    "top_k": Field(Integer(-1, TOKEN_MOST)),
    "top_p": Field(_PROBABILITY),
    "min_p": Field(_PROBABILITY),
    "typical_p": Field(_PROBABILITY),
    "top_n_sigma": Field(_SMALL),
    "min_keep": Field(Integer(0, TOKEN_MOST)),
    "xtc_probability": Field(_PROBABILITY),
    "xtc_threshold": Field(_PROBABILITY),
    "dynatemp_range": Field(Number(0, 100)),
    "dynatemp_exponent": Field(Number(0, 100)),
    "adaptive_target": Field(Number(-1, 1), REWRITTEN_BUILD),
    "adaptive_decay": Field(Number(0, 0.99), REWRITTEN_BUILD),
    "repeat_last_n": Field(_WINDOW),
    "repeat_penalty": Field(Number(0, 100)),
    "frequency_penalty": Field(_SMALL),
    "presence_penalty": Field(_SMALL),
    "dry_multiplier": Field(_SMALL),
    "dry_base": Field(Number(0, 100)),
    "dry_allowed_length": Field(Integer(0, HIGHEST_COUNT_OF_TOKENS)),
    "dry_penalty_last_n": Field(_WINDOW),
    "dry_sequence_breakers": Field(ListOf(Text(40), 16, least=1)),
    "mirostat": Field(one_of([0, 1, 2])),
    "mirostat_tau": Field(Number(0, 100)),
    "mirostat_eta": Field(_PROBABILITY),
    "samplers": Field(either(Text(32), ListOf(Text(32), 32))),
    "logit_bias": Field(
        either(MapOf(_BIAS, 1000), ListOf(Pair(either(_TOKEN, Text(256)), _BIAS), 1000)),
    ),
    "seed": Field(Integer(-(1 << 31), (1 << 32) - 1)),
    "stop": Field(either(_STOP, ListOf(_STOP, 64))),
    "ignore_eos": Field(_BOOLEAN),
    "n_keep": Field(Integer(-1, TOKEN_MOST)),
    "n_indent": Field(Integer(0, 1000)),
    "t_max_predict_ms": Field(Integer(-1, 1 << 53)),
    "n_probs": Field(Integer(0, 100)),
    "post_sampling_probs": Field(_BOOLEAN),
}
"""How tokens are chosen, and when it ends: also as ``options`` of Ollama's API."""

_GENERATION: Mapping[str, Field] = {
    **_COMMON,
    **SAMPLING,
    "stream": Field(_BOOLEAN),
    "stream_options": Field(MapOf(_BOOLEAN, 8)),
    "n": Field(Integer(1, 128)),
    "cache_prompt": Field(_BOOLEAN),
    "return_tokens": Field(_BOOLEAN),
    "return_progress": Field(_BOOLEAN),
    "timings_per_token": Field(_BOOLEAN),
    "json_schema": Field(Anything("a JSON schema")),
    "grammar": Field(Anything("a grammar")),
}
_PROMPT = either(_TEXT, _TOKENS, ListOf(Text(least=1), 128, least=1), ListOf(_TOKENS, 128, least=1))

PASSED: Mapping[Api, Mapping[str, Field]] = {
    Api.CHAT: {
        **_GENERATION,
        "messages": Field(ListOf(Object(), 100_000)),
        "tools": Field(ListOf(Object(), 128)),
        "tool_choice": Field(either(one_of(["none", "auto", "required"]), Object())),
        "parallel_tool_calls": Field(_BOOLEAN),
        "response_format": Field(Object()),
        "logprobs": Field(_BOOLEAN),
        "top_logprobs": Field(Integer(0, 20)),
        "chat_template_kwargs": Field(Object()),
        "reasoning_effort": Field(Text(32), REWRITTEN_BUILD),
        "reasoning_format": Field(Text(32)),
        "reasoning_budget_tokens": Field(Integer(-1, TOKEN_MOST), REWRITTEN_BUILD),
        "thinking_budget_tokens": Field(Integer(-1, TOKEN_MOST), REWRITTEN_BUILD),
        "reasoning_budget_message": Field(Text(1000), REWRITTEN_BUILD),
        "add_generation_prompt": Field(_BOOLEAN),
        "continue_final_message": Field(
            either(_BOOLEAN, one_of(["content", "reasoning_content"])), REWRITTEN_BUILD
        ),
        "echo": Field(_BOOLEAN, REWRITTEN_BUILD),
    },
    Api.COMPLETION: {
        **_GENERATION,
        "prompt": Field(_PROMPT),
        "logprobs": Field(either(Integer(0, 20), one_of([False]))),
        "echo": Field(one_of([False])),
    },
    Api.INFILL: {
        **_GENERATION,
        "prompt": Field(_TEXT),
        "input_prefix": Field(_TEXT),
        "input_suffix": Field(_TEXT),
    },
    Api.EMBEDDING: {
        **_COMMON,
        "input": Field(either(_TEXT, _TOKENS, ListOf(_TEXT, 2048, least=1), ListOf(_TOKENS, 2048, least=1))),
        "encoding_format": Field(one_of(["float", "base64"])),
        "embd_normalize": Field(Integer(-1, 16)),
    },
}
"""First column: passed on, within these bounds."""

WITHOUT_EFFECT: Mapping[str, str] = {
    "user, metadata, store, safety_identifier, prompt_cache_key, service_tier": "for OpenAI's own service",
    "modalities, audio, prediction, verbosity, web_search_options, functions, function_call": (
        "llama-server has nothing of the kind"
    ),
    "dimensions": "llama-server gives all numbers of a vector; `/api/embed` truncates them",
    "n_discard, n_cache_reuse, speculative.*, backend_sampling": "the servers are not started for it",
    "response_fields, verbose, sse_ping_interval, t_max_prompt_ms": "of no use through the router",
    "template, context, truncate, num_ctx": (
        "the plan decides them, and Ollama's other options of a load; llama-server caches prompts itself"
    ),
}
"""Second column, for people: not passed on but named in a header. All other names are here too."""

REFUSED: Mapping[str, str] = {
    "id_slot": "the server chooses the slot: leave it out",
    "lora": "adapters are loaded by the operator: leave it out",
    "grammar_lazy": "use tools or response_format",
    "grammar_triggers": "use tools or response_format",
    "grammar_type": "use tools or response_format",
    "preserved_tokens": "use tools or response_format",
    "chat_format": "it is llama-server's own",
    "chat_parser": "it is llama-server's own",
    "generation_prompt": "it is llama-server's own",
    "thinking_forced_open": "it is llama-server's own",
    "parse_tool_calls": "it is llama-server's own",
    "reasoning_budget_start_tag": "it is llama-server's own",
    "reasoning_budget_end_tag": "it is llama-server's own",
    "reasoning_budget_end_tags": "it is llama-server's own",
    "reasoning_control": "the router has no way to end a thought",
    "n_cmpl": "use n",
    "content": "use input",
    "input_extra": "put it before the prompt",
    "suffix": "use /api/generate with suffix",
    "best_of": "use n",
}
"""Third column: refused, with the alternative."""

NEUTRAL: Mapping[str, tuple[object, ...]] = {"best_of": (1,), "suffix": ("",)}
"""Values of refused fields that change nothing: the field is left out."""

REFUSED_IN: Mapping[str, frozenset[Api]] = {
    "content": frozenset({Api.EMBEDDING}),
    "suffix": frozenset({Api.COMPLETION}),
    "best_of": frozenset({Api.COMPLETION}),
}
"""Refused fields that have a meaning, or none at all, for the other paths."""
