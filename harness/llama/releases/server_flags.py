"""Which options of llama-server an administrator may add to a coordinator's command line, by release."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict

from harness.errors import HarnessError
from harness.llama.releases.catalogue import catalogue

SERVER_FLAGS = Path(__file__).with_name("server_flags.yml")

_MOST_FLAGS = 200
_LONGEST = 32 * 1024
"""Of all flags together, in characters; Linux takes 128 KiB for one argument."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Options(_Strict):
    names: tuple[str, ...]
    takes_value: bool
    since: int = 0
    until: int | None = None

    def known_to(self, build: int | None) -> bool:
        return build is None or (self.since <= build and (self.until is None or build < self.until))


class _ServerFlags(_Strict):
    allowed: tuple[_Options, ...]
    refused: dict[str, tuple[str, ...]]
    """By reason."""


def check_server_flags(flags: Sequence[str], build: int | None) -> None:
    """Refuse flags that are not on the list of the release.

    Args:
        flags: options and values, one word each.
        build: the release; None where it is not known: then any release's options are taken, and those that
            an issue of any release forbids are refused.

    Raises:
        HarnessError: a flag is refused, has no value, or is no option.
    """
    if len(flags) > _MOST_FLAGS or sum(map(len, flags)) > _LONGEST:
        raise HarnessError(f"more than {_MOST_FLAGS} flags, or more than {_LONGEST} characters of them")
    if any("\0" in word for word in flags):
        raise HarnessError("a flag has a NUL character")
    refused: list[str] = []
    words = iter(flags)
    for word in words:
        name = _normalised(word)
        if reason := _refusal(name, build):
            if word.startswith("-") or not refused:  # else the value of a refused option
                refused.append(f"{word[:100]!a} ({reason})")
        elif _takes_value(name) and next(words, None) is None:
            refused.append(f"'{name}' (its value is missing)")
    if refused:
        raise HarnessError(
            f"flags that are refused: {', '.join(refused[:10])}; see 'Flags' in docs/operation.md"
        )


def _normalised(word: str) -> str:
    """As llama.cpp reads an option's name (``common_params_parse_ex``, common/arg.cpp)."""
    return word.replace("_", "-") if word.startswith("--") else word


def _takes_value(name: str) -> bool:
    return any(options.takes_value for options in _read().allowed if name in options.names)


def _refusal(name: str, build: int | None) -> str | None:
    issues = catalogue().issues if build is None else catalogue().known_issues(build)
    if forbidden := next((issue.id for issue in issues if name in issue.refused_flags), None):
        return f"unsafe with this release: {forbidden}"
    found = [options for options in _read().allowed if name in options.names]
    if any(options.known_to(build) for options in found):
        return None
    if found:
        return f"llama.cpp {build} has no such option"
    by_name = (reason for reason, names in _read().refused.items() if name in names)
    return next(by_name, "it is not on the list of allowed options" if name.startswith("-") else "no option")


@cache
def _read() -> _ServerFlags:
    return _ServerFlags.model_validate(yaml.safe_load(SERVER_FLAGS.read_text(encoding="utf-8")))
