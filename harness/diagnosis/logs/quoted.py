"""Text in a log that is not llama.cpp's own word: prompts and answers it quotes, templates, news."""

import re

_QUOTES = re.compile(
    r"\"(?:prompt|content|messages?|text|input|delta|system_prompt|chat_example|arguments)\" ?:"
    r"|\"reasoning_content\" ?:"
    r"|\b(?:prompt|formatted_chat|chat_example|input|to_send|response|request) ?[=:] ?[\"'{\[<]"
    r"|\btext ?[=:] ?[\"']|Parsed message|data stream, to_send|tokenizer\.chat_template|chat template, "
    r"|next token:|n_decoded = \d+, .*token: "
)
_INFORMS = re.compile(
    r"(?:^|\s)\d+\.\d\d\.\d{3}\.\d{3} [ID] |\"level\":\"(?:INFO|VERB|DEBUG)\"|(?:^|: )(?:INFO|VERB|DEBUG) +\["
)


def quote_at(text: str) -> int:
    """Where a line begins to quote a user, a model or a template; beyond its end where it does not."""
    found = _QUOTES.search(text)
    return found.start() if found else len(text) + 1


def informs(text: str) -> bool:
    """Whether llama-server itself marks a line as news or debugging, in its formats of 2024 to 2026."""
    return _INFORMS.search(text) is not None
