"""Prompts of an exact number of tokens, whatever the model's vocabulary and chat template."""

WORD_LIST = "the of and to in is that it was for on are as with his they at be this have from or one had by"
# Each is one token, with its leading space, in the Llama 2, Llama 3 and SmolLM2 vocabularies.
WORDS = tuple(WORD_LIST.split())


def words(count: int) -> str:
    """Text of ``count`` common words."""
    return " ".join(WORDS[index % len(WORDS)] for index in range(count))


class PromptSizer:
    """Finds how many words make a prompt of N tokens for one model, by what its server counted.

    A word is a token, and the template adds a fixed number: one answer settles every other length. Should a
    count be off all the same, the next guess is corrected by the difference.
    """

    def __init__(self) -> None:
        self._overhead: int | None = None

    def guess(self, tokens: int) -> int:
        """Words to send for a prompt of ``tokens``; the first guess for a model may be wrong."""
        return max(1, tokens - (20 if self._overhead is None else self._overhead))

    def learn(self, sent_words: int, counted_tokens: int) -> None:
        """Take note of what the server counted for ``sent_words``."""
        self._overhead = counted_tokens - sent_words

    @property
    def shortest(self) -> int | None:
        """The shortest prompt that can be made: one word and the template; None before the first answer."""
        return None if self._overhead is None else self._overhead + 1
