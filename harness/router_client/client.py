"""Client of the router: admin calls and timed chat requests."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import urlencode

import aiohttp
from pydantic import ValidationError

from harness.cluster.inventory import Inventory
from harness.common.text import first_error
from harness.contracts.coordinator_state import CoordinatorState
from harness.contracts.plan import LoadRequest, Offer
from harness.contracts.run_records import Request
from harness.errors import HarnessError
from harness.planner.device_capacity import Calibration
from harness.router_client.chat_stream import ChatRequest, chat_session, stream_chat
from harness.settings import ROUTER_PORT, state_dir

LOAD_DEADLINE_S = 900.0
"""Of a load that states none."""


@dataclass(frozen=True)
class RouterAddress:
    """Where the router is and the keys to it."""

    url: str
    key: str = field(repr=False)
    admin_key: str = field(repr=False)
    node: str = "the head node"


def router_address(inventory: Inventory, environment: Mapping[str, str] = os.environ) -> RouterAddress:
    """Address and keys: ``ROUTER_URL``, ``ROUTER_KEY``, ``ROUTER_ADMIN_KEY``, else what was deployed.

    Raises:
        HarnessError: a key is neither in the environment nor on this machine.
    """
    port = inventory.head.variables.get("router_port", ROUTER_PORT)
    folder = state_dir(inventory.path)

    def key(variable: str, file: str) -> str:
        if value := environment.get(variable):
            return value
        try:
            return (folder / file).read_text().strip()
        except OSError:
            raise HarnessError(
                f"no router key at {folder / file}; deploy first "
                f"(harness deploy --inventory {inventory.path}) or set {variable}"
            ) from None

    return RouterAddress(
        environment.get("ROUTER_URL", f"http://{inventory.head.address}:{port}").rstrip("/"),
        key("ROUTER_KEY", "router.key"),
        key("ROUTER_ADMIN_KEY", "admin.key"),
        inventory.head.name,
    )


class RouterKeyError(HarnessError):
    """The router does not accept the admin key."""


class RouterRefusedError(HarnessError):
    """The router answered an admin call with an error; carries the failure class and the state, if any."""

    def __init__(self, message: str, failure_class: str | None, state: CoordinatorState | None) -> None:
        super().__init__(message)
        self.failure_class = failure_class
        self.state = state


class RouterClient:
    """Admin calls and timed chat requests; every call has a deadline."""

    def __init__(self, address: RouterAddress) -> None:
        self.address = address
        self._session = chat_session()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self._session.close()

    async def models(self) -> dict[str, dict[str, Any]]:
        """Models that the router can serve, by name."""
        listing = await self._call("GET", "/admin/models")
        return {entry["name"]: entry for entry in listing["models"]}

    async def load(self, request: LoadRequest) -> CoordinatorState:
        """Load a model; returns once it is ready.

        Raises:
            RouterRefusedError: it did not become ready; carries the class and the state.
        """
        deadline_s = request.deadline_s or LOAD_DEADLINE_S
        body = request.model_dump(mode="json") | {"deadline_s": deadline_s}
        # The router ends a load at its deadline; ours is there for a router that does not answer.
        content = await self._call("POST", "/admin/load", body, deadline_s + 60)
        return _state(content)

    async def plan(self, request: LoadRequest, *, keep: bool = False) -> Offer:
        """The plan and forecast of a load; nothing is loaded.

        Args:
            keep: use this split for the next load, and list the tensors that the nodes' caches would hold.

        Raises:
            RouterRefusedError: it does not fit, or cannot be planned.
        """
        path = f"/admin/plan{'?keep=true' if keep else ''}"
        return Offer.model_validate(await self._call("POST", path, request.model_dump(mode="json")))

    async def calibration(self, measured: Calibration | None = None) -> Calibration:
        """The node speeds that the router plans with, after adding ``measured`` to them."""
        body = measured.model_dump(mode="json") if measured else None
        content = await self._call("POST" if measured else "GET", "/admin/calibration", body)
        return Calibration.model_validate(content)

    async def forget_calibration(self) -> Calibration:
        """Drop all node speeds: the router plans by memory alone again."""
        return Calibration.model_validate(await self._call("DELETE", "/admin/calibration"))

    async def unload(self, deadline_s: float = 60) -> CoordinatorState:
        """Stop the coordinator and give its last state; phase ``absent`` if there was none."""
        body = {"signal": "SIGTERM", "deadline_s": deadline_s}
        return _state(await self._call("POST", "/admin/unload", body, deadline_s + 30))

    async def lease(self, owner: str, seconds: float) -> None:
        """Take or renew the lease of this cluster for a run.

        Raises:
            RouterRefusedError: another run holds it.
        """
        await self._call("POST", "/admin/lease", {"owner": owner, "seconds": seconds})

    async def release_lease(self, owner: str) -> None:
        """End the lease, if this owner holds it."""
        await self._call("DELETE", "/admin/lease", {"owner": owner})

    async def coordinator(self) -> CoordinatorState:
        """State of the current or last coordinator."""
        return _state(await self._call("GET", "/admin/coordinator"))

    async def waiting(self) -> int:
        """How many requests wait for the coordinator."""
        return len((await self._call("GET", "/admin/queue"))["waiting"])

    async def discover(self, cidrs: list[str], *, port: int, limit: int, force: bool) -> list[dict[str, Any]]:
        """Backends as the head node sees them, those of the inventory first."""
        query = [("cidr", cidr) for cidr in cidrs]
        query += [("port", str(port)), ("limit", str(limit)), ("force", str(force).lower())]
        listing = await self._call("GET", f"/admin/discover?{urlencode(query)}", deadline_s=60 + limit / 100)
        return list(listing["backends"])

    async def start(self, start_id: str) -> CoordinatorState | None:
        """State of one start, the current one or an earlier; None where the router has forgotten it."""
        return next((state for state in await self.starts() if state.start_id == start_id), None)

    async def starts(self) -> list[CoordinatorState]:
        """States of the last starts, oldest first."""
        return [_state(entry) for entry in await self._call("GET", "/admin/starts")]

    async def log(self, start_id: str) -> str:
        """The coordinator's log of one start."""
        return str(await self._call("GET", f"/admin/logs/{start_id}", deadline_s=60, as_json=False))

    async def chat(self, chat: ChatRequest) -> Request:
        """One streamed request through the router, timed token by token."""
        return await stream_chat(self._session, self.address.url, chat, _bearer(self.address.key))

    async def _call(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None = None,
        deadline_s: float = 30,
        *,
        as_json: bool = True,
    ) -> Any:
        url = self.address.url + path
        timeout = aiohttp.ClientTimeout(total=deadline_s, connect=10)
        try:
            async with self._session.request(
                method, url, json=body, timeout=timeout, headers=_bearer(self.address.admin_key)
            ) as response:
                if response.status >= 400:
                    raise await self._refusal(method, path, response)
                # A log may hold any bytes.
                return await (
                    response.json(content_type=None) if as_json else response.text(errors="replace")
                )
        except TimeoutError:
            raise HarnessError(
                f"router at {self.address.url} did not answer {method} {path} within {deadline_s:.0f} s; "
                f"see `journalctl -u llama-router` on {self.address.node}"
            ) from None
        except (aiohttp.ClientError, ValueError) as error:
            raise HarnessError(
                f"router at {self.address.url} cannot be reached ({method} {path}: {error}); "
                f"check that {self.address.node} runs and llama-router.service is active there"
            ) from error

    async def _refusal(self, method: str, path: str, response: aiohttp.ClientResponse) -> HarnessError:
        if response.status in (401, 403):
            return RouterKeyError(
                f"router at {self.address.url} refuses the admin key ({response.status}); "
                f"deploy again or set ROUTER_ADMIN_KEY"
            )
        try:
            error = (await response.json(content_type=None))["error"]
            message, failure_class = str(error["message"]), error.get("class")
            state = _state(error["state"]) if error.get("state") else None
        except (ValueError, KeyError, TypeError, AttributeError):
            text = " ".join((await response.text(errors="replace")).split())[:200]
            return HarnessError(
                f"{self.address.url} answered {method} {path} with {response.status}, and not as this router "
                f"does{f' ({text})' if text else ''}; see that llama-router.service is active on "
                f"{self.address.node}, or deploy again"
            )
        return RouterRefusedError(
            f"router: {method} {path}: {response.status}: {message[:500]}", failure_class, state
        )


def _state(content: Any) -> CoordinatorState:
    try:
        return CoordinatorState.model_validate(content)
    except ValidationError as error:
        raise HarnessError(
            f"the router's coordinator state cannot be read ({first_error(error)}); "
            f"deploy the router of this checkout"
        ) from error


def _bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}
