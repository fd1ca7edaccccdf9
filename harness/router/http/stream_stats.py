"""Statistics of one response, taken from its bytes: time to first token, token gaps, token counts.

Nothing here parses JSON. ``harness.llama`` says what a token is; counts are read once, from the
last events, where every server puts them. A quote inside a JSON string is escaped, so that text which a model
wrote is never taken for a count.
"""

import re
import time
from collections import deque
from typing import Any

from harness.llama import count_tokens
from harness.router.http.metrics import Metrics

STREAM_TYPES = ("text/event-stream", "application/x-ndjson")
"""Content types of a streamed response: OpenAI's and Ollama's."""

_COUNT = re.compile(
    rb'"(prompt_tokens|completion_tokens|prompt_eval_count|eval_count|prompt_n|cache_n|predicted_n)": ?(\d+)'
)
_ERROR = re.compile(rb'^(?:data: )?\{"error"', re.MULTILINE)
_LAST_CHUNKS = 4
"""Chunks that are kept until the end: with the last token, the counts and ``[DONE]``."""


class RequestStats:
    """One request, from its arrival to the end of its response.

    Args:
        for_model: whether it goes to a model: tokens are counted, and it is listed in ``metrics.live``.
    """

    def __init__(self, metrics: Metrics, *, api: str, request_id: str, for_model: bool) -> None:
        self.api = api
        self.request_id = request_id
        self.model = ""
        self.route = "none"
        self.status = 499
        self.started_s = time.monotonic()
        self.first_s: float | None = None
        """Time of the first token, on the monotonic clock."""
        self.tokens = 0
        """Events with text so far."""
        self._last_s = 0.0
        self._metrics = metrics
        self._streamed = False
        self._chunks: deque[bytes] = deque(maxlen=_LAST_CHUNKS)
        self._for_model = for_model
        if for_model:
            metrics.live.add(self)

    def count_fields(self, action: str, count: int) -> None:
        """Fields of the request were ``refused`` or ``ignored``."""
        if count:
            self._metrics.request_fields(action, count)

    def begin(self, status: int, *, route: str | None, content_type: str) -> None:
        """The response's headers are being sent."""
        self.status = status
        self.route = route or self.route
        self._streamed = content_type.startswith(STREAM_TYPES)

    def body(self, chunk: bytes) -> None:
        """A chunk of the response's body is being sent."""
        if not chunk or not self._for_model:
            return
        self._chunks.append(chunk)
        if self._streamed and (count := count_tokens(chunk)):
            self._count_tokens(count)

    def _count_tokens(self, count: int) -> None:
        now = time.monotonic()
        if self.first_s is None:
            self.first_s = now
            self._metrics.ttft.labels(self.route).observe(now - self.started_s)
            self.tokens = 1
            count -= 1
        if count:
            self._metrics.next_tokens(self.route, now - (self._last_s or now), count)
            self.tokens += count
        self._last_s = now

    def end(self) -> dict[str, Any]:
        """The request has ended; returns the fields of its log line."""
        self._metrics.live.discard(self)
        tail = b"".join(self._chunks)
        broken = self._streamed and _ERROR.search(tail) is not None
        self._metrics.request_ended(route=self.route, api=self.api, status=self.status, broken=broken)
        fields: dict[str, Any] = {"status": self.status, "route": self.route}
        if not self._for_model or self.status != 200:
            return fields
        prompt, completion = counts(tail)
        if completion is None:
            completion = self.tokens
        self._metrics.used(prompt=prompt, completion=completion)
        if self.first_s is not None:
            fields["ttft_ms"] = round((self.first_s - self.started_s) * 1000, 1)
        fields |= {"prompt_tokens": prompt, "completion_tokens": completion}
        return fields | ({"broken": True} if broken else {})


def counts(tail: bytes) -> tuple[int, int | None]:
    """Prompt and completion tokens that the end of a response states; None where the latter are missing.

    ``usage`` (OpenAI), ``*eval_count`` (Ollama) and ``timings`` (llama.cpp), in that order.
    """
    numbers = {name: int(value) for name, value in _COUNT.findall(tail)}
    prompt = numbers.get(b"prompt_tokens", numbers.get(b"prompt_eval_count"))
    if prompt is None:
        prompt = numbers.get(b"prompt_n", 0) + numbers.get(b"cache_n", 0)
    completion = numbers.get(b"completion_tokens", numbers.get(b"eval_count", numbers.get(b"predicted_n")))
    return prompt, completion
