"""Geometry of line charts. The template draws them as SVG, so they print and need no script."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.ticker import LogLocator, MaxNLocator

from ral.report.templating import compact
from ral.statistics import seed_band

#: The drawing area, in units of the SVG's view box.
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 420.0, 230.0, 52.0, 12.0, 12.0, 38.0

#: More points than this per line are averaged into as many buckets: a page is not the place for 10,000 steps.
MAX_POINTS = 240


@dataclass(frozen=True)
class Series:
    """One metric of one arm: finite `values` `[runs, points]` of each of its runs at `x` `[points]`, in the order of `x`."""

    arm: int
    label: str
    x: np.ndarray
    values: np.ndarray
    dashed: bool = False


@dataclass(frozen=True)
class Line:
    """A drawn series: SVG paths of one run's raw values, of the smoothed mean, and of its interval over several runs; and
    the smoothed points for reading off."""

    arm: int
    label: str
    dashed: bool
    raw: str
    smooth: str
    band: str
    x: list[float]
    y: list[float]
    dots: list[tuple[float, float]]


@dataclass(frozen=True)
class Chart:
    """A line chart: ticks are (position, label); `bands` are x positions to emphasise; `alt` says it in words."""

    key: str
    title: str
    note: str
    x_label: str
    lines: list[Line]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    x_range: tuple[float, float]
    bands: list[float]
    alt: str

    def data(self) -> dict[str, Any]:
        """The data that the script needs to show values under the pointer."""
        lines = [{"x": line.x, "y": [compact(value) for value in line.y]} for line in self.lines]
        return {"range": self.x_range, "area": [LEFT, WIDTH - RIGHT], "lines": lines}


@dataclass(frozen=True)
class Axis:
    """A scale: levels from `low` to `high` are drawn from `start` to `end`. On a logarithmic one levels are logarithms to 10."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def place(self, levels: np.ndarray) -> np.ndarray:
        """Positions of levels on the drawing; values outside are drawn at the edge."""
        inside = np.clip((levels - self.low) / ((self.high - self.low) or 1.0), 0.0, 1.0)
        return self.start + inside * (self.end - self.start)

    def ticks(self, levels: np.ndarray) -> list[tuple[float, str]]:
        """(position, label) of those levels that the axis reaches; no two labels are alike."""
        reached = [level for level in levels.tolist() if self.low - 1e-9 <= level <= self.high + 1e-9]
        labels = distinct([10**level if self.logarithmic else float(level) for level in reached])
        return [(float(self.place(np.array(level))), label) for level, label in zip(reached, labels, strict=True)]


