"""What Ollama tells about a model, from the header of its GGUF file. Pure.

``details``, ``model_info`` and ``capabilities`` as in Ollama's ``/api/tags`` and ``/api/show``:
https://github.com/ollama/ollama/blob/main/docs/api.md.
"""

import hashlib
import math
import re
from datetime import UTC, datetime
from typing import Any

from harness.llama.gguf import GgufModel, SkippedArray
from harness.router.http.json_body import Json
from harness.router.models.catalogue import ModelFile

API_VERSION = "0.12.6"
"""The release of Ollama whose API is followed: clients compare it before they use newer parts of it."""
NEVER = "9999-12-31T23:59:59Z"
"""When a model goes that nobody unloads."""

_BLOB = re.compile(r"^sha256-([0-9a-f]{64})$")
_STEPS = ((1e9, "B", 1), (1e6, "M", 2), (1e3, "K", 0))


def entry(file: ModelFile, header: GgufModel | None) -> Json:
    """One model of ``/api/tags``; without a header only what the file system tells."""
    return {
        "name": file.name,
        "model": file.name,
        "modified_at": moment(file.modified_ns),
        "size": file.file_bytes,
        "digest": digest(file),
        "details": details(header) if header else {"format": "gguf"},
    }


def server_entry(name: str, meta: Json) -> Json:
    """One model that a llama-server of the pool has, from the ``meta`` of its ``/v1/models``."""
    parameters = meta.get("n_params")
    known = {"parameter_size": count(parameters)} if isinstance(parameters, int) else {}
    size = meta.get("size")
    return {
        "name": name,
        "model": name,
        "modified_at": moment(0),
        "size": size if isinstance(size, int) else 0,
        "digest": hashlib.sha256(name.encode()).hexdigest(),
        "details": {"parent_model": "", "format": "gguf", "family": "", "families": []} | known,
    }


def show(file: ModelFile, header: GgufModel, *, verbose: bool) -> Json:
    """The answer of ``/api/show``; arrays such as the vocabulary only if ``verbose``, and then if short."""
    template = str(header.metadata.get("tokenizer.chat_template") or "")
    return {
        "modelfile": f"FROM {file.name}\n",
        "parameters": "",
        "template": template,
        "license": str(header.metadata.get("general.license") or ""),
        "details": details(header),
        "model_info": {"general.parameter_count": parameter_count(header)}
        | {key: _shown(value, verbose) for key, value in header.metadata.items() if key != _TEMPLATE},
        "capabilities": capabilities(header, template),
        "modified_at": moment(file.modified_ns),
    }


_TEMPLATE = "tokenizer.chat_template"


def details(header: GgufModel) -> Json:
    """Family, number of parameters and quantisation."""
    return {
        "parent_model": "",
        "format": "gguf",
        "family": header.architecture,
        "families": [header.architecture],
        "parameter_size": count(parameter_count(header)),
        "quantization_level": header.quantisation,
    }


def capabilities(header: GgufModel, template: str) -> list[str]:
    """What it can be asked for, as far as its header says."""
    found = ["embedding"] if header.get("pooling_type") is not None else ["completion"]
    if "tools" in template:
        found.append("tools")
    if any(key.endswith(("fim_suf_token_id", "suffix_token_id")) for key in header.metadata):
        found.append("insert")
    if "enable_thinking" in template or "<think>" in template:
        found.append("thinking")
    return found


def parameter_count(header: GgufModel) -> int:
    """Elements of all tensors."""
    return sum(math.prod(tensor.shape) for tensor in header.tensors)


def count(parameters: int) -> str:
    """A number of parameters as Ollama writes it: ``8.0B`` is ``8B``, 134,515,008 is ``134.52M``."""
    for step, unit, places in _STEPS:
        if parameters >= step:
            number = parameters / step
            return f"{number:.{0 if number == int(number) else places}f}{unit}"
    return str(parameters)


def digest(file: ModelFile) -> str:
    """SHA-256 of a file in Ollama's storage, which is its name; of any other a stand-in.

    The stand-in changes with the file's name, size and time: nobody hashes 40 GB to answer one request.
    """
    if found := _BLOB.match(file.path.resolve().name):
        return found.group(1)
    return hashlib.sha256(f"{file.name}\n{file.file_bytes}\n{file.modified_ns}".encode()).hexdigest()


def moment(nanoseconds: int) -> str:
    """A time of the file system in RFC 3339, UTC."""
    return datetime.fromtimestamp(nanoseconds / 1e9, UTC).isoformat().replace("+00:00", "Z")


def _shown(value: Any, verbose: bool) -> Any:
    if isinstance(value, SkippedArray) or (isinstance(value, list) and not verbose):
        return None
    return value
