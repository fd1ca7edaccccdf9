"""README's last commands: what was put on the nodes and on this computer is taken away again."""

from tests.lab.lab_under_test import LabUnderTest
from tests.lab.readme import TAKE_DOWN, type_in

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


def test_teardown_leaves_nothing(deployed: LabUnderTest) -> None:
    before = {name: traces(deployed, name) for name in NODES}
    assert all(any("llama-rpc-server" in line for line in lines) for lines in before.values())
    type_in(TAKE_DOWN[0], deployed)
    assert {name: traces(deployed, name) for name in NODES} == {name: [] for name in NODES}


def test_second_teardown_changes_nothing(deployed: LabUnderTest) -> None:
    assert deployed.ansible("teardown.yml", confirm=True).changed_tasks == []


def test_lab_is_taken_down(deployed: LabUnderTest) -> None:
    assert "nothing of the lab is left" in type_in(TAKE_DOWN[1], deployed)
    assert not deployed.folder.exists()


def traces(lab: LabUnderTest, name: str) -> list[str]:
    return lab.run(name, "sh", "-c", TRACES).stdout.splitlines()
