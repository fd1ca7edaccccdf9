"""Commands and the scripts of ``remote/``, run on a node over SSH."""

import asyncio
import json
import re
from collections.abc import Sequence
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

from harness.cluster.inventory import Node
from harness.common.text import last_line
from harness.errors import HarnessError

REMOTE = Path(__file__).with_name("remote")
_IMPORTS_COMMON = re.compile(r"^from harness\.cluster\.remote\.common import .*\n", re.MULTILINE)


async def run_on(
    node: Node, *argv: str, stdin: str = "", deadline_s: float = 30, root: bool = False
) -> CompletedProcess[str]:
    """Run a command on a node over SSH, with ``root`` as the superuser.

    Raises:
        HarnessError: the node cannot be reached, or the command did not end in time.
    """
    process = await asyncio.create_subprocess_exec(
        *node.ssh(*argv, root=root),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(deadline_s):
            stdout, stderr = await process.communicate(stdin.encode())
    except TimeoutError:
        raise HarnessError(
            f"{node.name} ({node.address}): '{argv[0]}' did not end within {deadline_s:.0f} s over SSH"
        ) from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode == 255:
        raise HarnessError(
            f"{node.name} ({node.address}) cannot be reached over SSH: {last_line(stderr)}; "
            "check that it runs and that the inventory's user and key are right"
        )
    texts = (output.decode(errors="replace") for output in (stdout, stderr))
    return CompletedProcess(argv, process.returncode or 0, *texts)


def source_of(script: str) -> str:
    """Text of a script in ``remote/``, with the folder's ``common.py`` before it instead of its import."""
    text = (REMOTE / script).read_text().replace("from __future__ import annotations\n", "")
    return (REMOTE / "common.py").read_text() + _IMPORTS_COMMON.sub("", text)


def run_as(user: str, group: str | None = None) -> tuple[str, ...]:
    """Words before a command that root runs as a service's user.

    What a service owns or names is worked on with the service's own rights: a link in its folders leads
    nowhere that the service may not go itself.

    Args:
        group: one that the service has besides its user's own.
    """
    return ("runuser", "-u", user, *(("-G", group) if group else ()), "--")


async def run_script(
    node: Node,
    script: str,
    argument: dict[str, Any],
    deadline_s: float = 60,
    root: bool = False,
    user: Sequence[str] = (),
) -> Any:
    """Run one of the scripts in ``remote/`` with the node's own Python; it prints JSON.

    Args:
        user: ``run_as``, with ``root``.

    Raises:
        HarnessError: the node cannot be reached or the script failed.
    """
    argv = (*user, "python3", "-", json.dumps(argument))
    result = await run_on(node, *argv, stdin=source_of(script), deadline_s=deadline_s, root=root)
    if result.returncode != 0:
        raise HarnessError(f"{node.name} ({node.address}): {script} failed: {last_line(result.stderr)}")
    return json.loads(result.stdout)
