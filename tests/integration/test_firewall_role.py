"""The firewall tables of the roles, loaded and kept in a network namespace of their own."""

import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import jinja2
import pytest

ROLES = Path(__file__).parents[2] / "roles"
KEEPER = ROLES / "firewall" / "files" / "keep_firewall.py"
VARIABLES = {
    "ansible_managed": "test",
    "rpc_server_port": 50052,
    "rpc_server_admitted": ["10.0.0.12"],
    "redis_address": "10.0.0.12",
    "redis_port": 6379,
    "_redis_clients": ["10.0.0.11", "10.0.0.0/24"],
    "pool_server_port": 18081,
    "_pool_server_clients": ["10.0.0.12"],
    "_router_guarded": ["10.0.0.11 . 50052", "127.0.0.1 . 18080"],
    "_router_local_users": ["root"],
}
TABLES = {
    "rpc_server": "llama_rpc",
    "redis": "llama_redis",
    "pool_server": "llama_pool",
    "router": "llama_router",
}
PIPE = subprocess.PIPE
UNTIL_LOADED = "for i in $(seq 300); do nft list tables | grep -q llama_rpc && break; sleep 0.1; done"
Run = Callable[..., str]

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(
        os.geteuid() != 0 or not shutil.which("nft"),
        reason="a network namespace with rules needs root and nft",
    ),
]


@pytest.fixture
def enter() -> Iterator[list[str]]:
    """The words before a command that runs it in a network namespace of this test."""
    with subprocess.Popen(["unshare", "--net", "sh", "-c", "echo; exec sleep 300"], stdout=PIPE) as holder:
        assert holder.stdout
        holder.stdout.readline()
        yield ["nsenter", f"--net=/proc/{holder.pid}/ns/net"]
        holder.kill()


@pytest.fixture
def run(enter: list[str]) -> Run:
    """Runs a command there; its output."""

    def inside(*argv: str) -> str:
        return subprocess.run([*enter, *argv], check=True, capture_output=True, text=True).stdout

    return inside


