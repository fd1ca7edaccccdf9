"""``harness plan``, ``calibrate``, ``warm`` and ``cache`` on real nodes, as somebody types them."""

import json
import subprocess
from typing import Any

import pytest
from harness.settings import state_dir
from tests.lab.lab_under_test import LabUnderTest
from tests.lab.readme import REPOSITORY

MODEL = "1b-q8_0"
NODES = ("node1", "node2")
ONE_BYTE = "import sys; f = open(sys.argv[1], 'r+b'); b = f.read(1); f.seek(0); f.write(bytes([b[0] ^ 1]))"


def harness(lab: LabUnderTest, *arguments: str) -> str:
    """Standard output of one command against the lab."""
    argv = [str(REPOSITORY / ".venv/bin/harness"), *arguments, "--inventory", str(lab.path)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr or done.stdout
    return done.stdout


def shares(lab: LabUnderTest) -> dict[str, int]:
    """Layers by node, as ``harness plan`` gives them."""
    plan = json.loads(harness(lab, "plan", MODEL, "--json"))["plan"]
    return {share["node"]: share["layers"] for share in plan["shares"]}


def caches(lab: LabUnderTest) -> dict[str, Any]:
    """``harness cache status`` by node."""
    return {one["node"]: one for one in json.loads(harness(lab, "cache", "status", "--json"))}


@pytest.fixture
def cold_caches(deployed: LabUnderTest) -> LabUnderTest:
    """The lab with empty tensor caches."""
    for node in NODES:
        deployed.run(node, "find", "/var/cache/llama.cpp/rpc", "-type", "f", "-delete")
    return deployed


def test_warm_fills_the_caches_and_mends_what_was_altered(cold_caches: LabUnderTest) -> None:
    lab = cold_caches
    filled = {one["node"]: one for one in json.loads(harness(lab, "warm", MODEL, "--json"))}
    assert all(filled[node]["written"] == filled[node]["size"] > 0 for node in NODES)
    seen = caches(lab)
    assert all(
        seen[node]["needed_there"] == seen[node]["needed"] == filled[node]["tensors"] for node in NODES
    )
    again = json.loads(harness(lab, "warm", MODEL, "--json"))
    assert [one["written"] for one in again] == [0, 0]

    altered = lab.run("node1", "find", seen["node1"]["folder"], "-type", "f", "-name", "????????????????")
    path = altered.stdout.splitlines()[0]
    lab.run("node1", "python3", "-c", ONE_BYTE, path)
    assert path.rpartition("/")[2] in harness(lab, "cache", "verify")
    assert caches(lab)["node1"]["needed_there"] == filled["node1"]["tensors"] - 1
    mended = {one["node"]: one["written"] for one in json.loads(harness(lab, "warm", MODEL, "--json"))}
    assert mended["node2"] == 0
    assert 0 < mended["node1"] < filled["node1"]["size"]


def test_calibrated_speeds_are_kept_until_they_are_forgotten(deployed: LabUnderTest) -> None:
    lab = deployed
    measured = json.loads(harness(lab, "calibrate", "--nodes", "node1", "--json"))["nodes"]
    assert [(one["node"], one["model"]) for one in measured] == [("node1", MODEL)]
    assert measured[0]["bytes_per_s"] > 0
    assert json.loads(harness(lab, "calibrate", "--show", "--json"))["nodes"] == measured
    assert set(shares(lab)) == set(NODES), "speeds decide once every node has one"
    assert json.loads(harness(lab, "calibrate", "--forget", "--json"))["nodes"] == []


def test_plan_that_cannot_fit_names_what_is_missing_and_a_way_out(deployed: LabUnderTest) -> None:
    argv = [str(REPOSITORY / ".venv/bin/harness"), "plan", MODEL, "--context", "9000000"]
    done = subprocess.run(
        [*argv, "--inventory", str(deployed.path)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "GiB" in line
    assert "context" in line
    assert (state_dir(deployed.path) / "admin.key").read_text().strip() not in line
