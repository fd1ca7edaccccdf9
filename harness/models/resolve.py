"""From what a person types to a model file: a GGUF path, a name in the cache, or an Ollama name."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from harness.errors import HarnessError
from harness.llama.gguf import GgufModel, read_gguf
from harness.llama.ollama_storage import find_model, parse_name, storages
from harness.settings import cache_dir


@dataclass(frozen=True)
class ResolvedModel:
    """A model file and how it was found."""

    asked: str
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


def resolve_model(asked: str) -> ResolvedModel:
    """Find a model: a path that exists, then the cache's models by stem, then Ollama's storage.

    Raises:
        HarnessError: nothing has that name (the line lists what was looked at), or the file is damaged.
    """
    path = Path(asked).expanduser()
    try:
        is_file = path.is_file()
    except OSError as error:
        raise HarnessError(
            f"cannot look at model {path}: {error.strerror}; run as its owner or root"
        ) from error
    if is_file:
        return ResolvedModel(asked, "path", read_gguf(path.resolve()), path.stem)
    cache = cache_dir() / "models"
    if "/" not in asked and (cached := _in_cache(cache, asked)):
        return ResolvedModel(asked, "cache", read_gguf(cached), cached.stem)
    looked = [str(path), str(cache)]
    if name := parse_name(asked):
        places = storages()
        if found := find_model(name, places):
            return ResolvedModel(
                asked, "ollama", read_gguf(found.blob), _stem(asked), found.digest, str(found.name)
            )
        looked += [str(place) for place in places]
    raise HarnessError(
        f"no model '{asked}'; looked at: {', '.join(looked)}; "
        f"known in the cache: {', '.join(sorted(p.stem for p in cache.glob('[!.]*.gguf'))) or 'none'}"
    )


def _in_cache(cache: Path, name: str) -> Path | None:
    stem = name.removesuffix(".gguf")
    candidate = cache / f"{stem}.gguf"
    return candidate if candidate.is_file() else None


def _stem(name: str) -> str:
    """A file name's stem for an Ollama name: ``codellama:13b`` -> ``codellama-13b``."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")
