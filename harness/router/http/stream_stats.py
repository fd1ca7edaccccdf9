"""One answer on its way to the client, measured by its bytes: first token, gaps, counts.

Nothing here parses JSON. A token is an event with a piece of text in it; counts are read once, from the last
events, where every server puts them. A quote inside a JSON string is escaped, so that text which a model
wrote is never taken for a count.
"""

import re
import time
from collections import deque
from typing import Any, Protocol

_TEXT = re.compile(rb'"(?:content|text|response|reasoning_content|thinking|arguments)": ?"[^"]')
"""A piece of text in an event of OpenAI's or Ollama's streams."""
_COUNT = re.compile(
    rb'"(prompt_tokens|completion_tokens|prompt_eval_count|eval_count|prompt_n|cache_n|predicted_n)": ?(\d+)'
)
_ERROR = re.compile(rb'^(?:data: )?\{"error"', re.MULTILINE)
_LAST = 4
"""Of a stream these pieces are kept until its end: the last token, the counts, ``[DONE]``."""
_STREAMS = ("text/event-stream", "application/x-ndjson")


class Sink(Protocol):
    """Who is told."""

    live: "set[Observed]"

    def first_token(self, route: str, seconds: float) -> None:
        """A stream's first token has come."""

    def next_tokens(self, route: str, gap_s: float, count: int) -> None:
        """Further tokens have come."""

    def request_ended(self, *, route: str, api: str, status: int, broken: bool = False) -> None:
        """The answer has ended."""

    def used(self, *, prompt: int, completion: int) -> None:
        """Tokens of the answer."""


class Observed:
    """One request for a model, from its arrival to the end of its answer."""

    __slots__ = (
        "_for_model",
        "_last_s",
        "_pieces",
        "_sink",
        "_streams",
        "api",
        "first_s",
        "model",
        "request_id",
        "route",
        "started_s",
        "status",
        "tokens",
    )

    def __init__(self, sink: Sink, *, api: str, request_id: str, for_model: bool) -> None:
        self.api = api
        self.request_id = request_id
        self.model = ""
        self.route = "none"
        self.status = 499
        self.started_s = time.monotonic()
        self.first_s: float | None = None
        """When the first token came, on the monotonic clock."""
        self.tokens = 0
        """Events with text so far."""
        self._last_s = 0.0
        self._sink = sink
        self._streams = False
        self._pieces: deque[bytes] = deque(maxlen=_LAST)
        self._for_model = for_model
        if for_model:
            sink.live.add(self)

    def begin(self, status: int, *, route: str | None, content_type: str) -> None:
        """The answer's headers are being sent."""
        self.status = status
        self.route = route or self.route
        self._streams = content_type.startswith(_STREAMS)

    def body(self, piece: bytes) -> None:
        """A piece of the answer's body is being sent."""
        if not piece or not self._for_model:
            return
        self._pieces.append(piece)
        if self._streams and (count := len(_TEXT.findall(piece))):
            self._seen(count)

    def _seen(self, count: int) -> None:
        now = time.monotonic()
        if self.first_s is None:
            self.first_s = now
            self._sink.first_token(self.route, now - self.started_s)
            self.tokens = 1
            count -= 1
        if count:
            self._sink.next_tokens(self.route, now - (self._last_s or now), count)
            self.tokens += count
        self._last_s = now

    def end(self) -> dict[str, Any]:
        """Nothing more comes; what is worth a line in the log."""
        self._sink.live.discard(self)
        tail = b"".join(self._pieces)
        broken = self._streams and _ERROR.search(tail) is not None
        self._sink.request_ended(route=self.route, api=self.api, status=self.status, broken=broken)
        said: dict[str, Any] = {"status": self.status, "route": self.route}
        if not self._for_model or self.status != 200:
            return said
        prompt, completion = counts(tail)
        if completion is None:
            completion = self.tokens
        self._sink.used(prompt=prompt, completion=completion)
        if self.first_s is not None:
            said["ttft_ms"] = round((self.first_s - self.started_s) * 1000, 1)
        return said | {"prompt_tokens": prompt, "completion_tokens": completion} | _flag("broken", broken)


def _flag(name: str, value: bool) -> dict[str, bool]:
    return {name: True} if value else {}


def counts(tail: bytes) -> tuple[int, int | None]:
    """Prompt and completion tokens that the end of an answer states; None where it does not count the latter.

    ``usage`` (OpenAI), ``*eval_count`` (Ollama) and ``timings`` (llama.cpp), in that order.
    """
    found = {name: int(value) for name, value in _COUNT.findall(tail)}
    prompt = found.get(b"prompt_tokens", found.get(b"prompt_eval_count"))
    if prompt is None:
        prompt = found.get(b"prompt_n", 0) + found.get(b"cache_n", 0)
    completion = found.get(b"completion_tokens", found.get(b"eval_count", found.get(b"predicted_n")))
    return prompt, completion
