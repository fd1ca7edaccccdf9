"""The end of a log file: bounded in lines, in their length and in what is read."""

from pathlib import Path

_READ_BYTES = 16 * 1024
_LINES = 40
_LINE_CHARACTERS = 400


def log_tail(path: Path | None) -> list[str]:
    """The last lines of a log, oldest first; none where there is no file.

    At most 40 lines of 400 characters. Control characters are shown as U+FFFD.
    """
    if path is None:
        return []
    try:
        with path.open("rb") as file:
            start = max(0, file.seek(0, 2) - _READ_BYTES)
            file.seek(start)
            data = file.read(_READ_BYTES)
    except OSError:
        return []
    lines = data.decode(errors="replace").splitlines()
    if start:
        lines = lines[1:]
    return [_printable(line[:_LINE_CHARACTERS]) for line in lines[-_LINES:]]


def _printable(line: str) -> str:
    return "".join(c if c == "\t" or c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line)