def line_chart(
    title: str,
    note: str,
    x_label: str,
    series: Sequence[Series],
    *,
    logarithmic: bool = False,
    smoothing: int | None = None,
    bands: Sequence[float] = (),
    dots: bool = False,
) -> Chart:
    """The geometry of one chart. `smoothing` is the width of the moving mean in points, by default a fifteenth of the
    line; `logarithmic` is a wish: it is granted when the positive values span more than a factor of thirty. Several runs
    are drawn as the mean of their moving means with its 95 % t-interval at every point, cut at the edge of the chart; on a
    logarithmic axis both are of the logarithms."""
    window = smoothing or max(1, max(len(line.x) for line in series) // 15)
    shown = np.concatenate([line.values.ravel() for line in series])
    positive = shown[shown > 0]
    log = bool(logarithmic and positive.size and positive.max() > 30 * np.quantile(positive, 0.02))
    averaged = [seed_band(_level(np.stack([_moving_mean(run, window) for run in line.values]), log)) for line in series]
    y_axis, y_levels = _logarithmic_axis(positive) if log else _plain_axis(shown, [mean for mean, _ in averaged])
    first, last = float(min(line.x[0] for line in series)), float(max(line.x[-1] for line in series))
    x_axis = Axis(first, last, LEFT, WIDTH - RIGHT)
    x_levels = np.unique(np.round(MaxNLocator(5 if x_label == "step" else 10, integer=True).tick_values(first, last)))
    lines = [
        _line(line, mean, half, x_axis, y_axis, raw=window > 1, dots=dots)
        for line, (mean, half) in zip(series, averaged, strict=True)
    ]
    return Chart(
        key="".join(character if character.isalnum() else "-" for character in title.lower()),
        title=title,
        note=note + ("; log scale" if log else ""),
        x_label=x_label,
        lines=lines,
        x_ticks=[(place, whole(level)) for place, level in _reached(x_axis, x_levels)],
        y_ticks=y_axis.ticks(y_levels),
        x_range=(first, last),
        bands=[float(x_axis.place(np.array(band))) for band in bands],
        alt=f"{title}. " + " ".join(_in_words(line, x_label) for line in lines),
    )


def whole(number: float) -> str:
    """A number of steps or layers as an axis says it: in full up to a million."""
    return f"{number:,.0f}" if number < 1e6 else f"{number / 1e6:.4g}M"


def distinct(values: Sequence[float]) -> list[str]:
    """The values as an axis says them, with as many decimals as it takes to tell them apart."""
    labels = [compact(value) for value in values]
    for decimals in range(3, 10):
        if len(set(labels)) == len(set(values)):
            break
        labels = [f"{value:.{decimals}f}".replace("-", "−") for value in values]
    return labels


def _reached(axis: Axis, levels: np.ndarray) -> list[tuple[float, float]]:
    """(position, level) of those levels that lie on the axis; of an axis of one point, that point."""
    inside = [axis.low] if axis.low == axis.high else [one for one in levels.tolist() if axis.low <= one <= axis.high]
    return [(float(axis.place(np.array(level))), level) for level in inside]


def _level(values: np.ndarray, logarithmic: bool) -> np.ndarray:
    """Values as an axis counts them; what it cannot show is NaN."""
    return np.log10(np.where(values > 0, values, np.nan)) if logarithmic else values


def _logarithmic_axis(positive: np.ndarray) -> tuple[Axis, np.ndarray]:
    """The axis of the positive values shown, and the levels of its ticks."""
    low, high = float(np.log10(np.quantile(positive, 0.01))), float(np.log10(positive.max()))
    levels = np.log10(LogLocator(numticks=6).tick_values(10**low, 10**high))
    return Axis(low, high, HEIGHT - BOTTOM, TOP, logarithmic=True), levels


def _plain_axis(shown: np.ndarray, means: Sequence[np.ndarray]) -> tuple[Axis, np.ndarray]:
    """The axis of the values shown and of their means, and the levels of its ticks."""
    # One wild step must not flatten the rest of the curve.
    low = min(float(np.quantile(shown, 0.01)), *(float(mean.min()) for mean in means))
    high = max(float(np.quantile(shown, 0.99)), *(float(mean.max()) for mean in means))
    # A constant line still differs from itself by rounding.
    spread = high - low if high - low > 1e-6 * max(abs(low), abs(high)) else 0.0
    margin = spread * 0.06 or abs(high) * 0.1 or 1.0
    low, high = low - margin if low < 0 or low > margin else 0.0, high + margin
    return Axis(low, high, HEIGHT - BOTTOM, TOP), np.asarray(MaxNLocator(5).tick_values(low, high))


def _line(
    line: Series, mean: np.ndarray, half: np.ndarray, x_axis: Axis, y_axis: Axis, *, raw: bool, dots: bool
) -> Line:
    """A series as it is drawn, from the levels of its moving mean and of half its interval; `raw`: with one run's own values."""
    log, several = y_axis.logarithmic, len(line.values) > 1
    x, own, smooth, reach = (_bucket(values) for values in (line.x, _level(line.values[0], log), mean, half))
    read_off = np.nan_to_num(10**smooth) if log else smooth  # a geometric mean with a zero among its values is zero
    across, height = x_axis.place(x), y_axis.place(smooth)
    return Line(
        arm=line.arm,
        label=line.label,
        dashed=line.dashed,
        raw=_path(across, y_axis.place(own)) if raw and not several else "",
        smooth=_path(across, height),
        band=_area(across, y_axis.place(smooth - reach), y_axis.place(smooth + reach)) if several else "",
        x=x.round(2).tolist(),
        y=[float(f"{value:.4g}") for value in read_off],
        dots=list(zip(across.round(1).tolist(), height.round(1).tolist(), strict=True)) if dots else [],
    )


def _in_words(line: Line, x_label: str) -> str:
    best = max(range(len(line.y)), key=line.y.__getitem__)
    if x_label == "layer":
        return f"{line.label}: highest in layer {line.x[best]:.0f} with {compact(line.y[best])}."
    return f"{line.label}: from {compact(line.y[0])} to {compact(line.y[-1])}."


def _moving_mean(values: np.ndarray, window: int) -> np.ndarray:
    """The centred moving mean; at both ends over the part of the window that exists."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    centre = np.arange(len(values))
    first, last = np.maximum(centre - window // 2, 0), np.minimum(centre + (window - 1) // 2, len(values) - 1)
    return (sums[last + 1] - sums[first]) / (last + 1 - first)


def _bucket(values: np.ndarray) -> np.ndarray:
    """At most `MAX_POINTS` values: each the mean of an equal run of `values`."""
    if len(values) <= MAX_POINTS:
        return values
    return np.array([part.mean() for part in np.array_split(values, MAX_POINTS)])


def _area(x: np.ndarray, low: np.ndarray, high: np.ndarray) -> str:
    """The SVG path of a band, broken where a value cannot be drawn."""
    known = np.isfinite(low) & np.isfinite(high)
    paths = []
    for part in np.split(np.arange(len(x)), np.flatnonzero(np.diff(known)) + 1):
        if known[part[0]]:
            back = part[::-1]
            corners = [(x[i], high[i]) for i in part] + [(x[i], low[i]) for i in back]
            paths.append(f"M{'L'.join(f'{px:.1f} {py:.1f}' for px, py in corners)}Z")
    return "".join(paths)


def _path(x: np.ndarray, y: np.ndarray) -> str:
    """An SVG path through the points, broken where a value cannot be drawn."""
    steps, pen_down = [], False
    for px, py in zip(x.tolist(), y.tolist(), strict=True):
        if np.isfinite(py):
            steps.append(f"{'L' if pen_down else 'M'}{px:.1f} {py:.1f}")
            # A lone point still leaves a mark, drawn by the round cap of a line of no length.
            if not pen_down:
                steps.append("h0")
        pen_down = bool(np.isfinite(py))
    return "".join(steps)