@contextmanager
def kept(enter: list[str], table: str, file: Path) -> Iterator[subprocess.Popen[str]]:
    """The keeper of a table, from the moment at which systemd would hear that it is loaded."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        address = file.with_suffix(".notify")
        systemd.bind(str(address))
        argv = [*enter, sys.executable, "-IS", str(KEEPER), table, str(file)]
        environment = {**os.environ, "NOTIFY_SOCKET": str(address)}
        with subprocess.Popen(argv, env=environment, stderr=PIPE, text=True) as keeper:
            try:
                assert systemd.recv(64) == b"READY=1"
                yield keeper
            finally:
                keeper.kill()


def said(keeper: subprocess.Popen[str]) -> str:
    """The next line of its log; waits for it, at most a minute."""
    assert keeper.stderr
    end = threading.Timer(60, keeper.kill)
    end.start()
    try:
        return keeper.stderr.readline().strip()
    finally:
        end.cancel()


def rules(role: str, folder: Path) -> Path:
    """The rules of a role as a file."""
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined)  # noqa: S701 - no HTML
    text = (ROLES / role / "templates" / "firewall.nft.j2").read_text()
    path = folder / f"{role}.nft"
    path.write_text(environment.from_string(text).render(VARIABLES))
    return path


@pytest.mark.parametrize("role", TABLES)
def test_table_is_its_own_and_loads_again_unchanged(run: Run, tmp_path: Path, role: str) -> None:
    path = rules(role, tmp_path)
    run("nft", "--file", str(path))
    first = run("nft", "list", "ruleset")
    run("nft", "--file", str(path))
    assert run("nft", "list", "ruleset") == first
    assert run("nft", "list", "tables").split() == ["table", "inet", TABLES[role]]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ("flush ruleset", "was gone"),
        ("delete table inet llama_rpc", "was gone"),
        ("flush chain inet llama_rpc input", "was changed"),
        ("add element inet llama_rpc admitted { 10.0.0.66 }", "was changed"),
    ],
)
def test_table_that_was_removed_or_changed_is_loaded_again(
    enter: list[str], run: Run, tmp_path: Path, change: str, what: str
) -> None:
    with kept(enter, "llama_rpc", rules("rpc_server", tmp_path)) as keeper:
        before = run("nft", "list", "table", "inet", "llama_rpc")
        for _ in range(3):
            run("nft", *change.split())
            assert said(keeper) == f"<4>table inet llama_rpc {what}; it is loaded again"
            assert run("nft", "list", "table", "inet", "llama_rpc") == before


def test_table_is_back_after_removals_that_meet_its_loading(
    enter: list[str], run: Run, tmp_path: Path
) -> None:
    with kept(enter, "llama_rpc", rules("rpc_server", tmp_path)):
        before = run("nft", "list", "table", "inet", "llama_rpc")
        for _ in range(10):
            run("sh", "-c", "for i in $(seq 20); do nft flush ruleset; done")
            run("sh", "-c", UNTIL_LOADED)
            found = run("nft", "list", "ruleset")
            assert found == before


def test_change_of_another_table_is_left_alone(enter: list[str], run: Run, tmp_path: Path) -> None:
    with kept(enter, "llama_rpc", rules("rpc_server", tmp_path)) as keeper:
        run("nft", "add", "table", "inet", "other")
        run("nft", "delete", "table", "inet", "llama_rpc")
        assert said(keeper) == "<4>table inet llama_rpc was gone; it is loaded again"
        assert "table inet other" in run("nft", "list", "tables")


def test_new_rules_are_kept_after_a_reload_without_a_warning(
    enter: list[str], run: Run, tmp_path: Path
) -> None:
    file = rules("rpc_server", tmp_path)
    with kept(enter, "llama_rpc", file) as keeper:
        file.write_text(file.read_text().replace("10.0.0.12", "10.0.0.13"))
        run("nft", "--file", str(file))  # as ExecReload= does
        run("nft", "delete", "table", "inet", "llama_rpc")
        run("sh", "-c", UNTIL_LOADED)
        assert "10.0.0.13" in run("nft", "list", "table", "inet", "llama_rpc")
        keeper.kill()
        assert keeper.stderr
        assert "was changed" not in keeper.stderr.read()


def test_table_that_cannot_be_loaded_ends_the_keeper_with_the_reason(
    enter: list[str], run: Run, tmp_path: Path
) -> None:
    file = rules("rpc_server", tmp_path)
    with kept(enter, "llama_rpc", file) as keeper:
        file.write_text("no rules")
        run("nft", "flush", "ruleset")
        assert said(keeper).startswith("table inet llama_rpc cannot be loaded: ")
        assert keeper.wait() == 1


SERVE = """
import signal, socket, sys
server = socket.create_server((sys.argv[1], int(sys.argv[2])))
print(flush=True)
signal.pause()
"""
STRANGER = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=5).close()
    print("connected")
except OSError as error:
    print(type(error).__name__)
"""


def test_no_other_local_user_reaches_the_backends_and_the_coordinator(
    enter: list[str], run: Run, tmp_path: Path
) -> None:
    run("ip", "link", "set", "lo", "up")
    run("ip", "address", "add", "10.0.0.11/32", "dev", "lo")
    run("nft", "--file", str(rules("router", tmp_path)))
    for address, port in (("10.0.0.11", 50052), ("127.0.0.1", 18080)):
        argv = [*enter, sys.executable, "-c", SERVE, address, str(port)]
        with subprocess.Popen(argv, stdout=PIPE) as server:
            assert server.stdout
            server.stdout.readline()
            connect = ("/usr/bin/python3", "-c", STRANGER, address, str(port))
            nobody = ("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups")
            assert run(*nobody, *connect).strip() == "ConnectionRefusedError"
            assert run(*connect).strip() == "connected"
            server.kill()
