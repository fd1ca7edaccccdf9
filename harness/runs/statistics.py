"""Median, spread and difference of repeated measurements, each with what is not known about it.

Intervals are percentile bootstraps of the median (Efron and Tibshirani, An Introduction to the Bootstrap,
chapter 13), seeded: the same values give the same interval. Fewer than ``FEWEST`` values have none.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FEWEST = 3
"""Values below which no interval is given: it would only repeat the values."""
FEWEST_DRIFT = 5
"""Points below which a slope has no interval: noise of three is called a drift one time in three."""
FEW = 10
"""Up to so many values are shown one by one."""
LEVEL = 0.95
_RESAMPLES = 2000
_DRAWS = 200_000
"""Values drawn in all: long runs get fewer resamples, of which each is steadier."""
_SEED = 95
_BLOCKS = 10
"""With so many, AR(1) noise of 0.9 over 400 points is called a drift 7 times in 100, of 0.98 16 times."""
_NORMAL_QUANTILE = 1.959964
"""Of 97.5%."""

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Spread:
    """Repeats of one figure, in its unit."""

    values: tuple[float, ...]
    """In the order they were measured."""
    median: float
    low: float | None
    """Lower end of the median's 95% interval; None of fewer than three values."""
    high: float | None

    @property
    def n(self) -> int:
        """How many values there are."""
        return len(self.values)

    @property
    def few(self) -> bool:
        """Whether all of them should be shown."""
        return self.n <= FEW


@dataclass(frozen=True)
class Difference:
    """A figure of one group compared with the same figure of another."""

    ratio: float
    """Median after / median before; infinite where only the first is zero, 1 where both are."""
    low: float | None
    """Lower end of the ratio's 95% interval; None where a group has fewer than three values."""
    high: float | None

    @property
    def beyond_noise(self) -> bool:
        """Whether the interval leaves out 1; with too few values nobody can tell."""
        return self.low is not None and self.high is not None and not self.low <= 1 <= self.high


def spread(values: Sequence[float]) -> Spread | None:
    """Median and its interval; None of no values."""
    if not values:
        return None
    data = np.asarray(values, dtype=np.float64)
    low, high = _ends(_medians(data)) if len(data) >= FEWEST else (None, None)
    return Spread(tuple(values), float(np.median(data)), low, high)


def difference(before: Sequence[float], after: Sequence[float]) -> Difference | None:
    """Ratio of two medians and its interval, the groups resampled apart; None where a group is empty."""
    if not before or not after:
        return None
    old, new = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    ratio = float(_ratios(np.median(new, keepdims=True), np.median(old, keepdims=True))[0])
    if min(len(old), len(new)) < FEWEST:
        return Difference(ratio, None, None)
    size = min(_resamples(len(old)), _resamples(len(new)))
    # The second group's draws must not follow the first's: equal groups would look equal without any noise.
    return Difference(ratio, *_ends(_ratios(_medians(new, size, seed=_SEED + 1), _medians(old, size))))


@dataclass(frozen=True)
class Drift:
    """How a figure moves with time, in its unit per second."""

    per_s: float
    low: float
    high: float

    @property
    def beyond_noise(self) -> bool:
        """Whether its interval leaves out standing still."""
        return not self.low <= 0 <= self.high


def drift(times_s: Sequence[float], values: Sequence[float]) -> Drift | None:
    """The median of the slopes of all pairs of points, which outliers hardly move.

    Theil-Sen estimator with Sen's interval (Sen, Estimates of the regression coefficient based on Kendall's
    tau, 1968), which takes points to be independent: those of a long series are put together in ``_BLOCKS``
    medians, for one second's memory is nearly the last one's.

    Returns:
        None of fewer than ``FEWEST_DRIFT`` points, or where all are of one moment.
    """
    blocks = min(len(values), _BLOCKS)
    if blocks < FEWEST_DRIFT:
        return None
    x, y = (
        np.array([np.median(part) for part in np.array_split(np.asarray(series, dtype=np.float64), blocks)])
        for series in (times_s, values)
    )
    first, second = np.triu_indices(len(x), 1)
    apart = x[second] - x[first]
    slopes = np.sort(((y[second] - y[first])[apart != 0]) / apart[apart != 0])
    if not len(slopes):
        return None
    n = len(x)
    reach = _NORMAL_QUANTILE * np.sqrt(n * (n - 1) * (2 * n + 5) / 18)
    low = max(0, round((len(slopes) - reach) / 2) - 1)
    high = min(len(slopes) - 1, round((len(slopes) + reach) / 2))
    return Drift(float(np.median(slopes)), float(slopes[low]), float(slopes[high]))


def _resamples(count: int) -> int:
    return max(200, min(_RESAMPLES, _DRAWS // count))


def _medians(data: Values, size: int | None = None, *, seed: int = _SEED) -> Values:
    drawn = np.random.default_rng(seed).integers(0, len(data), (size or _resamples(len(data)), len(data)))
    medians: Values = np.median(data[drawn], axis=1)
    return medians


def _ratios(after: Values, before: Values) -> Values:
    """What was nothing and is something has grown without bound; two nothings are equal."""
    ratios: Values = np.where(after == before, 1.0, np.inf)
    return np.divide(after, before, out=ratios, where=before != 0)


def _ends(resampled: Values) -> tuple[float, float]:
    tail = (1 - LEVEL) / 2
    if np.isfinite(resampled).all():
        low, high = np.quantile(resampled, [tail, 1 - tail])
    else:  # Between a number and infinity nothing can be interpolated.
        ordered, last = np.sort(resampled), len(resampled) - 1
        low, high = ordered[int(tail * last)], ordered[last - int(tail * last)]
    return float(low), float(high)
