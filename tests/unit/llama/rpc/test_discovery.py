"""Which endpoints are looked at, which are left alone, and what is refused."""

import socket

import pytest
from harness.errors import HarnessError
from harness.llama.rpc.client import BackendStatus
from harness.llama.rpc.discovery import (
    Candidate,
    Probe,
    addresses,
    candidates,
    discover,
    worth_showing,
)


@pytest.mark.parametrize(
    ("cidrs", "count", "first", "last"),
    [
        (["10.0.0.0/30"], 2, "10.0.0.1", "10.0.0.2"),
        (["10.0.0.7"], 1, "10.0.0.7", "10.0.0.7"),
        (["10.0.0.9/22"], 1022, "10.0.0.1", "10.0.3.254"),
        (["10.0.0.0/30", "10.0.0.0/29"], 6, "10.0.0.1", "10.0.0.6"),
        ([], 0, None, None),
    ],
)
def test_networks_become_their_hosts_each_once(
    cidrs: list[str], count: int, first: str | None, last: str | None
) -> None:
    found = addresses(cidrs)
    assert len(found) == count
    assert (found[:1], found[-1:]) == ([first], [last]) or count == 0


@pytest.mark.parametrize(
    ("cidrs", "message"),
    [
        (["8.8.8.0/30"], "8.8.8.0/30 is not a private network"),
        (["10.0.0.0/8"], "16777216 addresses are more than 1024"),
        (["10.0.0.0/22", "10.0.4.1"], "1025 addresses"),
        (["fd00::/64"], "no IPv4 network"),
        (["node1"], "no IPv4 network"),
    ],
)
def test_network_that_must_not_be_asked_is_refused_in_one_line(cidrs: list[str], message: str) -> None:
    with pytest.raises(HarnessError, match=message) as refused:
        addresses(cidrs)
    assert "\n" not in str(refused.value)


def test_force_and_limit_open_the_bounds() -> None:
    assert addresses(["8.8.8.8/31"], force=True) == ["8.8.8.8", "8.8.8.9"]
    assert len(addresses(["10.0.0.0/20"], limit=5000)) == 4094


def test_known_backends_come_first_and_once() -> None:
    known = [Candidate("10.0.0.3", 50052, "c"), Candidate("10.0.0.1", 50099, "a")]
    found = candidates(known, ["10.0.0.1", "10.0.0.2", "10.0.0.3"])
    assert [(candidate.endpoint, candidate.node) for candidate in found] == [
        ("10.0.0.3:50052", "c"),
        ("10.0.0.1:50099", "a"),
        ("10.0.0.1:50052", None),
        ("10.0.0.2:50052", None),
    ]


async def test_endpoint_in_use_is_reported_busy_and_not_connected_to() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        host, port = listener.getsockname()
        (found,) = await discover([Candidate(host, port, "a")], in_use={f"{host}:{port}": "leased"})
        assert (found.status, found.reason, found.node) == (BackendStatus.BUSY, "leased", "a")
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_silent_and_closed_addresses_are_shown_only_where_they_are_known() -> None:
    found = [Probe(f"10.0.0.{n}", 1, status, "") for n, status in enumerate(BackendStatus)]
    shown = worth_showing(found, {"10.0.0.4:1"})
    assert {probe.status for probe in shown} == set(BackendStatus) - {BackendStatus.SILENT}
