"""Packs what a node needs to install this project without a network: one tar file of wheels and lock files.

Runs on the control machine. The wheels of a lock file are downloaded once for each kind of node
(Python, machine, libc); the project's own wheel is built once for each state of its sources, and has
only what the services named by the lock files import: no other change restarts them. Prints
one JSON object: ``key`` names the contents, ``tar`` is the file, ``built`` says whether it was made just now.
"""

import argparse
import ast
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PROJECT_FILES = ("README.md", "LICENSE")
KEEP_TARS = 8
_WHEEL_TABLES = {"build-system", "project", "project.scripts", "tool.hatch.build.targets.wheel"}
"""Of pyproject.toml: the node installs with ``--no-deps``, so the extras are not among them."""


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


def source_files(project: Path, services: Sequence[str]) -> list[Path]:
    """The files that the node's wheel is made of: what the services reach by imports, and its data files."""
    package = project / "harness"
    waiting = [path for service in services for path in (package / service).rglob("*.py")]
    modules: set[Path] = set()
    while waiting:
        if (path := waiting.pop()) not in modules:
            modules.add(path)
            waiting += _imported(project, path)
    folders = {path.parent for path in modules}
    others = (path for path in package.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc"))
    return sorted(modules | {path for path in others if _package_of(path) in folders})


def _imported(project: Path, module: Path) -> list[Path]:
    """The project's files that an import in this module runs, wherever it stands but under TYPE_CHECKING."""
    names: list[str] = []
    nodes: list[ast.AST] = [ast.parse(module.read_bytes())]
    for node in nodes:
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            nodes += node.orelse
            continue
        nodes += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    files = []
    for name in names:
        parts = name.split(".")
        for length in range(1, len(parts) + 1 if parts[0] == "harness" else 1):
            path = project.joinpath(*parts[:length])
            files += [path.with_suffix(".py"), path / "__init__.py"]
    return [path for path in files if path.is_file()]


def _package_of(path: Path) -> Path:
    """The nearest folder above a data file that is a package."""
    return next(folder for folder in path.parents if (folder / "__init__.py").is_file())


def node_pyproject(project: Path, files: Sequence[Path]) -> str:
    """What the node's wheel needs of pyproject.toml; of the scripts only those whose module it has."""
    start, *tables = re.split(r"(?m)^(?=\[)", (project / "pyproject.toml").read_text())
    kept = [table for table in tables if table[1:].partition("]")[0] in _WHEEL_TABLES]
    have = {".".join(path.relative_to(project).with_suffix("").parts) for path in files}

    def script(line: re.Match[str]) -> str:
        return line[0] if {line["module"], f"{line['module']}.__init__"} & have else ""

    return start + re.sub(r'(?m)^[\w-]+ = "(?P<module>harness[\w.]*):\w+"\n', script, "".join(kept))


def digest(project: Path, files: Sequence[Path], more: str = "") -> str:
    """Hash of the files' names and contents, and of ``more``."""
    total = hashlib.sha256(more.encode())
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
    files = source_files(project, sorted(set(extras)))
    # What pip wants besides is no reason to restart a service; the locks name the versions.
    sources, locked = digest(project, files, node_pyproject(project, files)), digest(project, locks)
    key = hashlib.sha256(f"{sources} {locked} {target.name}".encode()).hexdigest()[:16]
    tar = cache / f"wheelhouse-{key}.tar"
    with _locked(cache):
        built = not tar.exists()
        if built:
            wheels = cache / f"locked-{locked[:16]}-{target.name}"
            _once(wheels, lambda folder: _download(locks, target, folder))
            own = cache / f"project-{sources[:16]}"
            _once(own, lambda folder: _build_project(project, files, folder))
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


def _build_project(project: Path, files: Sequence[Path], folder: Path) -> None:
    """Build from a copy of these files alone."""
    with tempfile.TemporaryDirectory() as scratch:
        for path in [*(project / name for name in PROJECT_FILES), *files]:
            copy = Path(scratch) / path.relative_to(project)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
        (Path(scratch) / "pyproject.toml").write_text(node_pyproject(project, files))
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
