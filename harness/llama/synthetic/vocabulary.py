"""A vocabulary for synthetic models: SentencePiece style, made here, so that no other file is needed.

It encodes every text: common English words are one token each, other words fall apart into characters, and
what is left into byte tokens. The rest of the real model's size is filled with syllables that read as
pseudo-words. The turn markers are those of the ChatML template that the model carries.
"""

from collections.abc import Iterator
from importlib.resources import files
from itertools import islice, product

from gguf.constants import TokenType

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
UNKNOWN, BEGIN, END = 0, 1, 2
_SPECIAL = ("<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")
_SPACE = "▁"


def _pieces() -> Iterator[str]:
    """Every token's text after the special ones and the bytes, most useful first."""
    yield _SPACE
    yield from (chr(c) for c in range(0x21, 0x7F))
    for word in files(__package__).joinpath("words.txt").read_text().split():
        # Merging runs left to right, so each prefix has to be a token of its own.
        text = _SPACE + word
        yield from (text[:n] for n in range(2, len(text) + 1))
    syllables = [c + v for c, v in product("bdfghklmnprstvwz", "aeiou")]
    for count in (2, 3, 4):
        yield from (_SPACE + "".join(parts) for parts in product(syllables, repeat=count))


def make_vocabulary(size: int) -> tuple[list[str], list[float], list[int]]:
    """Texts, scores and types of ``size`` distinct tokens."""
    fixed = [*_SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    texts = list(islice(dict.fromkeys([*fixed, *islice(_pieces(), size + 4096)]), size))
    types = [TokenType.CONTROL] * len(_SPECIAL) + [TokenType.BYTE] * 256
    types[UNKNOWN] = TokenType.UNKNOWN
    types += [TokenType.NORMAL] * (size - len(types))
    scores = [0.0] * len(fixed) + [-float(rank) for rank in range(size - len(fixed))]
    return texts, scores, [int(t) for t in types[:size]]
