"""The drawing of one placement: router, pool, coordinator, and each backend with the layers it holds."""

from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

from harness.report.figures.svg import (
    BAND,
    GRID,
    INK,
    MUTED,
    NODES,
    Canvas,
    Picture,
    bare_figure,
    picture,
    short,
)
from harness.report.format import size
from harness.report.sections.cluster import Placement, ShareBox

BOX = 46
"""Height of a box, in pixels."""
STEP = 56
"""From one backend's top to the next one's."""


@dataclass(frozen=True)
class _Box:
    """A box in pixels from the drawing's upper left corner."""

    left: float
    top: float
    width: float
    height: float = BOX

    @property
    def middle(self) -> float:
        return self.top + self.height / 2

    @property
    def right(self) -> float:
        return self.left + self.width


def placement_figure(placed: Placement, pool: list[str]) -> Picture:
    """Where the parts of one load were, and what each backend held."""

    def draw(canvas: Canvas) -> Figure:
        backends = len(placed.boxes) * STEP
        height = 16 + backends + (2 * STEP + 20 if canvas.narrow else max(0, 3 * STEP - backends))
        figure, ax = bare_figure(canvas, height)
        hub, shares = _head(ax, canvas, placed, pool, height)
        for box, share in zip(shares, placed.boxes, strict=True):
            _backend(ax, box, share, canvas)
            _arrow(ax, hub, box, canvas)
        return figure

    return picture(f"placement-{placed.anchor}", f"Where {placed.model} went", _spoken(placed, pool), draw)


def _spoken(placed: Placement, pool: list[str]) -> str:
    held = "; ".join(f"{box.node}: {box.layers}, {size(box.bytes)} {box.source}" for box in placed.boxes)
    text = f"Router and coordinator on {placed.head}, the coordinator over RPC to {held}."
    if placed.local_bytes:
        text += f" {size(placed.local_bytes)} of the model stayed with the coordinator."
    return text + (f" Pool on {', '.join(pool)}." if pool else "")


def _head(
    ax: Axes, canvas: Canvas, placed: Placement, pool: list[str], height: int
) -> tuple[_Box, list[_Box]]:
    """Draw what is on the head node; gives the coordinator's box and where the backends go."""
    local = f", {size(placed.local_bytes)} here" if placed.local_bytes else ""
    here = f"on {placed.head}"
    if canvas.narrow:
        half = (canvas.width - 18) / 2
        router = _Box(5, 6, canvas.width - 10)
        hub, other = _Box(5, 6 + STEP + 8, half), _Box(13 + half, 6 + STEP + 8, half)
        shares = [_Box(32, 22 + (2 + n) * STEP, canvas.width - 38) for n in range(len(placed.boxes))]
    else:
        middle = height / 2
        router = _Box(6, middle - BOX / 2, 150)
        hub = _Box(216, middle - BOX / 2 - (STEP / 2 + 8 if pool else 0), 262)
        other = _Box(216, middle - BOX / 2 + STEP / 2 + 8, 262)
        top = (height - len(placed.boxes) * STEP) / 2 + 5
        shares = [_Box(568, top + n * STEP, canvas.width - 574) for n in range(len(placed.boxes))]
    _labelled(ax, router, "Router", here, canvas)
    _labelled(ax, hub, "Coordinator", f"llama-server {here}{local}" if not canvas.narrow else here, canvas)
    _arrow(ax, router, hub, canvas)
    if pool:
        _labelled(ax, other, "Pool", f"small models, on {', '.join(pool)}", canvas)
        _arrow(ax, router, other, canvas)
    if not canvas.narrow and shares:
        ax.text((hub.right + 568) / 2, shares[0].top + 4, "RPC", color=MUTED, fontsize=10, ha="center")
    return hub, shares


def _labelled(ax: Axes, box: _Box, title: str, text: str, canvas: Canvas) -> None:
    _frame(ax, box)
    ax.text(box.left + 12, box.top + 19, title, color=INK, fontsize=11.5, fontweight="bold")
    most = int((box.width - 22) / 6)
    ax.text(box.left + 12, box.top + 36, short(text, canvas, most, most), color=MUTED, fontsize=10.5)


def _backend(ax: Axes, box: _Box, share: ShareBox, canvas: Canvas) -> None:
    """Name and layers at the left, what it holds of its memory as a bar with the figure under it."""
    _frame(ax, box)
    colour = NODES[share.colour]
    ax.add_patch(Rectangle((box.left, box.top), 5, box.height, color=colour, linewidth=0))
    ax.text(
        box.left + 16, box.top + 19, short(share.node, canvas, 22, 14), color=colour, fontsize=11.5,
        fontweight="bold",
    )  # fmt: skip
    ax.text(box.left + 16, box.top + 36, share.layers, color=INK, fontsize=10.5)
    left = box.left + (124 if canvas.narrow else 150)
    length = box.right - left - 14
    ax.add_patch(Rectangle((left, box.top + 12), length, 9, color=GRID, linewidth=0))
    ax.add_patch(Rectangle((left, box.top + 12), length * share.fill, 9, color=colour, linewidth=0))
    ax.text(left, box.top + 36, _held(share, canvas), color=INK, fontsize=10.5)


def _held(share: ShareBox, canvas: Canvas) -> str:
    told = f"{size(share.bytes)} of {size(share.available)}"
    return told if canvas.narrow else f"{told} available ({share.source})"


def _frame(ax: Axes, box: _Box) -> None:
    ax.add_patch(
        FancyBboxPatch(
            (box.left, box.top), box.width, box.height, boxstyle="round,pad=0,rounding_size=6",
            facecolor=BAND, edgecolor=GRID, linewidth=1,
        )
    )  # fmt: skip


def _arrow(ax: Axes, start: _Box, end: _Box, canvas: Canvas) -> None:
    """From one box to another: rightwards on a wide page; downwards, or along a spine, on a narrow one."""
    style = {"arrowstyle": "-|>", "mutation_scale": 10, "color": MUTED, "linewidth": 1.1, "shrinkA": 0}
    if not canvas.narrow:
        path = ((start.right, start.middle), (end.left, end.middle))
    elif end.top > start.top + 2 * STEP or (end.left > start.left + 20 and end.width > 200):
        spine = start.left + 14
        ax.plot([spine, spine], [start.top + start.height, end.middle], color=MUTED, linewidth=1.1)
        path = ((spine, end.middle), (end.left, end.middle))
    else:
        x = end.left + end.width / 2
        path = ((x, start.top + start.height), (x, end.top))
    ax.add_patch(FancyArrowPatch(*path, **style, shrinkB=0))  # type: ignore[arg-type]
