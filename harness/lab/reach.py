"""SSH to a lab's machines: waiting until one answers, and ending connections that lead nowhere."""

import subprocess
import time
from pathlib import Path

from harness.errors import HarnessError
from harness.lab.machine import Machine
from harness.lab.shell import succeeds


def close_connections(ssh: Path, address: str = "*") -> None:
    """End shared SSH connections (ControlPath of the inventory) to machines that are no more."""
    for socket in ssh.glob(f"cp-{address}-*"):
        succeeds("ssh", "-o", f"ControlPath={socket}", "-O", "exit", "lab")
        socket.unlink(missing_ok=True)


def wait_until_reachable(machine: Machine, deadline_s: float = 90) -> None:
    """Return when the machine answers over SSH and has finished booting.

    Raises:
        HarnessError: it does not within the deadline; the end of its console is named.
    """
    address = str(machine.read()[0].address)
    command = _command(machine.lab.folder / "ssh", address)
    deadline = time.monotonic() + deadline_s
    answer = "the machine ended"
    while time.monotonic() < deadline and machine.supervisor() is not None:
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=deadline_s)
        except subprocess.TimeoutExpired:
            answer = "it never finished booting"
            break
        if done.stdout.strip() in ("running", "degraded"):
            return
        answer = " ".join((done.stderr or done.stdout).split())
        time.sleep(0.1)
    raise HarnessError(
        f"{machine.name}: no SSH at {address} within {deadline_s:.0f} s ({answer}); {_last_line(machine)}"
    )


def _command(ssh: Path, address: str) -> list[str]:
    return [
        *(
            "ssh",
            "-F",
            "none",
            "-i",
            str(ssh / "id_ed25519"),
            "-o",
            "BatchMode=yes",
            "-o",
            "ConnectTimeout=2",
        ),
        *("-o", f"UserKnownHostsFile={ssh / 'known_hosts'}", "-o", "StrictHostKeyChecking=yes"),
        *(f"root@{address}", "systemctl", "is-system-running", "--wait"),
    ]


def _last_line(machine: Machine) -> str:
    for name in ("supervisor.log", "console.log"):
        log = machine.folder / name
        lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
        if lines:
            return f"{log} ends with: {lines[-1].strip()}"
    return f"{machine.folder} holds no log"
