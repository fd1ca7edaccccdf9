"""Packs what a node needs to install this project without a network: one tar file of wheels and lock files.

Runs on the control machine. The wheels of a lock file are downloaded once for each kind of node
(Python, machine, libc); the project's own wheel is built once for each state of its sources. Prints
one JSON object: ``key`` names the contents, ``tar`` is the file, ``built`` says whether it was made just now.
"""

import argparse
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PROJECT_FILES = ("pyproject.toml", "README.md", "LICENSE")
KEEP_TARS = 8


@dataclass(frozen=True)
class Target:
    """The kind of node that the wheels are for."""

    python: str
    """Version as in ``3.11``."""
    machine: str
    glibc: str
    """Version as in ``2.36``."""

    @property
    def name(self) -> str:
        return f"py{self.python}-{self.machine}-glibc{self.glibc}"

    def pip_options(self) -> list[str]:
        """Options that make pip choose wheels for the node and not for this machine."""
        tag = self.python.replace(".", "")
        options = ["--python-version", self.python, "--implementation", "cp"]
        options += ["--abi", f"cp{tag}", "--abi", "abi3", "--abi", "none"]
        major, minor = (int(part) for part in self.glibc.split(".")[:2])
        platforms = [f"manylinux_{major}_{older}_{self.machine}" for older in range(minor, 4, -1)]
        platforms += [f"manylinux2014_{self.machine}", f"linux_{self.machine}"]
        for platform in platforms:
            options += ["--platform", platform]
        return options


def source_files(project: Path) -> list[Path]:
    """The files that the project's wheel is made of, in a fixed order."""
    package = (path for path in (project / "harness").rglob("*") if path.is_file())
    kept = (path for path in package if "__pycache__" not in path.parts and path.suffix != ".pyc")
    return [project / name for name in PROJECT_FILES] + sorted(kept)


def digest(project: Path, files: Sequence[Path]) -> str:
    """Hash of the files' names and contents."""
    total = hashlib.sha256()
    for path in files:
        content = path.read_bytes()
        total.update(f"{path.relative_to(project)}\0{len(content)}\0".encode())
        total.update(content)
    return total.hexdigest()


def build(project: Path, cache: Path, extras: Sequence[str], target: Target) -> dict[str, object]:
    """Create the tar file, unless it exists.

    Args:
        extras: names of lock files in ``requirements/``.

    Raises:
        SystemExit: with one line, when pip cannot get or build a wheel.
    """
    locks = [project / "requirements" / f"{extra}.lock" for extra in sorted(set(extras))]
    for lock in locks:
        if not lock.is_file():
            raise SystemExit(f"harness_venv: no lock file {lock}")
    sources, locked = digest(project, source_files(project)), digest(project, locks)
    key = hashlib.sha256(f"{sources} {locked} {target.name}".encode()).hexdigest()[:16]
    tar = cache / f"wheelhouse-{key}.tar"
    with _locked(cache):
        built = not tar.exists()
        if built:
            wheels = cache / f"locked-{locked[:16]}-{target.name}"
            _once(wheels, lambda folder: _download(locks, target, folder))
            own = cache / f"project-{sources[:16]}"
            _once(own, lambda folder: _build_project(project, folder))
            _pack(tar, [*sorted(wheels.iterdir()), *sorted(own.iterdir()), *locks])
            _forget_old(cache)
        tar.touch()
    return {"key": key, "tar": str(tar), "built": built}


def _download(locks: Sequence[Path], target: Target, folder: Path) -> None:
    requirements = [word for lock in locks for word in ("--requirement", str(lock))]
    _pip(
        f"cannot get the wheels of {', '.join(lock.name for lock in locks)} for {target.name}",
        "download",
        "--require-hashes",
        "--only-binary=:all:",
        "--no-deps",
        *target.pip_options(),
        "--dest",
        str(folder),
        *requirements,
    )


def _build_project(project: Path, folder: Path) -> None:
    """Build from a copy, without the remains of builds and the other files of a checkout."""
    with tempfile.TemporaryDirectory() as scratch:
        for path in source_files(project):
            copy = Path(scratch) / path.relative_to(project)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
        _pip(
            "cannot build the project's wheel",
            "wheel",
            "--no-build-isolation",
            "--no-deps",
            "--no-index",
            "--wheel-dir",
            str(folder),
            scratch,
        )


def _pip(failure: str, *arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments]
    environment = {**os.environ, "SOURCE_DATE_EPOCH": "1577836800"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        errors = [line for line in done.stderr.splitlines() if line.strip()]
        message = next((line for line in errors if "ERROR" in line), errors[-1] if errors else "no message")
        raise SystemExit(f"harness_venv: {failure}: {message}")


def _once(folder: Path, make: Callable[[Path], None]) -> None:
    """Fill a folder that appears complete or not at all."""
    if folder.exists():
        return
    scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".making-"))
    try:
        make(scratch)
        scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _pack(tar: Path, files: Sequence[Path]) -> None:
    scratch = tar.with_suffix(".making")
    with tarfile.open(scratch, mode="w") as archive:
        for path in files:
            archive.add(path, arcname=path.name, filter=_owned_by_root)
    scratch.rename(tar)


def _owned_by_root(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = "root"
    entry.mode = 0o644
    return entry


def _forget_old(cache: Path) -> None:
    """Keep the newest few of the files that each change of the sources creates again."""
    for pattern in ("wheelhouse-*.tar", "project-*"):
        for old in sorted(cache.glob(pattern), key=lambda path: path.stat().st_mtime)[:-KEEP_TARS]:
            shutil.rmtree(old) if old.is_dir() else old.unlink()


@contextmanager
def _locked(cache: Path) -> Iterator[None]:
    """One build at a time: Ansible asks for every node at once."""
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--project", type=Path, required=True, help="checkout of llama-harness")
    parser.add_argument("--cache", type=Path, required=True, help="folder to keep wheels in")
    parser.add_argument("--extras", required=True, help="names of lock files without .lock, with commas")
    parser.add_argument("--python", required=True)
    parser.add_argument("--machine", required=True)
    parser.add_argument("--glibc", required=True)
    given = parser.parse_args()
    target = Target(given.python, given.machine, given.glibc)
    print(json.dumps(build(given.project.resolve(), given.cache, given.extras.split(","), target)))


if __name__ == "__main__":
    main()
