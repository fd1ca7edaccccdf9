"""A drained backend: its coordinator is replaced after answers in flight, and a restart remembers it."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from harness.cluster.ansible import run_playbook
from harness.errors import HarnessError
from harness.settings import PLAYBOOKS
from tests.integration.router_stack import ADMIN_KEY, RouterStack, wait_for

pytestmark = pytest.mark.integration
ASK = {"model": "smollm2", "prompt": "One two", "max_tokens": 4, "temperature": 0}


@pytest.fixture(scope="module")
def stack(
    llama_build: Path, smollm2: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RouterStack]:
    folder = tmp_path_factory.mktemp("drain")
    state = folder / "state"
    state.mkdir()
    made = RouterStack(llama_build, smollm2, folder, state_dir=str(state))
    yield made
    made.close()


def used(stack: RouterStack) -> list[str]:
    """Nodes of the plan that is ready; none where nothing is."""
    state = stack.admin("coordinator")[1]
    return [share["node"] for share in state["plan"]["shares"]] if state["phase"] == "ready" else []


def test_drain_moves_the_model_and_outlives_the_router(stack: RouterStack) -> None:
    assert stack.call("/v1/completions", ASK)[0] == 200
    assert used(stack) == ["node1", "node2"]
    connection, answer = stack.send(
        "/v1/completions", ASK | {"max_tokens": 60, "stream": True, "ignore_eos": True}
    )
    assert stack.admin("drain", {"nodes": ["node2"]}) == (200, {"drained": ["node2"]})
    assert answer.read().decode().rstrip().endswith("data: [DONE]")
    connection.close()
    wait_for(lambda: used(stack) == ["node1"], 60, "the model on the other backend")
    assert stack.call("/readyz")[1] == {"status": "ready", "drained_backends": 1}
    assert stack.admin("load", {"model": "smollm2", "nodes": ["node2"]})[0] == 409
    assert stack.admin("load", {"model": "smollm2"})[1]["drained"] == ["node2"]

    # A drained machine may be switched off: no load waits for it.
    assert stack.admin("unload", {"deadline_s": 0})[1]["drained"] == ["node2"]
    stack.backends[1].kill()
    stack.router.terminate()
    stack.router.wait(20)
    stack.start_router()
    assert stack.admin("coordinator")[1]["drained"] == ["node2"]
    assert stack.call("/v1/completions", ASK)[0] == 200
    assert used(stack) == ["node1"]

    stack.backends[1].start()
    assert stack.admin("undrain", {"nodes": ["node2"]}) == (200, {"drained": []})
    stack.admin("unload", {"deadline_s": 0})
    assert stack.call("/v1/completions", ASK)[0] == 200
    assert used(stack) == ["node1", "node2"]


def test_playbooks_drain_and_undrain(stack: RouterStack, tmp_path: Path) -> None:
    (tmp_path / "admin.key").write_text(ADMIN_KEY)
    hosts = tmp_path / "hosts.yml"
    hosts.write_text(
        yaml.safe_dump(
            {
                "all": {
                    "vars": {
                        "ansible_connection": "local",
                        "ansible_python_interpreter": sys.executable,
                        "ansible_become": False,
                        "ansible_host": "127.0.0.1",
                        "router_port": stack.port,
                        "llama_harness_state_dir": str(tmp_path),
                    }
                },
                "head": {"hosts": {"node1": None}},
                "backends": {"hosts": {"node1": None, "node2": None}},
            }
        )
    )
    for program, variables, left in (
        (PLAYBOOKS / "drain.yml", {"node": "node2"}, ["node2"]),
        (PLAYBOOKS / "undrain.yml", {"node": "node2"}, []),
        (PLAYBOOKS / "drain.yml", {"node": "node1, node2"}, ["node1", "node2"]),
        (PLAYBOOKS / "undrain.yml", {"node": "node1"}, ["node2"]),
        (PLAYBOOKS / "undrain.yml", {"node": "node2"}, []),
    ):
        run_playbook(program, hosts, variables)
        assert stack.admin("coordinator")[1]["drained"] == left
    for wrong in ({}, {"node": "node9"}):
        with pytest.raises(HarnessError, match="name backends of the inventory"):
            run_playbook(PLAYBOOKS / "drain.yml", hosts, wrong)
    stack.admin("lease", {"owner": "a-run", "seconds": 60})
    with pytest.raises(HarnessError, match="run a-run has this cluster"):
        run_playbook(PLAYBOOKS / "drain.yml", hosts, {"node": "node2"})
    assert stack.admin("coordinator")[1]["drained"] == []


@pytest.mark.parametrize("verb", ["drain", "undrain"])
def test_unknown_backend_is_refused(stack: RouterStack, verb: str) -> None:
    status, body = stack.admin(verb, {"nodes": ["node1", "node9"]})
    assert status == 400
    assert stack.admin("coordinator")[1]["drained"] == []
    assert "no backend on node9; there are: node1, node2" in json.dumps(body)
