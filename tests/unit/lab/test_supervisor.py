"""One supervisor keeps a machine, and a look at the machine never keeps it from starting."""

import fcntl
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.lab import supervisor
from harness.lab.machine import Machine
from tests.unit.lab.lab_spec import lab_spec


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """A machine whose supervisor ends as soon as it has the lock."""
    lab = lab_spec(tmp_path)
    machine = Machine(lab, "node1")
    machine.folder.mkdir(parents=True)
    lab.record.write_text(lab.model_dump_json())
    machine.lock.touch()
    monkeypatch.setattr("sys.argv", ["supervisor", str(lab.record), "node1"])
    monkeypatch.setattr(supervisor, "supervise", lambda _: None)
    before = signal.getsignal(signal.SIGTERM)
    yield machine
    signal.signal(signal.SIGTERM, before)


def test_a_look_at_the_machine_does_not_keep_its_supervisor_from_starting(machine: Machine) -> None:
    with machine.lock.open() as look:
        fcntl.flock(look, fcntl.LOCK_SH)
        threading.Timer(0.1, lambda: fcntl.flock(look, fcntl.LOCK_UN)).start()
        assert supervisor.main() == 0


def test_second_supervisor_ends(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "LOCK_WITHIN_S", 0.1, raising=False)
    with machine.lock.open("a") as first:
        fcntl.flock(first, fcntl.LOCK_EX)
        assert supervisor.main() == 1
