"""Asks a pool server what it has: ``/api/tags``, ``/api/ps``, ``/api/show`` of Ollama, else ``/v1/models``.

Ollama's API: https://github.com/ollama/ollama/blob/main/docs/api.md. Answers are read up to a limit, and what
is not of the expected shape is a failure of the server.
"""

import json
from pathlib import Path
from typing import Any

import aiohttp

from harness.llama.gguf import GgufModel
from harness.router.pool.server import PoolModel, PoolTarget, Seen

LOOK_S = 5.0
_LARGEST_ANSWER = 8 << 20


class LookError(Exception):
    """The server did not say what it has; the message tells what it did instead."""


async def look(session: aiohttp.ClientSession, target: PoolTarget, known: Seen | None = None) -> Seen:
    """What a server has now.

    Args:
        session: the router's.
        target: the server.
        known: the last look, whose descriptions of unchanged models are kept.

    Raises:
        LookError: it cannot be reached, or answers something else.
    """
    try:
        if target.kind == "openai":
            return _openai(await _get(session, target, "/v1/models"))
        tags = await _get(session, target, "/api/tags")
        running = await _get(session, target, "/api/ps")
        models = [await _described(session, target, entry, known) for entry in tags["models"]]
        loaded = running["models"]
        return Seen(
            tuple(models),
            frozenset(str(entry["name"]) for entry in loaded),
            sum(int(entry.get("size", 0)) for entry in loaded),
        )
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise LookError(repr(error)) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise LookError(f"answers something else than expected: {error!r}") from None


def _openai(listing: Any) -> Seen:
    return Seen(tuple(PoolModel(str(entry["id"])) for entry in listing["data"]))


async def _described(
    session: aiohttp.ClientSession, target: PoolTarget, entry: Any, known: Seen | None
) -> PoolModel:
    name, digest = str(entry["name"]), str(entry.get("digest", ""))
    for model in known.models if known else ():
        if (model.name, model.digest) == (name, digest):
            return model
    size = int(entry["size"]) if entry.get("size") else None
    shown = await _post(session, target, "/api/show", {"model": name})
    info = shown.get("model_info") if isinstance(shown, dict) else None
    header = None
    if isinstance(info, dict) and "general.architecture" in info and size:
        header = GgufModel(Path(name), size, info, ())
    return PoolModel(name, size, digest, header)


async def _get(session: aiohttp.ClientSession, target: PoolTarget, path: str) -> Any:
    return await _ask(session, "GET", target, path, None)


async def _post(session: aiohttp.ClientSession, target: PoolTarget, path: str, body: dict[str, Any]) -> Any:
    return await _ask(session, "POST", target, path, body)


async def _ask(
    session: aiohttp.ClientSession, method: str, target: PoolTarget, path: str, body: dict[str, Any] | None
) -> Any:
    headers = {"authorization": f"Bearer {target.key}"} if target.key else {}
    if not target.keep_alive:
        headers["connection"] = "close"
    timeout = aiohttp.ClientTimeout(total=LOOK_S)
    url = target.url + path
    async with session.request(method, url, json=body, headers=headers, timeout=timeout) as answer:
        text = await answer.content.read(_LARGEST_ANSWER)
        while not answer.content.at_eof() and len(text) < _LARGEST_ANSWER:
            text += await answer.content.read(_LARGEST_ANSWER - len(text))
        if answer.status != 200:
            raise LookError(f"{path}: status {answer.status}")
        return json.loads(text)
