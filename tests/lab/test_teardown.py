"""What site.yml put on a node, teardown.yml takes away; collect.yml fetches what it said before."""

import json
from pathlib import Path

import pytest
from lab_under_test import LabUnderTest

HERE = Path(__file__).parent
NODES = ("node1", "node2")

# What may tell of the harness on a node: units, users, folders, rules, failed units.
TRACES = """
systemctl list-unit-files --no-legend 'llama-*'
systemctl list-units --all --no-legend --plain 'llama-*'
getent passwd | grep ^llama
getent group | grep ^llama
ls -d /opt/llama* /etc/llama* /usr/local/lib/llama* 2>/dev/null
ls -d /var/lib/llama* /var/log/llama* /var/cache/llama* 2>/dev/null
ls -d /etc/systemd/system/*/llama-* /etc/systemd/system/llama-* 2>/dev/null
nft list tables | grep llama
pgrep -a 'rpc-server|llama'
true
"""


@pytest.fixture(scope="module")
def collected(deployed: LabUnderTest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("collected")
    deployed.ansible("collect.yml", collect_dest=str(folder))
    return folder


@pytest.mark.parametrize("name", NODES)
def test_journals_states_and_manifests_are_collected(collected: Path, name: str) -> None:
    node = collected / name
    assert (
        "Started llama-rpc-server.service" in (node / "journal" / "llama-rpc-server.service.log").read_text()
    )
    assert "Id=llama-node-monitor.service" in (node / "units.txt").read_text()
    (manifest,) = node.joinpath("manifests").glob("*.json")
    assert json.loads(manifest.read_text())["build"] == 6751


def test_teardown_leaves_nothing(deployed: LabUnderTest, collected: Path) -> None:
    before = {name: traces(deployed, name) for name in NODES}
    assert all(any("llama-rpc-server" in line for line in lines) for lines in before.values())
    deployed.ansible("teardown.yml")
    assert {name: traces(deployed, name) for name in NODES} == {name: [] for name in NODES}


def test_second_teardown_changes_nothing(deployed: LabUnderTest) -> None:
    assert deployed.ansible("teardown.yml").changed_tasks == []


def traces(lab: LabUnderTest, name: str) -> list[str]:
    return lab.run(name, "sh", "-c", TRACES).stdout.splitlines()
