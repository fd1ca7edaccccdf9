"""Filling tensor caches: an interrupted transfer leaves no process behind."""

import asyncio
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from harness.cluster.inventory import Inventory, Node
from harness.tensor_cache.warm import _Filler

HEAD = Node("head", "10.0.0.1", frozenset({"head"}), {})
NODE = Node("node1", "10.0.0.2", frozenset({"backends"}), {})


def wait_for_pids(folder: Path) -> list[int]:
    """Ids of the two processes, once both run."""
    until = time.monotonic() + 10
    while len(files := list(folder.glob("*.pid"))) < 2 and time.monotonic() < until:
        time.sleep(0.01)
    assert len(files) == 2
    return [int(file.stem) for file in files]


async def test_cancelled_transfer_leaves_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ends run under ssh, which here notes its process id and waits."""
    ssh = tmp_path / "ssh"
    ssh.write_text(f"#!/bin/sh\n: > {tmp_path}/$$.pid\nexec sleep 600\n")
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    plan = SimpleNamespace(model="none", model_path="/srv/none.gguf", file_bytes=1)
    inventory = Inventory(tmp_path, {node.name: node for node in (HEAD, NODE)})
    filler = _Filler(inventory, cast(Any, SimpleNamespace(plan=plan)), push=True)
    task = asyncio.create_task(filler._send(NODE, [(0, 1)]))
    pids = await asyncio.to_thread(wait_for_pids, tmp_path)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
