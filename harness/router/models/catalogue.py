"""Models on the head node's disk: the ``*.gguf`` files of one folder by their stems, and Ollama's storage."""

import os
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from harness.errors import HarnessError
from harness.llama.gguf import GgufModel, read_gguf
from harness.llama.ollama_storage import find_model, list_models, parse_name


@dataclass(frozen=True)
class ModelFile:
    """One file; its size is a fact, its contents are read when asked for."""

    name: str
    path: Path
    file_bytes: int
    modified_ns: int


class Catalogue:
    """Finds models by name; headers are read once per version of a file."""

    def __init__(self, folder: Path, ollama: Path | None = None) -> None:
        """Look at nothing yet.

        Args:
            folder: GGUF files.
            ollama: Ollama's models, as ``OLLAMA_MODELS`` names them; None for none.
        """
        self._folder = folder
        self._ollama = ollama
        self._headers: dict[ModelFile, GgufModel] = {}

    def files(self) -> list[ModelFile]:
        """Every model file, by name, those of the folder first.

        A folder that is not there holds none; a link to nothing is none; Ollama's models that cannot be read
        are none.
        """
        return [*self._in_folder(), *self._in_ollama()]

    def _in_ollama(self) -> list[ModelFile]:
        found = []
        if self._ollama:
            with suppress(HarnessError):
                found = list_models(self._ollama)
        files = (_model_file(model.name.short, model.blob) for model in found)
        return [file for file in files if file]

    def _in_folder(self) -> list[ModelFile]:
        if not self._folder.is_dir():
            return []
        found = (_model_file(path.stem, path) for path in sorted(self._folder.glob("*.gguf")))
        return [file for file in found if file]

    def find(self, name: str) -> ModelFile | None:
        """The file of the model called ``name``, under the name that ``files`` gives it.

        Ollama's are found as Ollama finds them: also without ``:latest``, and in any case.

        One look at the disk, for every request asks this; two or three where Ollama's storage is looked at.

        Raises:
            HarnessError: Ollama has it, and its blob is missing, cut or not ours to read.
        """
        if "\0" in name:
            return None
        if "/" not in name and (found := _model_file(name, f"{self._folder}/{name}.gguf")):
            return found
        full = parse_name(name) if self._ollama else None
        model = find_model(full, [self._ollama]) if full and self._ollama else None
        return _model_file(model.name.short, model.blob) if model else None

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
