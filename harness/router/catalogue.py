"""Models on the head node's disk: the ``*.gguf`` files of one folder, named by their stems."""

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from harness.models.gguf import GgufModel, read_gguf


@dataclass(frozen=True)
class ModelFile:
    """One file; its size is a fact, its contents are read when asked for."""

    name: str
    path: Path
    file_bytes: int
    modified_ns: int


class Catalogue:
    """Finds models by name; headers are read once per version of a file."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._headers: dict[ModelFile, GgufModel] = {}

    def files(self) -> list[ModelFile]:
        """Every model file, by name. A folder that is not there holds none; a link to nothing is none."""
        if not self._folder.is_dir():
            return []
        found = (_model_file(path.stem, path) for path in sorted(self._folder.glob("*.gguf")))
        return [file for file in found if file]

    def find(self, name: str) -> ModelFile | None:
        """The file of the model called ``name``: one look at the disk, for every request asks this."""
        if "/" in name or "\0" in name:
            return None
        return _model_file(name, f"{self._folder}/{name}.gguf")

    def header(self, file: ModelFile) -> GgufModel:
        """Facts from the file's header. Reads the disk the first time.

        Raises:
            HarnessError: it is not a whole GGUF file.
        """
        if file not in self._headers:
            self._headers[file] = read_gguf(file.path)
        return self._headers[file]


def _model_file(name: str, path: str | Path) -> ModelFile | None:
    try:
        seen = os.stat(path)  # noqa: PTH116 - half the price of Path.stat, once for every request
    except OSError:  # a link to nothing; a name longer than a file's may be
        return None
    if not stat.S_ISREG(seen.st_mode):
        return None
    return ModelFile(name, Path(path), seen.st_size, seen.st_mtime_ns)
