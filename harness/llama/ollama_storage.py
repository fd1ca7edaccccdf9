"""Ollama's storage: from a model's name to the GGUF blob behind it.

Layout: ``manifests/<registry>/<namespace>/<model>/<tag>`` is a JSON list of layers, each a file
``blobs/sha256-<digest>`` (``sha256:<digest>`` before Ollama 0.1.3x).
https://github.com/ollama/ollama: ``types/model/name.go``, ``server/manifest.go``.
"""

import json
import os
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from harness.errors import HarnessError

_REGISTRY, _NAMESPACE, _TAG = "registry.ollama.ai", "library", "latest"
_MODEL_LAYER = "application/vnd.ollama.image.model"
_DIGEST = re.compile(r"sha256[:-]([0-9a-f]{64})")
_MOST_MANIFEST_BYTES = 1 << 20
"""Real ones have less than 4 kB."""


@dataclass(frozen=True)
class OllamaName:
    """A model's full name."""

    registry: str
    namespace: str
    model: str
    tag: str

    @property
    def parts(self) -> tuple[str, ...]:
        """Folders of its manifest, and the file."""
        return (self.registry, *self.namespace.split("/"), self.model, self.tag)

    @property
    def short(self) -> str:
        """As Ollama lists it: without the registry and the namespace that it supposes."""
        usual = (_REGISTRY, _NAMESPACE) if self.namespace == _NAMESPACE else (_REGISTRY,)
        rest = self.parts[len(usual) : -1] if self.parts[: len(usual)] == usual else self.parts[:-1]
        return f"{'/'.join(rest)}:{self.tag}"

    def __str__(self) -> str:
        return f"{'/'.join(self.parts[:-1])}:{self.tag}"


@dataclass(frozen=True)
class OllamaModel:
    """A model in Ollama's storage."""

    name: OllamaName
    digest: str
    """``sha256:<64 hex digits>``."""
    blob: Path


def parse_name(text: str) -> OllamaName | None:
    """Read ``codellama:13b``, ``user/model:tag``, ``hf.co/user/repo:quant``; None where it is no name."""
    path, _, tag = text.rpartition(":")
    if not path or "/" in tag:
        path, tag = text, ""
    parts = path.split("/")
    if not all(parts) or len(parts) > 4 or path.startswith((".", "~")) or ".." in (*parts, tag):
        return None
    registry = parts.pop(0) if len(parts) > 2 else _REGISTRY
    namespace = "/".join(parts[:-1]) or _NAMESPACE
    return OllamaName(registry, namespace, parts[-1], tag or _TAG)


@lru_cache(maxsize=4096)
def same_model(name: str) -> str:
    """The form that all of Ollama's spellings of one model share, to compare names by.

    ``Story``, ``story:latest`` and ``registry.ollama.ai/library/story`` are one model; other text is itself.
    """
    parsed = parse_name(name)
    return parsed.short.casefold() if parsed else name


def storages() -> list[Path]:
    """Folders where Ollama may keep models on this machine, most particular first.

    ``OLLAMA_MODELS``, the user's own, then those of the service (its user's home, or a packager's choice).
    """
    folders = (".ollama/models", "models", "")
    service = [Path("/usr/share/ollama/.ollama/models"), *(Path("/var/lib/ollama", name) for name in folders)]
    override = os.environ.get("OLLAMA_MODELS")
    own = [*([Path(override)] if override else []), Path.home() / ".ollama" / "models"]
    return list(dict.fromkeys([*own, *service]))


def find_model(name: OllamaName, places: list[Path]) -> OllamaModel | None:
    """The model in the first storage that has it; None where none has.

    Raises:
        HarnessError: a manifest that cannot be read, names no GGUF, or whose blob is missing or cut.
    """
    for storage in places:
        try:
            manifest = _descend(storage / "manifests", name.parts)
            if manifest is not None:
                return _read_manifest(manifest, storage)
        except PermissionError as error:
            raise HarnessError(
                f"model '{name}': no permission to read {error.filename}; run as root or join its group"
            ) from error
    return None


def list_models(storage: Path) -> tuple[list[OllamaModel], list[str]]:
    """Every model in a storage with a whole blob, by manifest; and the problem of every other one.

    Raises:
        HarnessError: no permission to look.
    """
    models, problems = [], []
    root = storage / "manifests"
    try:
        for manifest in sorted(path for path in root.rglob("*") if path.is_file()):
            if len(manifest.relative_to(root).parts) < 4:
                continue
            try:
                models.append(_read_manifest(manifest, storage))
            except (HarnessError, OSError) as error:
                problems.append(str(error))
    except PermissionError as error:
        raise HarnessError(
            f"no permission to read {error.filename}; run as root or join the group of Ollama's models"
        ) from error
    return models, problems


def _descend(folder: Path, parts: tuple[str, ...]) -> Path | None:
    """Follow ``parts`` without regard to case, as Ollama does."""
    for part in parts:
        exact = folder / part
        if not exact.exists():
            others = sorted(folder.iterdir()) if folder.is_dir() else []
            exact = next((path for path in others if path.name.lower() == part.lower()), exact)
        folder = exact
    return folder if folder.is_file() else None


def _read_manifest(manifest: Path, storage: Path) -> OllamaModel:
    # The name as the storage writes it, whatever its case in the request.
    registry, *namespace, model, tag = manifest.relative_to(storage / "manifests").parts
    name = OllamaName(registry, "/".join(namespace), model, tag)
    digest, size = _model_layer(name, manifest)
    blobs = [storage / "blobs" / f"sha256{mark}{digest}" for mark in ("-", ":")]
    blob = next((path for path in blobs if path.exists()), None)
    if blob is None:
        raise HarnessError(f"model '{name}': blob {blobs[0]} is missing; pull it again")
    blob_bytes = blob.stat().st_size
    if blob_bytes != size:
        raise HarnessError(
            f"model '{name}': blob {blob} has {blob_bytes} bytes, its manifest says {size}; pull it again"
        )
    return OllamaModel(name, f"sha256:{digest}", blob)


def _model_layer(name: OllamaName, manifest: Path) -> tuple[str, int]:
    """The digest's 64 digits and the bytes of the model that a manifest names."""
    damaged = HarnessError(f"model '{name}': damaged Ollama manifest {manifest}; pull it again")
    try:
        with manifest.open("rb") as file:
            text = file.read(_MOST_MANIFEST_BYTES + 1)
        if len(text) > _MOST_MANIFEST_BYTES:
            raise damaged
        layers: list[dict[str, Any]] = json.loads(text).get("layers") or []
        layer = next((entry for entry in layers if entry.get("mediaType") == _MODEL_LAYER), None)
        digest = _DIGEST.fullmatch(layer["digest"]) if layer else None
        size = int(layer["size"]) if layer else 0
    except (ValueError, KeyError, AttributeError, TypeError, OverflowError, RecursionError) as error:
        raise damaged from error
    if not layer:
        raise HarnessError(f"model '{name}': {manifest} lists no GGUF layer; only GGUF models can be used")
    if not digest:
        raise damaged
    return digest[1], size
