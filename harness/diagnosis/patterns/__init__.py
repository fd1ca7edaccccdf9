"""Kinds of log lines: the words that every line of a kind has, and the regular expressions that decide.

The kinds are written from llama.cpp's sources (builds 6666 to 11434) and from how failures look in its public
issue threads, 2024 to 2026; what decides a rule is tested on recorded logs.
"""

import re
from dataclasses import dataclass

START = r"(?:^(?:.*\]: |(?:\[\d+\] )?[\d.]+ [A-Z] |[\w.-]+ +\| )?)"
"""Where a message begins: at the line's start, or after what a journal, Docker or a newer build adds."""

_QUOTES = re.compile(
    r"\"(?:prompt|content|messages?|text|input|delta|system_prompt|chat_example|arguments)\" ?:"
    r"|\"reasoning_content\" ?:"
    r"|\b(?:prompt|formatted_chat|chat_example|input|to_send|response|request) ?[=:] ?[\"'{\[<]"
    r"|\btext ?[=:] ?[\"']|Parsed message|data stream, to_send|tokenizer\.chat_template|chat template, "
    r"|next token:|n_decoded = \d+, .*token: "
)
"""Where a line begins to quote a user, a model or a template."""
_INFORMS = re.compile(
    r"(?:^|\s)\d+\.\d\d\.\d{3}\.\d{3} [ID] |\"level\":\"(?:INFO|VERB|DEBUG)\"|(?:^|: )(?:INFO|VERB|DEBUG) +\["
)
"""What llama-server marks as information or debugging, in its formats of 2024 to 2026."""


@dataclass(frozen=True, eq=False)
class Kind:
    """One kind of line, in every known wording."""

    name: str
    meaning: str
    """What such a line says, for docs/diagnoses.md."""
    words: tuple[str, ...]
    """In small letters; each line of this kind has one of them. No word begins another word of any kind."""
    patterns: tuple[re.Pattern[str], ...]
    """The most specific first: of several lines, it is the evidence."""
    unless: re.Pattern[str] | None
    """A line that matches this too says something else: a warning, or a fallback that was used."""
    is_failure: bool
    """Whether such a line reports a failure: then quoted text (a prompt) and information do not count."""

    def match(self, text: str) -> tuple[int, re.Match[str]] | None:
        """The number of the first pattern that makes this line one of this kind, and its match."""
        for rank, pattern in enumerate(self.patterns):
            if match := pattern.search(text):
                if self.unless and self.unless.search(text):
                    return None
                return None if self.is_failure and _is_quoted(text, match.start()) else (rank, match)
        return None


def kind(
    name: str, meaning: str, words: str, *patterns: str, unless: str | None = None, is_failure: bool = True
) -> Kind:
    """A kind of line; ``words`` are joined by ``|``."""
    return Kind(
        name,
        meaning,
        tuple(words.split("|")),
        tuple(re.compile(pattern) for pattern in patterns),
        re.compile(unless) if unless else None,
        is_failure,
    )


def _is_quoted(text: str, at: int) -> bool:
    quote = _QUOTES.search(text)
    return bool(quote and quote.start() <= at) or _INFORMS.search(text) is not None
