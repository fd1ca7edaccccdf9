"""Where a plan comes from: the router, unless it cannot be reached."""

from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from harness.contracts.plan import LoadRequest
from harness.errors import HarnessError
from harness.router_client import plan_source
from harness.router_client.client import RouterAddress


@pytest.mark.parametrize("status", [401, 403])
async def test_wrong_admin_key_is_an_error_and_no_other_plan(
    monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    async def refuse(request: web.Request) -> web.Response:
        return web.json_response({"error": {"message": "wrong key", "class": "unauthorized"}}, status=status)

    app = web.Application()
    app.router.add_post("/admin/plan", refuse)
    async with TestServer(app) as server:
        address = RouterAddress(str(server.make_url("")).rstrip("/"), "key", "admin", "head")
        monkeypatch.setattr(plan_source, "load_inventory", lambda path: None)
        monkeypatch.setattr(plan_source, "router_address", lambda inventory: address)
        with pytest.raises(HarnessError, match=f"refuses the admin key \\({status}\\)"):
            await plan_source.request_plan(Path("inventory.yml"), LoadRequest(model="m"))
