"""Sizes and short pieces of text, for messages and as people type them."""

import re

from pydantic import ValidationError

GIB = 1 << 30
MIB = 1 << 20
_UNITS = {"": 1, "K": 1 << 10, "M": MIB, "G": GIB, "T": 1 << 40}


def gib(size_bytes: float, digits: int = 1) -> str:
    """A size in GiB, such as ``15.5 GiB``."""
    return f"{size_bytes / GIB:.{digits}f} GiB"


def printable(text: str) -> str:
    """Text of a node or a log that is safe to print: control characters but tab and newline become U+FFFD."""
    return "".join(c if c in "\t\n" or c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def last_line(output: str | bytes, otherwise: str = "no output") -> str:
    """The last line of a program's output that holds text, printable; ``otherwise`` where there is none."""
    text = output.decode(errors="replace") if isinstance(output, bytes) else output
    return next((printable(line.strip()) for line in reversed(text.splitlines()) if line.strip()), otherwise)


def parse_size(value: object) -> int:
    """Bytes in ``5.6G``, ``512M`` or a plain number (binary units).

    Raises:
        ValueError: it is no size.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:iB|B)?", str(value).strip(), re.IGNORECASE)
    if not match:
        raise ValueError(f"'{value}' is not a size such as 512M or 5.6G")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def first_error(error: ValidationError, *, root: str = "file") -> str:
    """The first error as ``key.path: message``; ``root`` names an error of the document as a whole."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"]) or root
    return f"{where}: {first['msg']}"
