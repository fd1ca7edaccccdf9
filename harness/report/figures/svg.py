"""One style for all figures, and their form in the page: inline SVG in the page's own colours.

Matplotlib draws in the light theme's colours; each of these is then replaced by the CSS variable that
holds it, so that the dark theme and print recolour a figure without another copy of it.
"""

import io
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape

import matplotlib as mpl
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from harness.report.format import printable

INK, MUTED, GRID, BAND, PAPER = "#1b2733", "#5a6875", "#d9dfe5", "#eef2f5", "#fefefe"
SWAP, BAD, ACCENT = "#b4341a", "#b3261f", "#0b5cab"
NODES = ("#0072b2", "#b86200", "#00805d", "#a8488b", "#5b6fd6", "#7a6a00", "#3e7f8c", "#8a5a44")
PHASES = {
    "connect": "#566573",
    "open": "#8c99a6",
    "transfer": "#2b7a8c",
    "kv": "#9bb35a",
    "warmup": "#d0a13a",
    "other": "#c2cad1",
}
VARIABLES = (
    {INK: "--ink", MUTED: "--muted", GRID: "--grid", BAND: "--band", PAPER: "--paper"}
    | {SWAP: "--swap", BAD: "--bad", ACCENT: "--accent"}
    | {colour: f"--n{place}" for place, colour in enumerate(NODES)}
    | {colour: f"--p-{phase}" for phase, colour in PHASES.items()}
)
STYLE: dict[str, object] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "llama-harness",
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": 11.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GRID,
    "axes.facecolor": "none",
    "axes.labelsize": 11.5,
    "axes.titlesize": 11.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": True,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 10.5,
    "ytick.labelsize": 10.5,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "lines.linewidth": 1.5,
    "path.simplify": True,
    "path.simplify_threshold": 0.4,
}


@dataclass(frozen=True)
class Canvas:
    """A width to draw for: one unit is one CSS pixel, so text keeps its size on every screen."""

    name: str
    width: int

    @property
    def narrow(self) -> bool:
        """Whether this is the phone's figure."""
        return self.width < 500


WIDE = Canvas("wide", 1040)
NARROW = Canvas("narrow", 350)


def new_figure(canvas: Canvas, height: int) -> Figure:
    """An empty figure, ``canvas.width`` by ``height`` pixels, outside pyplot's global state."""
    layout = ConstrainedLayoutEngine(w_pad=4 / 72, h_pad=4 / 72, hspace=0, wspace=0.02)
    return Figure(figsize=(canvas.width / 72, height / 72), dpi=72, layout=layout)


def node_colour(nodes: list[str], name: str) -> str:
    """The node's colour: decided by its place in the run, the same in every figure and table."""
    return NODES[nodes.index(name) % len(NODES)]


def _to_svg(figure: Figure, prefix: str, title: str, alt: str) -> str:
    """The figure as an ``<svg>`` element for a page that holds others.

    Args:
        figure: drawn under :data:`STYLE`.
        prefix: unique in the page; put before every identifier that the figure refers to.
        title: its name, of a few words.
        alt: what it shows, in words, for those who cannot see it.
    """
    stream = io.StringIO()
    # Not figure.savefig, which draws everything twice to lay it out.
    metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    FigureCanvasSVG(figure).print_svg(stream, metadata=metadata)  # type: ignore[no-untyped-call]
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->\n?|<style.*?</style>", "", text, flags=re.DOTALL)
    used = set(re.findall(r"url\(#([^)]+)\)", text)) | set(re.findall(r'href="#([^"]+)"', text))
    text = re.sub(r"<[^>]+>", lambda tag: _adopt(tag.group(), prefix, used), text)
    text = re.sub(r"<g/>|\n\s*(?=<)", "", text)
    view = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', text)
    width = round(float(view.group(1))) if view else 0
    head = f'<svg class="plot" role="img" aria-labelledby="{prefix}-title {prefix}-desc"'
    box = view.group(0) if view else ""
    named = f'<title id="{prefix}-title">{_words(title)}</title><desc id="{prefix}-desc">{_words(alt)}</desc>'
    return f'{head} style="max-width:{width}px" {box}>{named}{text[text.index(">") + 1 :]}'.strip()


def _words(text: str) -> str:
    return escape(printable(" ".join(text.split())))


def _adopt(tag: str, prefix: str, used: set[str]) -> str:
    """One tag with the page's colours and with identifiers that cannot meet another figure's.

    Matplotlib escapes ``<`` and ``>`` in text and attributes, so a tag never holds foreign text.
    """

    def name(match: re.Match[str]) -> str:
        return f' id="{prefix}-{match.group(1)}"' if match.group(1) in used else ""

    tag = re.sub(r'\s+id="([^"]*)"', name, tag)
    tag = re.sub(r" transform=\"rotate\(-0 [^\"]*\"|font-family: 'DejaVu Sans'; ", "", tag)
    tag = re.sub(r"\s*\n", " ", re.sub(r"(?<=\d)\.\d{2,}", _one_decimal, tag))
    tag = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", tag)
    tag = re.sub(r'(?:xlink:)?href="#([^"]+)"', rf'href="#{prefix}-\1"', tag)
    return re.sub(r"#[0-9a-f]{6}\b", _variable, tag)


def _one_decimal(match: re.Match[str]) -> str:
    """A tenth of a pixel is enough; style values such as 0.22 are short and stay."""
    decimals = match.group()
    return decimals[:2].removesuffix(".0") if len(decimals) > 3 else decimals


def _variable(match: re.Match[str]) -> str:
    colour = match.group()
    return f"var({VARIABLES[colour]})" if colour in VARIABLES else colour


@contextmanager
def _matplotlib_style() -> Iterator[None]:
    """Matplotlib's settings for one drawing, without warnings of glyphs that its font lacks.

    The page's own font draws the text, so such a glyph only moves a label a little.
    """
    with warnings.catch_warnings(), mpl.rc_context(STYLE):  # type: ignore[arg-type]
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
        yield


@dataclass(frozen=True)
class Picture:
    """One figure in its two widths."""

    wide: str
    narrow: str


def draw_picture(prefix: str, title: str, alt: str, draw: Callable[[Canvas], Figure]) -> Picture:
    """Draw a figure for both widths.

    Args:
        prefix: unique in the page.
        title: the figure's accessible name.
        alt: its figures in words, for those who cannot see it.
        draw: makes the figure for a width.
    """
    with _matplotlib_style():
        svgs = [
            _to_svg(draw(canvas), f"figure-{prefix}-{canvas.name}", title, alt) for canvas in (WIDE, NARROW)
        ]
    return Picture(*svgs)


def short(text: str, canvas: Canvas, wide: int = 34, narrow: int = 20) -> str:
    """A label that fits its axis."""
    most = narrow if canvas.narrow else wide
    clean = printable(" ".join(text.split()))
    return clean if len(clean) <= most else clean[: most - 1] + "…"
