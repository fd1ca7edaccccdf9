"""What keeps a lab from starting."""

import os
import re
from ipaddress import IPv4Network
from pathlib import Path

import pytest
from harness.lab import preflight
from harness.lab.link import bits_per_second, tbf
from harness.lab.preflight import is_foreign, obstacles, overlaps
from harness.lab.spec import LabSpec

ROUTES = [
    {"dst": "default", "gateway": "192.168.1.254", "dev": "eth0"},
    {"dst": "192.168.1.0/24", "dev": "eth0"},
    {"dst": "10.77.43.0/24", "dev": "llh-lab"},
    {"dst": "10.77.43.255", "dev": "llh-lab"},
    {"dst": "10.8.0.0/16", "dev": "tun0"},
]


@pytest.mark.parametrize(
    ("wanted", "ignore", "taken"),
    [
        ("10.77.44.0/24", set(), []),
        ("10.77.43.0/24", {"llh-lab"}, []),
        ("10.77.43.128/25", set(), [("llh-lab", "10.77.43.0/24")]),
        ("10.8.3.0/24", {"llh-lab"}, [("tun0", "10.8.0.0/16")]),
        ("192.0.0.0/8", set(), [("eth0", "192.168.1.0/24")]),
    ],
)
def test_overlapping_routes_are_named_once_and_the_default_route_is_none(
    wanted: str, ignore: set[str], taken: list[tuple[str, str]]
) -> None:
    overlapping = overlaps(IPv4Network(wanted), ROUTES, ignore)
    assert [(device, str(network)) for device, network in overlapping] == taken


def test_without_root_no_other_obstacle_is_listed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    lab = LabSpec(name="t", network=IPv4Network("10.0.0.0/24"), cache=tmp_path)
    assert obstacles(lab) == ["the lab needs root: run this as root or with sudo"]


def small_lab(cache: Path, **needs: int) -> LabSpec:
    machine = {"name": "node1", "address": "10.9.8.11", "memory": 1 << 20}
    return LabSpec.model_validate(
        {
            "name": "t",
            "network": "10.9.8.0/24",
            "root": cache / "labs",
            "cache": cache,
            "machines": [machine],
            **needs,
        }
    )


@pytest.fixture
def ready_computer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Root, with every tool and nothing in the way: only size is looked at."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    for look in ("_system", "_tools", "_names", "_network"):
        monkeypatch.setattr(preflight, look, lambda *_: [])


@pytest.mark.usefixtures("ready_computer")
def test_computer_too_small_for_the_models_is_refused_with_both_sizes(tmp_path: Path) -> None:
    assert obstacles(small_lab(tmp_path)) == []
    (memory,) = obstacles(small_lab(tmp_path, models_memory=1 << 50))
    assert re.match(
        r"memory: the largest model and 1 machines need 1048576\.3 GiB, and this computer has ", memory
    )
    (disk,) = obstacles(small_lab(tmp_path, models_disk=1 << 50))
    assert re.match(
        r"disk: (images 2\.0 GiB \+ )?models 1048576\.0 GiB = .* has .* GiB: free some, or ", disk
    )


@pytest.mark.usefixtures("ready_computer")
def test_machine_limit_above_the_memory_of_the_computer_is_no_obstacle(tmp_path: Path) -> None:
    lab = small_lab(tmp_path)
    large = lab.machines[0].model_copy(update={"memory": 1 << 50})
    assert obstacles(lab.model_copy(update={"machines": [large]})) == []


def test_a_claim_cut_short_is_not_a_foreign_folder(tmp_path: Path) -> None:
    assert not is_foreign(tmp_path / "absent")
    (tmp_path / ".lab.json.partial").write_text("{")
    assert not is_foreign(tmp_path)
    (tmp_path / "diary").write_text("mine")
    assert is_foreign(tmp_path)


def test_the_bucket_holds_four_milliseconds_of_the_rate_and_never_less_than_one_large_segment() -> None:
    assert bits_per_second("1gbit") == 1e9
    assert tbf("1gbit") == ["tbf", "rate", "1gbit", "burst", "500000", "latency", "50ms"]
    assert tbf("10mbit")[4] == "65536"
