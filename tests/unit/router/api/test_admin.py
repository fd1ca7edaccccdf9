"""The lease of the cluster, and the log of a start."""

from pathlib import Path
from typing import cast

import pytest
from harness.router.api.admin import Admin, ClusterLease
from harness.router.coordinator.manager import CoordinatorManager
from harness.router.errors import RouterError
from starlette.requests import Request
from starlette.responses import StreamingResponse


def test_second_run_is_told_who_has_the_cluster_until_the_first_gives_it_back() -> None:
    lease = ClusterLease()
    lease.take("one", 30)
    lease.take("one", 30)
    with pytest.raises(RouterError, match="run one has this cluster") as refused:
        lease.take("two", 30)
    assert (refused.value.status, refused.value.error_class) == (409, "leased")
    lease.give_back("two")
    with pytest.raises(RouterError):
        lease.take("two", 30)
    lease.give_back("one")
    lease.take("two", 30)


def test_lease_that_is_not_renewed_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("harness.router.api.admin.time.monotonic", lambda: now)
    lease = ClusterLease()
    lease.take("one", 30)
    now += 29
    with pytest.raises(RouterError, match=r"for 29 s now.*ends in 1 s"):
        lease.take("two", 30)
    now += 2
    lease.take("two", 30)


class Starts:
    """A coordinator with one log."""

    def __init__(self, log: Path) -> None:
        self._log = log

    def log_path(self, start_id: str) -> Path | None:
        return self._log if start_id == "x" else None


def log_request(start_id: str) -> Request:
    return Request({"type": "http", "path_params": {"start_id": start_id}})


async def test_log_that_grows_while_it_is_sent_ends_and_is_never_in_memory_as_a_whole(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    log.write_bytes(b"x" * 3_000_000)
    admin = Admin(cast("CoordinatorManager", Starts(log)), body_limit_bytes=1)
    response = await admin.logs(log_request("x"))
    assert isinstance(response, StreamingResponse)
    sizes = []
    async for piece in response.body_iterator:
        sizes.append(len(piece))
        with log.open("ab") as file:
            file.write(b"y" * 1_000_000)
    assert sum(sizes) == 3_000_000
    assert max(sizes) <= 1 << 20


async def test_log_of_an_unknown_start_is_refused(tmp_path: Path) -> None:
    admin = Admin(cast("CoordinatorManager", Starts(tmp_path / "none")), body_limit_bytes=1)
    for start_id in ("x", "y"):
        with pytest.raises(RouterError) as refused:
            await admin.logs(log_request(start_id))
        assert refused.value.status == 404
