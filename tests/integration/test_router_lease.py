"""Deployments ask a real router whether a run measures on its cluster, and leave it alone then."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from harness.cluster.ansible import run_playbook
from harness.errors import HarnessError
from tests.integration.router_stack import ADMIN_KEY, RouterStack, free_port

pytestmark = pytest.mark.integration

PLAY = """
- hosts: head
  gather_facts: false
  tasks:
    - ansible.builtin.include_role: {{name: {role}, tasks_from: lease}}
"""
HOSTS = """
head: {hosts: {node1: {ansible_host: 127.0.0.1, ansible_connection: local}}}
"""


@pytest.fixture
def stack(llama_build: Path, smollm2: Path, tmp_path: Path) -> Iterator[RouterStack]:
    stack = RouterStack(llama_build, smollm2, tmp_path)
    yield stack
    stack.close()


@pytest.fixture
def deploy(stack: RouterStack, tmp_path: Path) -> Callable[..., None]:
    """What a deployment asks first."""
    (tmp_path / "hosts.yml").write_text(HOSTS)
    (tmp_path / "play.yml").write_text(PLAY.format(role=Path(__file__).parents[2] / "roles" / "router"))
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "admin.key").write_text(ADMIN_KEY)

    def deploy(port: int = stack.port, **more: object) -> None:
        variables = {
            "ansible_python_interpreter": "{{ ansible_playbook_python }}",
            "router_state_dir": str(tmp_path / "keys"),
            "router_port": port,
        }
        run_playbook(tmp_path / "play.yml", tmp_path / "hosts.yml", variables | more)

    return deploy


class Broken(BaseHTTPRequestHandler):
    """A double of a router whose own code fails."""

    def do_POST(self) -> None:
        self.send_error(500)


@contextmanager
def broken_router() -> Iterator[int]:
    """Its port."""
    with HTTPServer(("127.0.0.1", 0), Broken) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def test_deployment_with_another_computers_key_is_refused(
    stack: RouterStack, deploy: Callable[..., None], tmp_path: Path
) -> None:
    (tmp_path / "keys" / "admin.key").write_text("another-key")
    with pytest.raises(HarnessError, match=r"key is not the router's: copy the keys .*router_force=true"):
        deploy()
    deploy(router_force=True)


def test_deployment_does_not_pass_a_router_that_cannot_say(
    stack: RouterStack, deploy: Callable[..., None]
) -> None:
    silent = r"the router does not answer: .*(500|timed out).*router_force=true"
    with broken_router() as port, pytest.raises(HarnessError, match=silent):
        deploy(port=port)
    stack.router.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(HarnessError, match=silent):
            deploy()
        deploy(router_force=True)
    finally:
        stack.router.send_signal(signal.SIGCONT)


def test_deployment_waits_for_nobody_but_a_run(stack: RouterStack, deploy: Callable[..., None]) -> None:
    deploy()
    deploy(port=free_port())
    assert stack.admin("lease", {"owner": "20261130-default", "seconds": 600})[0] == 200
    with pytest.raises(HarnessError, match=r"run 20261130-default has this cluster.*nothing was changed"):
        deploy()
    deploy(router_force=True)
