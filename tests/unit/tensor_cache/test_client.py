"""What is done on nodes for the tensor caches: with the rights of the service that owns or names the file."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from harness.cluster.inventory import Inventory, Node
from harness.cluster.ssh import source_of
from harness.common.text import last_line
from harness.contracts.plan import Offer
from harness.errors import HarnessError
from harness.tensor_cache.client import cache_status, list_cache, make_cold, run_as
from harness.tensor_cache.warm import _Filler
from tests.unit.trials.cluster_double import node_double, plan

NAME = "00000000000000aa"
OWNER, ROUTER = run_as("llama-rpc"), run_as("llama-router")


class Commands:
    """Answers for nodes: prints what a test wants, and keeps what was run where."""

    def __init__(self, answer: Callable[[Sequence[str]], str]) -> None:
        self.answer = answer
        self.run: list[tuple[str, ...]] = []

    def node(self, name: str, *groups: str, **variables: str) -> Node:
        def answer(argv: Sequence[str]) -> list[str]:
            self.run.append(tuple(argv))
            return ["sh", "-c", 'cat >/dev/null; printf %s "$1"', "sh", self.answer(argv)]

        node = node_double(name, *groups, answer=answer)
        node.variables.update(variables)
        return node


async def test_caches_are_emptied_as_their_owner_and_the_model_is_opened_as_the_routers_user() -> None:
    def answer(argv: Sequence[str]) -> str:
        if json.loads(argv[-1])["do"] == "empty":
            return '{"files": 1, "bytes": 2}'
        return '{"resident_before": {"/m": 5}, "resident_after": {"/m": 0}}'

    commands = Commands(answer)
    head = commands.node(
        "head", "head", "backends", router_ollama_models="/ollama", router_ollama_group="models"
    )
    done = await make_cold([head, commands.node("b", "backends")], head, "/m")
    assert done["head"]["rpc_cache_removed"] == done["b"]["rpc_cache_removed"] == {"files": 1, "bytes": 2}
    assert (done["head"]["resident_after"], done["b"]["resident_after"]) == ({"/m": 0}, {})
    emptied = [argv for argv in commands.run if '"empty"' in argv[-1]]
    (dropped,) = [argv for argv in commands.run if argv not in emptied]
    assert [argv[: len(OWNER)] for argv in emptied] == [OWNER] * 2
    assert json.loads(dropped[-1])["user"] == list(run_as("llama-router", "models"))


def test_script_that_empties_a_cache_follows_no_link(tmp_path: Path) -> None:
    cache, elsewhere = tmp_path / "rpc", tmp_path / "elsewhere"
    cache.mkdir()
    elsewhere.mkdir()
    (cache / NAME).write_bytes(b"12345")
    (elsewhere / "kept").touch()
    (cache / "folder").symlink_to(elsewhere)
    (cache / "file").symlink_to(elsewhere / "kept")
    assert run_script({"do": "empty", "folder": str(cache)}) == {"files": 1, "bytes": 5}
    assert (elsewhere / "kept").exists()


def run_script(argument: dict[str, Any]) -> Any:
    argv = [sys.executable, "-I", "-", json.dumps(argument)]
    done = subprocess.run(argv, input=source_of("model_file.py"), text=True, capture_output=True, timeout=60)
    if done.returncode:
        raise HarnessError(last_line(done.stderr))
    return json.loads(done.stdout)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give up rights")
def test_root_opens_what_the_router_names_with_the_routers_rights(tmp_path: Path) -> None:
    secret = tmp_path / "shadow"
    secret.write_bytes(b"secret")
    secret.chmod(0o600)
    argument = {"do": "drop_pages", "path": str(secret), "user": run_as("nobody")}
    with pytest.raises(HarnessError, match="shadow cannot be opened by runuser -u nobody"):
        run_script(argument)
    dropped = run_script(argument | {"user": run_as("root")})
    assert dropped["resident_after"].keys() == {str(secret)}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give up rights")
def test_pipe_in_place_of_a_model_is_refused_at_once(tmp_path: Path) -> None:
    pipe = tmp_path / "model.gguf"
    os.mkfifo(pipe)
    with pytest.raises(HarnessError, match=r"model\.gguf is not a regular file"):
        run_script({"do": "drop_pages", "path": str(pipe), "user": run_as("root")})


async def test_hostile_cache_costs_the_command_nothing() -> None:
    listing = f"/c/rpc/{NAME} 7\n/c/rpc/x\nsome text\n/c/rpc/\n{NAME} nine\n"
    commands = Commands(lambda argv: listing if "sh" in argv else "[[1]]" if "cat" in argv else "")
    node = commands.node("b", "backends")
    assert await list_cache(node) == {NAME: 7}
    assert (await cache_status(node)).needed_there == 0
    assert {argv[: len(OWNER)] for argv in commands.run} == {OWNER}
    commands.answer = lambda argv: "{" if "cat" in argv else ""
    with pytest.raises(HarnessError, match=r"b: .*needed\.json is damaged"):
        await cache_status(node)


@pytest.mark.parametrize("readable", [True, False], ids=["own copy", "pushed"])
async def test_model_is_read_as_the_router_and_the_cache_is_filled_as_its_owner(
    tmp_path: Path, readable: bool
) -> None:
    def answer(argv: Sequence[str]) -> str:
        if "fingerprint" in argv[-1]:
            found = readable or argv[: len(ROUTER)] == ROUTER
            return json.dumps({"path": "/m", "fingerprint": "f"} if found else None)
        return f"{NAME} 1 hashed 0\n" if "hash" in argv else f"{NAME} 1 written 0\n" if "fill" in argv else ""

    commands = Commands(answer)
    head, node = commands.node("head", "head"), commands.node("b", "backends")
    offer = Offer.model_construct(plan=plan(), tensors={"b": [(0, 1)]})
    filler = _Filler(Inventory(tmp_path, {one.name: one for one in (head, node)}), offer, push=False)
    await filler.fill(node, lambda line: None)
    for argv in commands.run:
        reads_on_head = "hash" in argv or "read" in argv or ('"paths": ["/m"]' in argv[-1])
        assert argv[: len(OWNER)] == (ROUTER if reads_on_head else OWNER), argv
    assert any("fill" in argv for argv in commands.run) == readable
    assert any("store" in argv for argv in commands.run) != readable
