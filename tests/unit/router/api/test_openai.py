"""The OpenAI API refuses a request before it looks for a server."""

import gc
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web
from aiohttp.test_utils import TestServer
from harness.router.http.bodies import Body
from harness.router.http.disconnect import ClientWatch
from harness.router.proxy.upstream import UpstreamRequest
from tests.unit.router.serving import KEY, Connection, exchange, serve


@pytest_asyncio.fixture
async def port(tmp_path: Path) -> AsyncIterator[int]:
    async with serve(tmp_path) as port:
        yield port


async def asked(port: int, path: str, body: bytes) -> tuple[int, dict[str, str], Any]:
    lines = [
        f"POST {path} HTTP/1.1",
        "host: x",
        f"authorization: Bearer {KEY}",
        f"content-length: {len(body)}",
    ]
    return await exchange(port, "\r\n".join([*lines, "\r\n"]).encode() + body)


async def test_refused_field_is_named_and_counted(port: int) -> None:
    body = json.dumps({"model": "m", "prompt": "a", "n_probs": 10**9, "user": "me"}).encode()
    status, _, answer = await asked(port, "/v1/completions", body)
    assert status == 400
    assert answer["error"]["message"] == "n_probs: a whole number from 0 to 100 is expected"
    status, _, answer = await asked(port, "/v1/completions", body.replace(b"1000000000", b"1"))
    assert (status, answer["error"]["class"]) == (404, "unknown_model")


@pytest.mark.parametrize(
    "path", ["/v1/completions", "/v1/chat/completions", "/api/generate", "/api/chat", "/api/show"]
)
async def test_long_name_is_refused_and_neither_sent_back_nor_logged(
    port: int, path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _, answer = await asked(port, path, json.dumps({"model": "m" * (1 << 20)}).encode())
    assert status == 400
    assert "longer than 256 bytes" in json.dumps(answer)
    assert len(json.dumps(answer)) < 1000
    assert len(capsys.readouterr().err) < 5000


@pytest.mark.parametrize(
    "text",
    [b'"\\ud800"', b'"\xed\xa0\x80"', b"1e999", b"-1e999", b"9" * 4000, b"18446744073709551616"],
    ids=["half a pair", "its bytes", "infinity", "minus infinity", "4,000 digits", "65 bits"],
)
async def test_what_no_server_can_read_is_the_clients_error(port: int, text: bytes) -> None:
    status, _, answer = await asked(
        port, "/v1/completions", b'{"model": "m", "prompt": "a", "seed": ' + text + b"}"
    )
    assert (status, answer["error"]["class"]) == (400, "bad_request")


async def test_whole_pairs_and_64_bits_are_read(port: int) -> None:
    fine = b'{"model": "m", "prompt": "\\ud83d\\ude00", "metadata": 18446744073709551615}'
    assert (await asked(port, "/v1/completions", fine))[0] == 404, "only the model is missing"


async def test_ollamas_options_are_checked_too(port: int) -> None:
    body = json.dumps({"model": "m", "prompt": "a", "options": {"mirostat": 99}}).encode()
    status, _, answer = await asked(port, "/api/generate", body)
    assert (status, answer["error"]) == (400, "options.mirostat: 0 or 1 or 2 is expected")
    body = json.dumps({"model": "m", "prompt": "a", "options": {"num_predict": "all"}}).encode()
    _, _, answer = await asked(port, "/api/generate", body)
    assert answer["error"].startswith("options.num_predict: ")
    body = json.dumps({"model": "m", "prompt": "a", "format": {"pattern": "^+a$"}}).encode()
    _, _, answer = await asked(port, "/api/generate", body)
    assert answer["error"].startswith("format.pattern: ")


async def test_llama_server_that_gets_a_request_after_an_ollama_gets_its_own_body(tmp_path: Path) -> None:
    bodies: list[Any] = []

    async def break_off(request: web.Request) -> web.Response:
        bodies.append(await request.json())
        assert request.transport is not None
        request.transport.close()
        return web.Response()

    async def answer(request: web.Request) -> web.Response:
        bodies.append(await request.json())
        return web.json_response({})

    async def listed(request: web.Request) -> web.Response:
        return web.json_response({"models": [{"name": "m"}], "data": []})

    ollama, llama_server = web.Application(), web.Application()
    for path in ("/api/tags", "/api/ps", "/v1/models"):
        ollama.router.add_get(path, listed)
        llama_server.router.add_get(path, listed)
    ollama.router.add_post("/api/show", listed)
    ollama.router.add_post("/v1/completions", break_off)
    llama_server.router.add_post("/v1/completions", answer)
    async with TestServer(ollama) as first, TestServer(llama_server) as second:
        pool = [
            {"node": kind, "url": str(at.make_url("")), "kind": kind, "models": ["m"]}
            for kind, at in (("ollama", first), ("openai", second))
        ]
        async with serve(tmp_path, pool=pool, routes=[{"pattern": "m", "route": "pool"}]) as port:
            body = b'{"model": "m", "prompt": "a", "n_discard": -1000}'
            status, headers, _ = await asked(port, "/v1/completions", body)
    assert (status, headers["x-llama-attempt"], headers["x-llama-ignored"]) == (200, "2", "n_discard")
    assert ["n_discard" in each for each in bodies] == [True, False]


@pytest.mark.parametrize("content_type", ["application/json", "text/event-stream"])
async def test_request_that_has_ended_leaves_nothing_for_the_garbage_collector(
    tmp_path: Path, content_type: str
) -> None:
    """A cycle would hold its body until a collection, and collections would take a tenth of the time."""

    async def answer(request: web.Request) -> web.Response:
        return web.Response(body=b"data: {}\n\n", content_type=content_type)

    async def listed(request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "m"}]})

    def held() -> list[object]:
        return [each for each in gc.get_objects() if isinstance(each, Body | ClientWatch | UpstreamRequest)]

    server = web.Application()
    server.router.add_get("/v1/models", listed)
    server.router.add_post("/v1/completions", answer)
    async with TestServer(server) as upstream:
        pool = [{"node": "one", "url": str(upstream.make_url("")), "models": ["m"]}]
        async with serve(tmp_path, pool=pool) as port:
            gc.collect()
            gc.disable()
            try:
                for _ in range(3):
                    assert (await sent(port, b'{"model": "m", "prompt": "a"}')).startswith(b"HTTP/1.1 200")
                assert held() == []
            finally:
                gc.enable()


async def sent(port: int, body: bytes) -> bytes:
    head = f"host: x\r\nauthorization: Bearer {KEY}\r\nconnection: close\r\ncontent-length: {len(body)}"
    async with Connection.to(port) as client:
        client.send(b"POST /v1/completions HTTP/1.1\r\n" + head.encode() + b"\r\n\r\n" + body)
        return await client.rest()
