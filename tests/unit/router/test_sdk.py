"""``HybridRouter`` with a double of Ollama as its pool: no llama.cpp, no port of the router's own."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from harness.errors import HarnessError
from harness.router.sdk import HybridRouter, RequestFailedError

CHAT = [{"role": "user", "content": "Hi"}]


@pytest.fixture
async def ollama() -> AsyncIterator[TestServer]:
    """An Ollama that has ``m`` in memory and answers in two pieces."""

    async def chat(request: web.Request) -> web.StreamResponse:
        pieces = [{"message": {"content": text}, "done": text == "b"} for text in "ab"]
        if not (await request.json())["stream"]:
            return web.json_response(pieces[-1])
        response = web.StreamResponse(headers={"content-type": "application/x-ndjson"})
        await response.prepare(request)
        for piece in pieces:
            await response.write(json.dumps(piece).encode() + b"\n")
        return response

    async def models(request: web.Request) -> web.Response:
        return web.json_response({"models": [{"name": "m:latest", "size": 1, "digest": "d"}]})

    async def show(request: web.Request) -> web.Response:
        return web.json_response({})

    app = web.Application()
    app.router.add_get("/api/tags", models)
    app.router.add_get("/api/ps", models)
    app.router.add_post("/api/show", show)
    app.router.add_post("/api/chat", chat)
    async with TestServer(app) as server:
        yield server


def spellings(server: TestServer) -> list[Any]:
    address = f"{server.host}:{server.port}"
    host = {"host": server.host, "port": server.port}
    return [f"http://{address}", [address], [host], SimpleNamespace(nodes=[host])]


@pytest.mark.parametrize("spelling", range(4))
async def test_request_goes_to_the_pool_however_it_is_named(
    ollama: TestServer, tmp_path: Path, spelling: int
) -> None:
    async with HybridRouter(ollama_pool=spellings(ollama)[spelling], models_dir=tmp_path) as router:
        answer = await router.route_request("m", CHAT)
    assert answer["message"] == {"content": "b"}
    assert answer["_routing"]["route"] == "pool"


async def test_stream_comes_piece_by_piece_and_an_error_with_its_class(
    ollama: TestServer, tmp_path: Path
) -> None:
    router = HybridRouter(ollama_pool=spellings(ollama)[1], models_dir=tmp_path)
    try:
        pieces = [piece async for piece in router.stream_request("m", CHAT)]
        assert [piece["message"]["content"] for piece in pieces] == ["a", "b"]
        with pytest.raises(RequestFailedError, match="model 'nobody' not found") as failed:
            await router.route_request("nobody", CHAT)
        assert (failed.value.status, failed.value.details["class"]) == (404, "unknown_model")
    finally:
        await router.close()
    again = await router.route_request("m", CHAT)
    assert again["done"] is True, "it starts again by itself"
    await router.close()


async def test_wrong_setting_is_named(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="HybridRouter: no_such_setting: Extra inputs"):
        await HybridRouter(models_dir=tmp_path, no_such_setting=1).start()
