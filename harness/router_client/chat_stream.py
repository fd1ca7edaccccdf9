"""One streamed chat request against an OpenAI-compatible server, timed token by token."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from harness.common.redirects import refuse_redirects
from harness.contracts.run_records import Request
from harness.llama import token_texts


@dataclass(frozen=True)
class ChatRequest:
    """A greedy chat request: end-of-sequence banned, no cached prompt used unless ``cache_prompt``."""

    model: str
    text: str
    max_tokens: int
    deadline_s: float
    trial: str = ""
    index: int = 0
    warmup: bool = False
    cache_prompt: bool = False
    extra: dict[str, Any] = field(default_factory=dict)
    on_token: Callable[[], None] | None = None

    def body(self) -> dict[str, Any]:
        """JSON body for ``/v1/chat/completions``."""
        return {
            "model": self.model,
            "messages": [{"role": "user", "content": self.text}],
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_tokens": self.max_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "cache_prompt": self.cache_prompt,
            **self.extra,
        }


def chat_session() -> aiohttp.ClientSession:
    """A session for ``stream_chat``: a new connection for each request, no deadline but the request's own.

    Servers close idle connections after seconds; a request must not fail because it met one being closed.
    Lines of the event stream may be longer than aiohttp's 64 KiB.
    """
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(force_close=True),
        timeout=aiohttp.ClientTimeout(total=None, connect=10),
        read_bufsize=1 << 20,
        middlewares=(refuse_redirects,),
    )


class Clock:
    """UTC nanoseconds that never step: the wall clock at the start, then the monotonic one."""

    def __init__(self) -> None:
        self._offset = time.time_ns() - time.perf_counter_ns()

    def now(self) -> int:
        """UTC, nanoseconds."""
        return time.perf_counter_ns() + self._offset


async def stream_chat(
    session: aiohttp.ClientSession, url: str, chat: ChatRequest, headers: Mapping[str, str] | None = None
) -> Request:
    """Send ``chat`` to ``url`` and time each token.

    Returns:
        The request as the client saw it; ``error`` says why it did not end well, deadline included.
    """
    clock = Clock()
    record = Request(
        trial=chat.trial,
        index=chat.index,
        warmup=chat.warmup,
        route="",
        model=chat.model,
        sent_ns=clock.now(),
    )
    try:
        async with (
            asyncio.timeout(chat.deadline_s),
            session.post(f"{url}/v1/chat/completions", json=chat.body(), headers=headers) as response,
        ):
            record.status = response.status
            record.route = response.headers.get("x-llama-route", "direct")
            if response.status != 200:
                record.error = error_text(await response.text())
            else:
                await _read_tokens(response, record, clock, chat.on_token)
    except TimeoutError:
        record.error = f"no end within {chat.deadline_s:.0f} s ({len(record.token_ns)} tokens came)"
    except aiohttp.ClientError as error:
        reason = str(error) or type(error).__name__
        record.error = f"the stream broke after {len(record.token_ns)} tokens: {reason}"
    except (ValueError, KeyError) as error:
        record.error = f"the stream cannot be read after {len(record.token_ns)} tokens: {error}"
    record.done_ns = clock.now()
    if record.error is None and record.completion_tokens is None:
        record.error = f"the stream ended after {len(record.token_ns)} tokens without usage figures"
    return record


async def _read_tokens(
    response: aiohttp.ClientResponse, record: Request, clock: Clock, on_token: Callable[[], None] | None
) -> None:
    async for data in _events(response):
        arrived_ns = clock.now()
        if "error" in data:
            record.error = error_text(json.dumps(data))
            return
        for choice in data.get("choices") or ():
            for text in token_texts(choice.get("delta") or {}):
                record.token_ns.append(arrived_ns)
                record.text += text
                if on_token:
                    on_token()
            for token in (choice.get("logprobs") or {}).get("content") or ():
                record.token_ids.append(token["id"])
                record.logprobs.append(token["logprob"])
        if usage := data.get("usage"):
            record.prompt_tokens = usage.get("prompt_tokens")
            record.completion_tokens = usage.get("completion_tokens")
        if timings := data.get("timings"):
            record.server = {key: value for key, value in timings.items() if isinstance(value, int | float)}


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
    async for raw in response.content:
        line = raw.strip()
        name, _, payload = line.partition(b":")
        payload = payload.strip()
        if name == b"error":
            yield {"error": json.loads(payload)}
        elif name == b"data" and payload != b"[DONE]":
            yield json.loads(payload)


def error_text(body: str) -> str:
    """The message in an error body, however it is wrapped, in one line."""
    try:
        content = json.loads(body)
    except ValueError:
        return " ".join(body.split())[:300]
    inner = content.get("error", content) if isinstance(content, dict) else content
    if isinstance(inner, dict):
        message = " ".join(str(inner.get("message", inner)).split())[:300]
        failure = str(inner.get("class", ""))
        return message if failure in message else f"{failure}: {message}"
    return str(inner)[:300]
