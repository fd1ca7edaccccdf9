"""An upgrade on real machines, under load: to another build, and back from one that does not run.

The other builds are the pinned one once more, in a folder of its own: what is tried here is the change-over,
and a second build of llama.cpp from nothing would take as long as all other lab tests.
``benchmarks/upgrade.py`` changes releases.
"""

import importlib.util
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from harness.errors import HarnessError
from harness.settings import REPOSITORY, ROUTER_PORT, state_dir
from tests.lab.lab_under_test import LabUnderTest

pytestmark = pytest.mark.lab
INFO = REPOSITORY / "roles" / "llama_cpp" / "library" / "llama_cpp_info.py"
GOOD, BROKEN = "-DLLAMA_HARNESS_TRIED=good", "-DLLAMA_HARNESS_TRIED=broken"
COPY = """
import hashlib, json, pathlib, shutil, sys
name, flag, broken = sys.argv[1:]
root = pathlib.Path("/opt/llama.cpp")
folder = root / name
if not folder.exists():
    shutil.copytree((root / "current").resolve(), folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["cmake_flags"] = [f for f in manifest["cmake_flags"] if "LLAMA_HARNESS_TRIED" not in f] + [flag]
    if broken == "yes":
        shutil.copyfile("/bin/false", folder / "bin" / "rpc-server")
        binary = (folder / "bin" / "rpc-server").read_bytes()
        manifest["binaries"]["rpc-server"] = hashlib.sha256(binary).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))
"""


def digits(extra: list[str]) -> str:
    """How the role ends the folder's name of such a build."""
    spec = importlib.util.spec_from_file_location("llama_cpp_info", INFO)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return str(module.digits(extra))


def current(lab: LabUnderTest, node: str) -> str:
    return lab.run(node, "readlink", "/opt/llama.cpp/current").stdout.strip()


def stand_beside(lab: LabUnderTest, flag: str, *, broken: bool = False) -> str:
    """The pinned build once more on every node, as the role would have made it with another flag."""
    base = current(lab, "node1").partition("-cpu")[0] + "-cpu"
    name = f"{base}-{digits([flag])}"
    for node in lab.inventory.nodes:
        lab.run(node, "python3", "-c", COPY, name, flag, "yes" if broken else "no")
    return name


def runs(lab: LabUnderTest, node: str, unit: str) -> str:
    """Folder of the build that a unit's process comes from."""
    script = f"readlink /proc/$(systemctl show --property MainPID --value {unit})/exe"
    return Path(lab.run(node, "sh", "-c", script).stdout.strip()).parent.parent.name


class Client(threading.Thread):
    """Asks one request after the other until it is told to stop."""

    def __init__(self, lab: LabUnderTest, model: str) -> None:
        super().__init__()
        self._url = f"http://{lab.inventory.head.address}:{ROUTER_PORT}/v1/completions"
        self._key = (state_dir(lab.path) / "router.key").read_text().strip()
        self._body = json.dumps({"model": model, "prompt": "One", "max_tokens": 4}).encode()
        self._stop_asked = threading.Event()
        self.seen: list[int] = []

    def run(self) -> None:
        while not self._stop_asked.is_set():
            headers = {"Authorization": f"Bearer {self._key}", "Content-Type": "application/json"}
            request = urllib.request.Request(self._url, self._body, headers)
            try:
                with urllib.request.urlopen(request, timeout=300) as answer:
                    answer.read()
                    self.seen.append(answer.status)
            except urllib.error.HTTPError as error:
                self.seen.append(error.code)

    def finish(self) -> None:
        self._stop_asked.set()
        self.join()


@contextmanager
def load(lab: LabUnderTest) -> Iterator[list[int]]:
    """Three clients of the sharded model; gives the statuses of all answers at its end."""
    clients = [Client(lab, "1b-q8_0") for _ in range(3)]
    statuses: list[int] = []
    for client in clients:
        client.start()
    try:
        yield statuses
    finally:
        for client in clients:
            client.finish()
            statuses += client.seen


@pytest.fixture(scope="module")
def pinned(deployed: LabUnderTest) -> Iterator[str]:
    """Folder of the pinned build; whatever a test left, it is the one that runs afterwards."""
    folder = current(deployed, "node1")
    yield folder
    deployed.ansible("upgrade.yml")
    assert current(deployed, "node1") == folder


def test_upgrade_under_load_loses_no_request(deployed: LabUnderTest, pinned: str) -> None:
    name = stand_beside(deployed, GOOD)
    router = deployed.run("node2", "systemctl", "show", "--property=MainPID", "llama-router").stdout
    with load(deployed) as statuses:
        deployed.ansible("upgrade.yml", llama_cpp_cmake_extra=[GOOD])
    assert len(statuses) >= 3
    assert set(statuses) == {200}
    for node in deployed.inventory.nodes:
        assert current(deployed, node) == name
        assert runs(deployed, node, "llama-rpc-server") == name
    assert runs(deployed, "node2", "llama-pool-server") == name
    assert deployed.run("node2", "systemctl", "show", "--property=MainPID", "llama-router").stdout == router


def test_second_upgrade_to_the_same_build_changes_nothing(deployed: LabUnderTest, pinned: str) -> None:
    stand_beside(deployed, GOOD)
    deployed.ansible("upgrade.yml", llama_cpp_cmake_extra=[GOOD])
    assert deployed.ansible("upgrade.yml", llama_cpp_cmake_extra=[GOOD]).changed_tasks == []


def test_build_that_does_not_run_is_taken_back_and_loses_no_request(
    deployed: LabUnderTest, pinned: str
) -> None:
    before = current(deployed, "node1")
    stand_beside(deployed, BROKEN, broken=True)
    with (
        load(deployed) as statuses,
        pytest.raises(HarnessError, match=rf"was not kept: .* runs {before} again"),
    ):
        deployed.ansible("upgrade.yml", llama_cpp_cmake_extra=[BROKEN])
    assert set(statuses) == {200}
    for node in deployed.inventory.nodes:
        assert current(deployed, node) == before
        assert runs(deployed, node, "llama-rpc-server") == before


def test_unknown_build_is_refused_before_anything_is_touched(deployed: LabUnderTest, pinned: str) -> None:
    before = current(deployed, "node1")
    with pytest.raises(HarnessError, match="4242"):
        deployed.ansible("upgrade.yml", llama_cpp_build=4242)
    assert current(deployed, "node1") == before
