"""A node's link and units, from the output of its commands."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
from harness.cluster.ssh import REMOTE

ETHERNET = {"kind": "fq_codel", "handle": "0:", "root": True, "options": {"limit": 10240}}
SHAPED = {"kind": "tbf", "handle": "8001:", "root": True, "options": {"rate": 12500000, "burst": 65536}}
SCORES = """\
UNIT                                 EXPOSURE PREDICATE HAPPY
llama-node-monitor.service                1.5 OK        :-)
llama-rpc-server.service                  1.0 OK        :-)
ssh.service                               9.6 UNSAFE    :-{
"""


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """The script as the node's Python loads it."""
    spec = importlib.util.spec_from_file_location("facts", REMOTE / "facts.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def card(folder: Path, speed: str, *, device: bool) -> Path:
    """A network card as /sys shows it."""
    (folder / "eth0").mkdir(parents=True)
    (folder / "eth0" / "speed").write_text(speed)
    if device:
        (folder / "eth0" / "device").mkdir()
    return folder


def test_exposure_is_that_of_the_requested_units(script: ModuleType) -> None:
    units = ["llama-rpc-server.service", "llama-router.service"]
    assert script.exposures(SCORES, units) == {"llama-rpc-server.service": 1.0}
    assert script.exposures("", units) == {}


def test_a_shaped_link_has_the_rate_of_its_token_bucket(script: ModuleType, tmp_path: Path) -> None:
    facts = script.link("eth0", json.dumps([SHAPED]), card(tmp_path, "1000", device=True))
    assert facts == {"interface": "eth0", "link_bits_per_s": 100e6, "link_source": "token bucket"}


def test_a_card_has_the_rate_that_its_driver_negotiated(script: ModuleType, tmp_path: Path) -> None:
    facts = script.link("eth0", json.dumps([ETHERNET]), card(tmp_path, "2500\n", device=True))
    assert facts == {"interface": "eth0", "link_bits_per_s": 2.5e9, "link_source": "driver"}


@pytest.mark.parametrize(("speed", "device"), [("10000\n", False), ("-1\n", True), ("", True)])
def test_a_rate_that_is_not_negotiated_is_unknown(
    script: ModuleType, tmp_path: Path, speed: str, device: bool
) -> None:
    assert script.link("eth0", "", card(tmp_path, speed, device=device)) == {"interface": "eth0"}


def test_interface_is_the_one_with_the_address(script: ModuleType) -> None:
    text = json.dumps([{}, {"ifname": "host0", "addr_info": [{"local": "10.0.0.1"}]}])
    assert script.interface(text) == "host0"
    assert script.interface("") is None
