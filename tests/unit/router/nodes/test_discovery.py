"""Backends from the head node's view: in use, searched, or refused."""

import socket
from pathlib import Path

import pytest
from harness.errors import HarnessError
from harness.llama.rpc.client import BackendStatus
from harness.llama.rpc.discovery import Candidate
from harness.router.nodes import discovery
from harness.router.nodes.discovery import auto_discover_rpc_backends, find_backends


async def test_endpoint_that_this_machine_is_connected_to_is_not_connected_to_again() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        host, port = listener.getsockname()
        with socket.create_connection((host, port)), listener.accept()[0]:
            listener.setblocking(False)
            (found,) = await find_backends([Candidate(host, port)], in_use={})
            assert found.status is BackendStatus.BUSY
            assert found.reason == "a process of this machine is connected to it"
            with pytest.raises(BlockingIOError):
                listener.accept()


def test_without_inventory_and_networks_there_is_nothing_to_look_for(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="run this on the head node, or name networks"):
        auto_discover_rpc_backends(config=tmp_path / "absent.json")


def test_refused_network_reaches_the_script_that_named_it(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="not a private network"):
        auto_discover_rpc_backends(["8.8.8.0/24"], config=tmp_path / "absent.json")


def test_unforeseen_error_of_a_search_is_raised_and_not_an_empty_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> list[str]:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(discovery, "connected_endpoints", fail)
    with pytest.raises(OSError, match="Too many open files"):
        auto_discover_rpc_backends(["127.0.0.1/32"], config=tmp_path / "absent.json")
