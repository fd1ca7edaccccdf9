"""The soak figure: each request's rate over the length of its soak."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from harness.report.figures.svg import ACCENT, INK, Canvas, Picture, new_figure, picture, short
from harness.report.format import rate, seconds
from harness.report.sections.kinds import SoakRow

MOST_DOTS = 400


def soak_figure(soaks: Sequence[SoakRow]) -> Picture | None:
    """A row of axes per soak; None where no request of any gave a rate."""
    drawn = [row for row in soaks if row.rates]
    if not drawn:
        return None

    def draw(canvas: Canvas) -> Figure:
        figure = new_figure(canvas, 120 * len(drawn) + 56)
        grid = figure.subplots(len(drawn), 1, squeeze=False)[:, 0]
        for ax, row in zip(grid, drawn, strict=True):
            held = np.asarray(row.rates)
            kept = held[np.unique(np.linspace(0, len(held) - 1, MOST_DOTS).astype(int))]
            ax.scatter(kept[:, 0] / 60, kept[:, 1], s=14, color=ACCENT, alpha=0.7, linewidths=0)
            ax.axhline(float(np.median(held[:, 1])), color=INK, linewidth=1.2)
            ax.set_xlim(0, max(row.took_s, 1.0) / 60)
            ax.set_ylim(0, float(held[:, 1].max()) * 1.2)
            ax.set_title(short(row.trial, canvas, 60, 40), loc="left", fontsize=11.5, color=INK, pad=3)
        grid[-1].set_xlabel("time since the start of the soak (min)")
        figure.supylabel("decode rate (tokens/s)", fontsize=11.5)
        return figure

    spoken = "; ".join(
        f"{row.trial}: {len(row.rates)} requests in {seconds(row.took_s)}, "
        f"median {rate(float(np.median([value for _, value in row.rates])))}"
        for row in drawn
    )
    return picture("soak", "Decode rate over each soak", f"{spoken}.", draw)
