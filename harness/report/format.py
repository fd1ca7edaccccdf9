"""Numbers as text: GiB and MiB, seconds, tokens/s, with three significant digits."""

import re
from datetime import UTC, datetime

from harness.runs.metrics import SWAP_NOISE_BYTES

KIB, MIB, GIB = 1024, 1024**2, 1024**3
DASH = "–"
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]"
)


def size(value: float | None) -> str:
    """Bytes as GiB (from 1 GiB on), MiB or KiB; a dash for None."""
    if value is None:
        return DASH
    for unit, name in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if abs(value) >= unit:
            return f"{digits(value / unit)} {name}"
    return f"{value:.0f} B"


def swap(value: float | None) -> str:
    """Bytes in swap; ``none`` up to the noise limit."""
    return "none" if value is not None and value <= SWAP_NOISE_BYTES else size(value)


def seconds(value: float | None) -> str:
    """A duration: ms below a second, s below two minutes, then min and s, then h and min."""
    if value is None:
        return DASH
    if abs(value) < 1:
        return f"{digits(value * 1000)} ms" if value else "0 s"
    if abs(value) < 120:
        return f"{digits(value)} s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 120:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def rate(value: float | None) -> str:
    """Tokens per second."""
    return DASH if value is None else f"{digits(value)} tokens/s"


def bits(value: float) -> str:
    """A rate of a link: Gbit/s from 1e9 bits per second on, else Mbit/s."""
    return f"{value / 1e9:g} Gbit/s" if value >= 1e9 else f"{value / 1e6:g} Mbit/s"


def digits(value: float) -> str:
    """Three significant digits, no exponent, thousands separated."""
    magnitude = abs(value)
    if magnitude >= 100:
        return f"{value:,.0f}"
    if magnitude >= 10:
        return f"{value:.1f}"
    if magnitude >= 1:
        return f"{value:.2f}"
    return f"{value:.3g}" if magnitude >= 0.001 or not value else f"{value:.1g}"


def percent(value: float | None, *, signed: bool = True) -> str:
    """A ratio (0.031) as per cent (+3.1 %)."""
    if value is None:
        return DASH
    text = f"{value * 100:+.1f}" if signed else f"{value * 100:.0f}"
    return f"{'0.0' if text in ('+0.0', '-0.0') else text} %"


def utc(time_ns: int | None) -> str:
    """A UTC date and time to the second."""
    if time_ns is None:
        return DASH
    return datetime.fromtimestamp(time_ns / 1e9, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def offset(time_ns: int, start_ns: int) -> str:
    """Time since the start of the run as m:ss.s, or h:mm:ss from an hour on."""
    total = max(0.0, (time_ns - start_ns) / 1e9)
    if total >= 3600:
        return f"{int(total // 3600)}:{int(total % 3600 // 60):02d}:{int(total % 60):02d}"
    return f"{int(total // 60)}:{total % 60:04.1f}"


def slug(text: str) -> str:
    """An anchor for HTML made from an identifier."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "x"


def printable(text: str) -> str:
    """The text without characters that HTML and SVG forbid or that reverse the reading order.

    Control characters, surrogates, and the bidirectional overrides and isolates of Unicode (UAX #9) each
    become one replacement character; lines and tabs stay.
    """
    return _UNPRINTABLE.sub("\ufffd", text)
