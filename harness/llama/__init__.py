"""llama.cpp and Ollama as files, logs, streams and RPC; here: what counts as a token in a streamed answer.

The router and the client that times it count alike. A token is an event with a piece of text in it: of the
answer, of the model's reasoning, or of a tool call's arguments. OpenAI's streams (``content``,
``reasoning_content``, ``text``, ``arguments``) and Ollama's (``content``, ``thinking``, ``response``) count.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

_FIELDS = ("content", "text", "response", "reasoning_content", "thinking", "arguments")
# A quote inside a JSON string is escaped: text that a model wrote never looks like a field.
_TEXT = re.compile(rf'"(?:{"|".join(_FIELDS)})": ?"[^"]'.encode())


def count_tokens(piece: bytes) -> int:
    """Tokens in raw bytes of a stream, without parsing them."""
    return len(_TEXT.findall(piece))


def token_texts(event: Mapping[str, Any]) -> Iterator[str]:
    """The text of each token in a parsed event, or in a part of one such as a choice or its ``delta``."""
    for name, value in event.items():
        if isinstance(value, str):
            if name in _FIELDS and value:
                yield value
        elif isinstance(value, Mapping):
            yield from token_texts(value)
        elif isinstance(value, list):
            for item in value:
                if isinstance(item, Mapping):
                    yield from token_texts(item)
