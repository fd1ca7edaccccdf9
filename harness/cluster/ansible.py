"""Runs playbooks from Python, with progress, and one line for what failed on which node."""

import os
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.status import Status

from harness.cluster.inventory import list_inventory
from harness.common.text import printable
from harness.errors import HarnessError
from harness.settings import REPOSITORY

_LONG_TASK_S = 2.0
_STILL_RUNNING_S = 60.0
"""A line is printed this often for a task that is still running."""
_MESSAGE_MAX = 1200
_LOGS_KEPT = 20


@dataclass(frozen=True)
class PlaybookResult:
    """What a playbook did."""

    changed: dict[str, int]
    """Number of changed tasks by node, of every node that it was run on."""
    changed_tasks: list[str]
    """``node: task`` for each change, in order."""
    seconds: float


def deployed_parts() -> list[str]:
    """The tags of site.yml's parts, in order."""
    plays = yaml.safe_load((REPOSITORY / "playbooks" / "site.yml").read_text(encoding="utf-8"))
    return list(dict.fromkeys(tag for play in plays for tag in play.get("tags", []) if tag != "always"))


def run_playbook(
    playbook: Path,
    inventory: Path,
    extra_vars: Mapping[str, Any] | None = None,
    limit: str | None = None,
    title: str = "",
    check: bool = False,
    console: Console | None = None,
    tags: str | None = None,
    diff: bool = False,
    become_password: str | None = None,
    log_file: Path | None = None,
) -> PlaybookResult:
    """Run ``playbook`` on ``inventory`` with the Ansible of this virtual environment.

    Progress goes to ``console`` (standard error by default): the current task on a terminal, a line for each
    task that took some seconds, a line a minute for one that is still running, and messages of ``debug``.

    Args:
        diff: print what changes in files, for `--diff`.
        become_password: answer to sudo's question on the nodes.
        log_file: Ansible's whole output is written here, readable by this user alone.

    Raises:
        HarnessError: a task failed or a node was unreachable (names the first such node, task and message),
            Ansible cannot read the inventory, or no node of it is in the playbook's groups.
        KeyboardInterrupt: the run was interrupted.
    """
    import ansible_runner

    if not playbook.exists():
        raise HarnessError(f"no playbook at {playbook}")
    if not inventory.exists():
        raise HarnessError(f"no inventory at {inventory}; name one with --inventory")
    console = console or Console(stderr=True)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="harness-ansible-") as private, console.status(title) as status:
        log = _Log(title or playbook.stem, console, status)
        options = {"--check": check, "--diff": diff, "--ask-become-pass": become_password is not None}
        runner = ansible_runner.run(
            private_data_dir=private,
            project_dir=str(REPOSITORY),
            playbook=str(playbook.resolve()),
            inventory=str(inventory.resolve()),
            extravars=dict(extra_vars or {}),
            limit=limit,
            tags=tags,
            cmdline=" ".join(option for option, wanted in options.items() if wanted) or None,
            passwords={r"^BECOME password.*:\s*?$": become_password} if become_password is not None else None,
            quiet=True,
            suppress_env_files=True,
            envvars=_environment(),
            event_handler=log.on_event,
        )
        log.finish_task()
        if log_file:
            _keep_log(Path(runner.config.artifact_dir, "stdout"), log_file)
    if runner.status == "canceled":
        raise KeyboardInterrupt
    if runner.status != "successful":
        where = f"; the whole log is {log_file}" if log_file else ""
        raise HarnessError((log.failure or f"{playbook.name}: {log.last_output()}") + where)
    ok, changed = log.counts.get("ok"), log.counts.get("changed", {})
    if not ok:
        list_inventory(inventory)
        raise HarnessError(
            f"{playbook.name}: no node of {inventory} is in a group that it is for; nothing was done"
        )
    seconds = round(time.monotonic() - started, 1)
    return PlaybookResult({node: changed.get(node, 0) for node in ok}, log.changed_tasks, seconds)


def _keep_log(output: Path, log_file: Path) -> None:
    """Keep Ansible's output, and remove the oldest of the folder's logs."""
    log_file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    log_file.touch(mode=0o600)
    log_file.write_bytes(output.read_bytes() if output.exists() else b"")
    for old in sorted(log_file.parent.glob("*.log"))[:-_LOGS_KEPT]:
        old.unlink()


