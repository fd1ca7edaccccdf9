"""Machines that differ: Debian 12 and 13, root and a user with sudo, two platforms of one build.

The builds of the other platforms are this computer's own with another manifest, in a cache that only these
tests use: the deployment is tested, and two more builds of llama.cpp would take as long as all lab tests.
"""

import hashlib
import io
import json
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.cluster.ansible import PlaybookResult, run_playbook
from harness.errors import HarnessError
from harness.monitor.sample import Sample
from harness.release_proof.local import local_build
from harness.settings import PLAYBOOKS, cache_dir
from rich.console import Console
from tests.lab.lab_under_test import LabUnderTest

pytestmark = pytest.mark.lab
HERE = Path(__file__).parent
MONITOR = HERE / "node_monitor_only.yml"
NAMES = HERE / "build_names.yml"


@pytest.fixture(scope="module")
def mixed() -> Iterator[LabUnderTest]:
    """The mixed lab, booted."""
    lab = LabUnderTest(HERE / "mixed")
    if lab.folder.exists():
        lab.down()
    try:
        lab.up()
        yield lab
    finally:
        lab.down()


class Cluster:
    """The mixed lab, with a cache of builds of its own."""

    def __init__(self, lab: LabUnderTest, cache: Path) -> None:
        self.lab, self._cache = lab, cache

    def ansible(self, playbook: str, /, *, console: Console | None = None, **more: Any) -> PlaybookResult:
        limit = more.pop("limit", None)
        variables = {"llama_cpp_cache_dir": str(self._cache)} | more
        return run_playbook(PLAYBOOKS / playbook, self.lab.path, variables, limit, "mixed", console=console)

    def add_builds(self) -> None:
        """Put a package for each node into the cache."""
        local_build(self.lab.pin)
        names, builds = self._cache / "names", self._cache / "builds"
        names.mkdir()
        builds.mkdir()
        run_playbook(NAMES, self.lab.path, {"build_names": str(names)})
        named = {path.stem: json.loads(path.read_text()) for path in names.iterdir()}
        own = cache_dir() / "builds" / named["node1"]["package"]
        for build in named.values():
            repack(own, builds / build["package"], build)


def repack(own: Path, package: Path, build: dict[str, Any]) -> None:
    """Write a package with the files of another one and a manifest of its own, and the note of its hash."""
    with tarfile.open(own) as source, tarfile.open(package, "w:gz") as target:
        for member in source:
            data = source.extractfile(member)
            content = data.read() if data else b""
            if member.name == "manifest.json":
                manifest = json.loads(content) | {name: build[name] for name in ("platform", "cmake_flags")}
                content = json.dumps(manifest).encode()
                member.size = len(content)
            target.addfile(member, io.BytesIO(content))
    note = {
        "sha256": hashlib.sha256(package.read_bytes()).hexdigest(),
        "binaries": manifest["binaries"],
        "from": "localhost",
    }
    Path(f"{package}.json").write_text(json.dumps(note))


@pytest.fixture(scope="module")
def cluster(mixed: LabUnderTest, models: None, tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    """The mixed lab with everything deployed."""
    cluster = Cluster(mixed, tmp_path_factory.mktemp("cache"))
    cluster.add_builds()
    cluster.ansible("site.yml")
    return cluster


def sudo(lab: LabUnderTest, node: str, *argv: str) -> str:
    return lab.run(node, "sudo", "-n", *argv).stdout


def config(lab: LabUnderTest) -> dict[str, Any]:
    """The configuration of the router."""
    text = lab.run("node1", "cat", "/etc/llama-harness/router.json").stdout
    return dict(json.loads(text))


def backends(lab: LabUnderTest) -> dict[str, int]:
    """Memory of each backend that the router knows, in bytes."""
    return {backend["node"]: backend["memory_bytes"] for backend in config(lab)["backends"]}


def test_machines_differ_in_release_and_user(mixed: LabUnderTest) -> None:
    releases = {
        node: mixed.run(node, "sh", "-c", ". /etc/os-release; echo $VERSION_ID").stdout.strip()
        for node in mixed.inventory.nodes
    }
    assert releases == {"node1": "12", "node2": "13", "node3": "12"}
    assert mixed.run("node2", "id", "--user", "--name").stdout.strip() == "admin"
    assert sudo(mixed, "node2", "id", "--user").strip() == "0"


def test_monitor_runs_on_debian_13(mixed: LabUnderTest) -> None:
    mixed.ansible(MONITOR, limit="node2")
    assert mixed.ansible(MONITOR, limit="node2").changed_tasks == []
    ring = sudo(mixed, "node2", "sh", "-c", "cat /var/lib/llama-harness/monitor/*.jsonl | tail -n 1")
    assert Sample.model_validate_json(ring).node == "node2"


@pytest.mark.long
def test_every_machine_is_a_backend_with_the_build_of_its_platform(cluster: Cluster) -> None:
    lab = cluster.lab
    assert set(backends(lab)) == {"node1", "node2", "node3"}
    names = {sudo(lab, node, "readlink", "/opt/llama.cpp/current") for node in ("node1", "node2")}
    names.add(lab.run("node3", "readlink", "/opt/llama.cpp/current").stdout)
    assert len(names) == 3


@pytest.mark.long
@pytest.mark.parametrize("playbook", ["site.yml", "upgrade.yml"])
def test_repeat_changes_nothing(cluster: Cluster, playbook: str) -> None:
    assert cluster.ansible(playbook).changed_tasks == []


@pytest.mark.long
def test_limit_without_the_head_node_is_refused(cluster: Cluster) -> None:
    with pytest.raises(HarnessError, match="--limit must contain the head node"):
        cluster.ansible("site.yml", limit="node3")
    with pytest.raises(HarnessError, match=r"run it without --limit \(it leaves out node1"):
        cluster.ansible("upgrade.yml", limit="node2,node3")


@pytest.mark.long
def test_node_that_is_down_does_not_stop_the_others(cluster: Cluster) -> None:
    lab = cluster.lab
    before = backends(lab)
    lab.run("node3", "systemctl", "poweroff", check=False)
    wait_until_off(lab, "node3")
    try:
        said = io.StringIO()
        with pytest.raises(HarnessError, match=r"node3: .*unreachable"):
            cluster.ansible("site.yml", console=Console(file=said), router_turn_s=17)
        assert "Not deployed: node3." in said.getvalue()
        assert backends(lab) == before
        assert config(lab)["turn_s"] == 17
    finally:
        lab.up()
    cluster.ansible("site.yml")
    assert backends(lab) == before


def wait_until_off(lab: LabUnderTest, node: str, deadline_s: float = 60) -> None:
    until = time.monotonic() + deadline_s
    while lab.run(node, "true", check=False).returncode == 0:
        assert time.monotonic() < until
        time.sleep(0.5)
