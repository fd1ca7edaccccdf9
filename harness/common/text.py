"""Short pieces of text for messages."""

GIB = 1 << 30
MIB = 1 << 20


def gib(size_bytes: float, digits: int = 1) -> str:
    """A size in GiB, such as ``15.5 GiB``."""
    return f"{size_bytes / GIB:.{digits}f} GiB"


def last_line(output: str | bytes, otherwise: str = "no output") -> str:
    """The last line of a program's output that holds text; ``otherwise`` where there is none."""
    text = output.decode(errors="replace") if isinstance(output, bytes) else output
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), otherwise)
