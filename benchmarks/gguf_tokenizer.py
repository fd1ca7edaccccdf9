"""Writes the tokenizer in a GGUF's header as a folder that Hugging Face's ``transformers`` can load."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gguf import GGUFReader
from gguf.constants import TokenType

_SPLIT_DIGITS = {"smollm": True, "gpt-2": False}
"""Byte-level BPE by ``tokenizer.ggml.pre``: whether digits are split apart before GPT-2's own rule.

As llama.cpp's ``llama-vocab.cpp`` has them (build 6751).
"""
_ATOMIC = (TokenType.CONTROL, TokenType.USER_DEFINED)


def tokenizer_json(tokens: Sequence[str], types: Sequence[int], merges: Sequence[str], pre: str) -> Any:
    """Content of ``tokenizer.json`` for a byte-level BPE vocabulary.

    Args:
        tokens: texts by id; bytes are encoded as GPT-2's characters.
        types: ggml's type of each token.
        merges: ``left right``, most frequent first.
        pre: llama.cpp's name of the pre-tokenizer, which splits the text before the merges.

    Raises:
        KeyError: this module does not know ``pre``.
    """
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    digits = [{"type": "Digits", "individual_digits": True}] if _SPLIT_DIGITS[pre] else []
    atomic = [
        {"id": i, "content": text, "special": kind == TokenType.CONTROL, "normalized": False}
        | dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
        for i, (text, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in _ATOMIC
    ]
    return {
        "version": "1.0",
        "added_tokens": atomic,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*digits, byte_level]},
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "vocab": {text: i for i, text in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in merges],
        },
    }


def write_tokenizer(model: Path, folder: Path) -> Path:
    """Write the tokenizer of ``model`` to ``folder``."""
    fields = GGUFReader(model).fields

    def value(name: str) -> Any:
        return fields[f"tokenizer.ggml.{name}"].contents()

    if value("model") != "gpt2" or value("pre") not in _SPLIT_DIGITS:
        raise SystemExit(
            f"{model}: a {value('model')} vocabulary cut by {value('pre')}; "
            f"only byte-level BPE cut by {' or '.join(_SPLIT_DIGITS)} is written here"
        )
    tokens = value("tokens")
    content = tokenizer_json(tokens, value("token_type"), value("merges"), value("pre"))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(content))
    ends = {f"{end}_token": tokens[value(f"{end}_token_id")] for end in ("bos", "eos")}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **ends}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder
