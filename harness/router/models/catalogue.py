"""Models on the head node's disk: the ``*.gguf`` files of one folder by their stems, and Ollama's storage."""

import asyncio
import logging
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from harness.contracts.diagnosis import FailureClass
from harness.errors import HarnessError
from harness.llama.gguf import GgufModel, read_gguf
from harness.llama.ollama_storage import OllamaModel, find_model, list_models, parse_name
from harness.router.errors import UNKNOWN_MODEL, RouterError
from harness.router.json_log import log


@dataclass(frozen=True)
class ModelFile:
    """One file; its contents are read by ``Catalogue.header``."""

    name: str
    path: Path
    file_bytes: int
    modified_ns: int
    inode: int


@dataclass(frozen=True)
class _Header:
    """The header of one version of a file."""

    version: tuple[int, int, int]
    """Size, time of the last change and inode."""
    model: GgufModel | None
    problem: str = ""
    """Why there is no model."""
    may_mend: bool = False
    """The disk failed or a permission was missing: the same file may be readable next time."""


class Catalogue:
    """Finds models by name; the header of each file is read once per version of the file, a bad one too.

    Args:
        folder: GGUF files.
        ollama: Ollama's models, as ``OLLAMA_MODELS`` names them; None for none.
    """

    def __init__(self, folder: Path, ollama: Path | None = None) -> None:
        self._folder = folder
        self._ollama = ollama
        self._headers: dict[Path, _Header] = {}
        self._problems: set[str] = set()
        """Problems in Ollama's storage at the last walk."""
        self._walk: asyncio.Task[list[ModelFile]] | None = None

    def files(self) -> list[ModelFile]:
        """Every model file, by name, those of the folder first. Reads every manifest of Ollama's storage.

        A folder that does not exist holds none; broken links, and Ollama models that cannot be read, are
        left out.
        """
        ollama = self._ollama_models(self._ollama) if self._ollama else []
        files = [_model_file(path.stem, path) for path in sorted(self._folder.glob("*.gguf"))]
        files += [_model_file(model.name.short, model.blob) for model in ollama]
        return [file for file in files if file]

    def _ollama_models(self, storage: Path) -> list[OllamaModel]:
        models: list[OllamaModel] = []
        try:
            models, problems = list_models(storage)
        except HarnessError as error:
            problems = [str(error)]
        for problem in sorted(set(problems) - self._problems):
            log("model_unreadable", level=logging.WARNING, error=problem)
        self._problems = set(problems)
        return models

    async def list_files(self) -> list[ModelFile]:
        """``files``, read in a thread; requests of the same moment share one walk over the disk."""
        if self._walk is None or self._walk.done():
            self._walk = asyncio.create_task(asyncio.to_thread(self.files))
        return await asyncio.shield(self._walk)

    def find(self, name: str) -> ModelFile | None:
        """The file of the model called ``name``, under the name that ``files`` gives it.

        Ollama's are found as Ollama finds them: also without ``:latest``, and in any case.

        One look at the disk, for every request asks this; two or three where Ollama's storage is looked at.

        Raises:
            HarnessError: Ollama has it, and its blob is missing, cut or not readable.
        """
        if "\0" in name:
            return None
        if "/" not in name and (file := _model_file(name, f"{self._folder}/{name}.gguf")):
            return file
        full = parse_name(name) if self._ollama else None
        model = find_model(full, [self._ollama]) if full and self._ollama else None
        return _model_file(model.name.short, model.blob) if model else None

    def header(self, file: ModelFile) -> GgufModel:
        """Facts from the file's header. Reads the disk the first time.

        Raises:
            HarnessError: it is not a whole GGUF file.
        """
        version = (file.file_bytes, file.modified_ns, file.inode)
        header = self._headers.get(file.path)
        if header is None or header.version != version or header.may_mend:
            header = self._headers[file.path] = _read_header(file.path, version, header)
        if header.model is None:
            raise HarnessError(header.problem)
        return header.model

    async def read(self, name: str) -> tuple[ModelFile, GgufModel]:
        """The file of the model called ``name``, and its header.

        Raises:
            RouterError: the model is unknown (404) or cannot be read (422).
        """
        try:
            if file := self.find(name):
                return file, await asyncio.to_thread(self.header, file)
        except HarnessError as error:
            raise RouterError(422, FailureClass.MODEL_INVALID, str(error)) from None
        names = ", ".join(file.name for file in await self.list_files()) or "none"
        raise RouterError(404, UNKNOWN_MODEL, f"no model '{name}' on the head node; it has: {names}")


def _read_header(path: Path, version: tuple[int, int, int], before: _Header | None) -> _Header:
    """Read a header; a problem that ``before`` did not have is logged."""
    try:
        return _Header(version, read_gguf(path))
    except HarnessError as error:
        problem, may_mend = str(error), isinstance(error.__cause__, OSError)
    if before is None or before.problem != problem:
        log("model_unreadable", level=logging.WARNING, error=problem)
    return _Header(version, None, problem, may_mend)


def _model_file(name: str, path: str | Path) -> ModelFile | None:
    try:
        status = os.stat(path)  # noqa: PTH116 - half the price of Path.stat, once for every request
    except OSError:  # a link to nothing; a name longer than a file's may be
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    return ModelFile(name, Path(path), status.st_size, status.st_mtime_ns, status.st_ino)