def _environment() -> dict[str, str]:
    # ansible-runner finds Ansible by PATH: another one on the computer must not come first.
    own = str(Path(sys.executable).parent)
    return {
        "PATH": f"{own}:{os.environ.get('PATH', '/usr/sbin:/usr/bin:/sbin:/bin')}",
        "ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg"),
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_DEPRECATION_WARNINGS": "0",
    }


@dataclass
class _Log:
    """Follows the events of one playbook."""

    title: str
    console: Console
    status: Status
    changed_tasks: list[str] = field(default_factory=list)
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    """``ok``, ``changed`` and so on, each by node: Ansible's own recap."""
    _failures: list[str] = field(default_factory=list)
    _task: str = ""
    _task_started: float = 0.0
    _last_line_at: float = 0.0
    _output: list[str] = field(default_factory=list)

    @property
    def failure(self) -> str | None:
        """The first failed task, because others may follow from it; where some were rescued, the last."""
        if not self._failures:
            return None
        return self._failures[-1 if any(self.counts.get("rescued", {}).values()) else 0]

    def on_event(self, event: dict[str, Any]) -> bool:
        kind, data = event.get("event", ""), event.get("event_data", {})
        if kind in ("playbook_on_task_start", "playbook_on_handler_task_start"):
            self.finish_task()
            self._task, self._task_started = str(data.get("task", "")), time.monotonic()
            self._last_line_at = self._task_started
            role = f"{data['role']} : " if data.get("role") else ""
            self.status.update(f"{self.title}: {role}{self._task}")
        elif kind == "runner_on_ok":
            self._take_result(data)
        elif kind == "runner_on_file_diff":
            self.console.print(str(event.get("stdout", "")), highlight=False, markup=False, soft_wrap=True)
        elif kind == "runner_on_async_poll":
            self._report_still_running()
        elif kind == "playbook_on_stats":
            self.counts = {name: by for name, by in data.items() if isinstance(by, dict)}
        elif kind == "runner_on_unreachable":
            self._failures.append(failure_line(data, unreachable=True))
        elif kind == "runner_on_failed" and not data.get("ignore_errors"):
            self._failures.append(failure_line(data, unreachable=False))
        elif event.get("stdout"):
            self._output.append(str(event["stdout"]))
        return False

    def _take_result(self, data: dict[str, Any]) -> None:
        if data.get("res", {}).get("changed"):
            self.changed_tasks.append(f"{data.get('host')}: {data.get('task')}")
        if data.get("resolved_action", data.get("task_action")) == "ansible.builtin.debug":
            message = data["res"].get("msg", "")
            for line in message if isinstance(message, list) else [message]:
                self.console.print(printable(str(line)), highlight=False, markup=False, soft_wrap=True)

    def _report_still_running(self) -> None:
        now = time.monotonic()
        if now - self._last_line_at >= _STILL_RUNNING_S:
            self._last_line_at = now
            seconds = now - self._task_started
            self.console.print(f"[dim]{seconds:6.0f} s  {self._task} is still running[/dim]", highlight=False)

    def finish_task(self) -> None:
        seconds = time.monotonic() - self._task_started
        if self._task and seconds >= _LONG_TASK_S:
            self.console.print(f"[dim]{seconds:6.1f} s  {self._task}[/dim]", highlight=False)
        self._task = ""

    def last_output(self) -> str:
        lines = [line.strip() for line in "\n".join(self._output).splitlines() if line.strip()]
        errors = [line for line in lines if "ERROR" in line]
        return (errors or lines or ["Ansible ended without output"])[-1]


def failure_line(data: Mapping[str, Any], unreachable: bool) -> str:
    """``node: task: message`` from a failed task's event data."""
    result = data.get("res", {})
    failed_items = [item for item in result.get("results", []) if item.get("failed")]
    failure = failed_items[0] if failed_items else result
    if unreachable:
        message = f"unreachable: {failure.get('msg', 'no answer')}"
    elif "rc" in failure and (failure.get("stderr") or failure.get("stdout")):
        message = str(failure.get("stderr") or failure["stdout"])
    else:
        message = str(failure.get("msg") or failure.get("censored") or "no message")
    text = message.strip()
    if len(text) > _MESSAGE_MAX:
        text = "... " + text[-_MESSAGE_MAX:]
    return f"{data.get('host', '?')}: {data.get('task', 'a task')}: {text}"
