"""What the harness makes of what answers at the router's address."""

import pytest
from aiohttp import web
from harness.contracts.plan import LoadRequest
from harness.errors import HarnessError
from harness.router_client.client import RouterRefusedError
from tests.unit.router_client.router_server import answering, served


@pytest.mark.parametrize("text", ["<h1>404</h1>", "", "[]", '{"error": "gone"}'])
async def test_error_of_something_else_is_no_refusal_of_the_router(text: str) -> None:
    async with answering(404, text) as client:
        with pytest.raises(HarnessError, match=r"answered POST /admin/lease with 404, and not as") as caught:
            await client.lease("me", 20)
    assert not isinstance(caught.value, RouterRefusedError)
    assert "llama-router.service is active on head" in str(caught.value)


async def test_refusal_of_the_router_carries_its_class_and_words() -> None:
    body = '{"error": {"message": "run a of b has the cluster", "class": null}}'
    async with answering(409, body) as client:
        with pytest.raises(RouterRefusedError, match="409: run a of b has the cluster"):
            await client.lease("me", 20)


async def test_body_of_a_load_is_the_contract_of_the_router() -> None:
    bodies: list[LoadRequest] = []

    async def load(request: web.Request) -> web.Response:
        bodies.append(LoadRequest.model_validate_json(await request.read()))
        return web.json_response({"phase": "ready"})

    asked = LoadRequest(model="m", nodes=["b"], flags=["--no-repack"], n_gpu_layers=0)
    async with served(load) as client:
        await client.load(asked)
    assert bodies == [asked.model_copy(update={"deadline_s": 900})], "a deadline always goes with it"
