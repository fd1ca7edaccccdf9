"""A vocabulary for synthetic models: SentencePiece style, made here, so that no other file is needed.

It encodes every text: common English words are one token each, other words fall apart into characters, and
what is left into byte tokens. The rest of the real model's size is filled with syllables that read as
pseudo-words. The turn markers are those of the ChatML template that the model carries.
"""

from collections.abc import Iterator
from itertools import islice, product

from gguf.constants import TokenType

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
UNKNOWN, BEGIN, END = 0, 1, 2
_SPECIAL = ("<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")
_SPACE = "▁"
_WORDS = """
the of and to in a is that for it as was with be by on not he his but at are this have from or had an they
which one you were all her she there would their we him been has when who will no more if out so up said what
its about than into them can only other time new some could these two may first then do any like my now over
such our man me even most made after also did many off before must well back through years much where your way
down should because long each just state those people too how little good world make very year still see own
work men day get here between both life being under three never know same last another while us might great
go come since against right came take used himself few house use during without again place around however
home small found thought went say part once general high upon school every does got united number hand course
water until always away public something fact less though far put head think called set almost enough end took
government night yet system better four nothing told eyes city going president why days present point didn
look find asked second group later rather large write story about explain computer network memory layer model
language machine data server node cluster program code function test answer question number words sentence
short list describe capital country ocean river mountain sky blue red green white black light dark sun moon star
earth space science history music book reading writing learning child children woman family friend morning
evening summer winter spring autumn rain snow wind fire tree garden bird dog cat horse fish road street train
ship island sea king queen war peace love hope dream once upon there lived named said quick brown fox jumps lazy
hello please thank user assistant system
""".split()


def _pieces() -> Iterator[str]:
    """Every token's text after the special ones and the bytes, most useful first."""
    yield _SPACE
    yield from (chr(c) for c in range(0x21, 0x7F))
    for word in _WORDS:
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
