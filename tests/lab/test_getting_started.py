"""README word for word against the two-node lab, from nothing: all but its last commands, which take it down.

This file comes first and test_taking_down.py last, so that one deployment serves all files of this folder.
"""

import json
import re
from pathlib import Path

import pytest
from tests.lab.lab_under_test import LabUnderTest
from tests.lab.readme import GET_STARTED, REPOSITORY, TAKE_DOWN, commands, type_in

# The first may have to make the machines' image and build llama.cpp.
pytestmark = pytest.mark.timeout(3000)


@pytest.mark.parametrize("command", GET_STARTED)
def test_readme_command_works(command: str, empty_lab2: LabUnderTest, done: set[str]) -> None:
    printed = type_in(command, empty_lab2)
    if command == "ansible-playbook site.yml":  # `make benchmark` has deployed it before
        recap = printed.partition("PLAY RECAP")[2]
        assert re.findall(r"^(\w+) .*changed=(\d+)", recap, re.MULTILINE) == [("node1", "0"), ("node2", "0")]
        done.add("site.yml")


@pytest.mark.parametrize("name", ["node1", "node2"])
def test_journals_states_and_manifests_are_collected(name: str, empty_lab2: LabUnderTest) -> None:
    node = newest(REPOSITORY / "reports" / "collected") / name
    journal = (node / "journal" / "llama-rpc-server.service.log").read_text()
    assert "Started llama-rpc-server.service" in journal
    assert "Id=llama-node-monitor.service" in (node / "units.txt").read_text()
    (manifest,) = node.joinpath("manifests").glob("*.json")
    assert json.loads(manifest.read_text())["build"] == empty_lab2.pin


def newest(folder: Path) -> Path:
    return max(folder.iterdir(), key=lambda path: path.stat().st_mtime)


def test_readme_opens_with_two_commands_and_ends_with_taking_it_down() -> None:
    assert commands()[:2] == ["make benchmark", "make test"]
    assert commands()[-2:] == TAKE_DOWN
