"""Makes the image, one builder at a time, and clears up after a builder that was cut short."""

import fcntl
import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from harness.errors import HarnessError
from harness.lab.image import host_release, mmdebstrap, packages, wanted_image
from harness.lab.shell import run
from harness.lab.spec import LabSpec

_KILL_DEADLINE_S = 20.0
_SPARE_IMAGES = 2


def build_image(lab: LabSpec) -> bool:
    """Have the image that machines yet to be made need; tells whether it had to be made."""
    image = wanted_image(lab)
    if not lab.unmade:
        return False
    if image.is_dir():
        os.utime(image)
        return False
    lab.images.mkdir(parents=True, exist_ok=True)
    with _only_builder(lab):
        if image.is_dir():
            return False
        _remove(list(lab.images.glob("*.partial")))
        _remove(_outdated(lab))
        partial = image.with_name(f"{image.name}.partial")
        run(*mmdebstrap(partial, packages(lab), host_release()[1]))
        partial.rename(image)
    return True


def stop_build(lab: LabSpec) -> bool:
    """End a build that an interrupted `up` of this lab left running, and remove what was cut short."""
    path = lab.images / ".lock"
    if not path.exists():
        return False
    with path.open("r+") as lock:
        if not _take(lock):
            name, _, pid = lock.read().partition(" ")
            if name != lab.name:
                return False
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
            _take(lock, _KILL_DEADLINE_S)
        stale = list(lab.images.glob("*.partial"))
        _remove(stale)
    return bool(stale)


def _outdated(lab: LabSpec) -> list[Path]:
    """Images that no machine stands on, but for the ones used last."""
    used = {json.loads(record.read_text())["image"] for record in lab.root.glob("*/machines/*/machine.json")}
    free = [image for image in lab.images.iterdir() if image.is_dir() and str(image) not in used]
    return sorted(free, key=lambda image: image.stat().st_mtime, reverse=True)[_SPARE_IMAGES:]


@contextmanager
def _only_builder(lab: LabSpec) -> Iterator[None]:
    """Hold the images folder, and leave word of who builds there."""
    with (lab.images / ".lock").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.truncate(0)
        lock.write(f"{lab.name} {os.getpid()}")
        lock.flush()
        yield


def _take(lock: IO[str], deadline_s: float = 0) -> bool:
    until = time.monotonic() + deadline_s
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= until:
                return False
            time.sleep(0.05)
        else:
            return True


def _remove(folders: list[Path]) -> None:
    """Remove whole trees; one that a dying builder still writes into may need more than one try."""
    until = time.monotonic() + _KILL_DEADLINE_S
    for folder in folders:
        while folder.exists():
            shutil.rmtree(folder, ignore_errors=True)
            if folder.exists() and time.monotonic() > until:
                raise HarnessError(f"{folder} cannot be removed; see what uses it, then try again")
