"""Whether a node's kernel answers, asked without its rpc-server."""

import socket
from typing import cast

import pytest
from harness.router.nodes import backends
from harness.router.nodes.backends import BackendWatch
from harness.router.nodes.samples import NodeSamples
from tests.unit.router.coordinator.fakes import FakeBackends

HERE, NOBODY = "127.0.0.1", "224.0.0.1"
"""This machine, and an address to which no connection goes (a multicast group)."""


def watch() -> BackendWatch:
    nodes = FakeBackends()
    nodes.latest = nodes.samples  # type: ignore[attr-defined]
    return BackendWatch(cast(NodeSamples, nodes))


async def test_kernel_that_refuses_a_connection_has_answered() -> None:
    reasons = await watch().unreachable({"node1": HERE, "node2": NOBODY})
    assert list(reasons) == ["node2"]
    assert NOBODY in reasons["node2"]


async def test_service_that_takes_the_connection_has_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server((HERE, 0)) as listener:
        monkeypatch.setattr(backends, "_UNUSED_PORT", listener.getsockname()[1])
        assert await watch().unreachable({"node1": HERE}) == {}
