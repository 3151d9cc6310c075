"""Line charts as geometry: the template draws them as SVG, so that they print and need no script."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.ticker import LogLocator, MaxNLocator

from ral.report.artefacts import Run, number
from ral.report.experiment import Arm
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
        """What the script needs to read values off the chart under the pointer."""
        lines = [{"x": line.x, "y": [compact(value) for value in line.y]} for line in self.lines]
        return {"range": self.x_range, "area": [LEFT, WIDTH - RIGHT], "lines": lines}


@dataclass(frozen=True)
class Curve:
    """Which metrics one chart shows: (key in metrics.jsonl, suffix of the label, dashed)."""

    title: str
    note: str
    metrics: tuple[tuple[str, str, bool], ...]
    logarithmic: bool = False


CURVES = (
    Curve("Reward", "mean over the rollouts of a step", (("reward", "", False),)),
    Curve("Accuracy of the rollouts", "share of the rollouts rewarded as right", (("reward/accuracy", "", False),)),
    Curve(
        "Distance of the attention from its anchor",
        "Jensen–Shannon divergence; A > 0: rollouts better than their group",
        (("attention/jsd_positive", "A > 0", False), ("attention/jsd_negative", "A < 0", True)),
        logarithmic=True,
    ),
    Curve(
        "Attention gradient against token gradient",
        "ratio of their norms: what the attention term weighs",
        (("grad/attention_to_token", "", False),),
        logarithmic=True,
    ),
    Curve("Visual share", "share of the attention that falls on the image", (("visual_share", "", False),)),
    Curve("Completion length", "tokens, mean over the rollouts", (("completion_length", "", False),)),
    Curve(
        "Token accuracy",
        "share of the worked examples' tokens that are the most likely ones",
        (("mean_token_accuracy", "", False),),
    ),
)

MORE_CURVES = (
    Curve("Loss", "what is minimised", (("loss", "", False),)),
    Curve("Groups without signal", "share of prompts whose rollouts all scored the same", (("groups_without_signal", "", False),)),
    Curve("Entropy", "of the token distribution, nats", (("entropy", "", False),)),
    Curve("KL to the reference", "estimate, per token", (("kl", "", False),), logarithmic=True),
    Curve("Clipped tokens", "share of tokens outside the trust region", (("clip_fraction", "", False),)),
    Curve("Gradient norm", "before clipping", (("grad_norm", "", False),)),
    Curve("Learning rate", "", (("learning_rate", "", False),)),
)  # fmt: skip


def training_charts(arms: Sequence[Arm], curves: Sequence[Curve]) -> list[Chart]:
    """A chart for each of `curves` that at least one arm logged."""
    charts = []
    for curve in curves:
        series = [
            found
            for index, arm in enumerate(arms)
            for key, suffix, dashed in curve.metrics
            if (found := _series(index, f"{arm.label}, {suffix}" if suffix else arm.label,
                                 [run.metrics for run in arm.runs], key, dashed))
        ]  # fmt: skip
        if series:
            charts.append(line_chart(curve.title, curve.note, "step", series, logarithmic=curve.logarithmic))
    return charts


def layer_charts(arms: Sequence[Arm], task: str, trained: Sequence[Sequence[int]]) -> list[Chart]:
    """The layer sweep: pointing game, mass in box and visual share by layer, of the arms evaluated on `task`.

    `trained` are the trained layers of every arm, which may count from the end, as in a config.
    """
    names = (
        ("pointing", "Pointing game by layer", "share of items whose most attended token lies in the true box"),
        ("mass", "Mass in box by layer", "share of the visual attention that falls into the true box"),
        ("visual_share", "Visual share by layer", "share of the attention that falls on the image"),
    )
    charts = []
    for key, title, note in names:
        series, bands = [], set()
        for index, arm in enumerate(arms):
            sweeps = [_by_layer(run.evaluations[task].summary.get("layers")) for run in arm.evaluated(task)]
            if found := _series(index, arm.label, sweeps, key, False):
                series.append(found)
                depth = len(found.x)
                bands |= {layer % depth for layer in trained[index] if -depth <= layer < depth}
        if series:
            charts.append(line_chart(title, note, "layer", series, smoothing=1, bands=sorted(bands), dots=True))
    return charts


def _by_layer(layers: object) -> list[dict[str, Any]]:
    rows = layers if isinstance(layers, list) else []
    return [{"step": index, **row} for index, row in enumerate(rows) if isinstance(row, dict)]


def looking_charts(arms: Sequence[Arm]) -> list[Chart]:
    """The looks along training: mass in box and visual share, means over the looked-at items with boxes."""
    names = (
        ("mass", "Mass in box along training", "share of the visual attention in the true box, mean over these images"),
        ("visual_share", "Visual share along training", "share of the attention that falls on the image, their mean"),
    )
    charts = []
    for key, title, note in names:
        found = [
            _series(i, arm.label, [_mean_looks(run, key) for run in arm.runs], key, False) for i, arm in enumerate(arms)
        ]
        if series := [one for one in found if one is not None]:
            charts.append(line_chart(title, note, "step", series, smoothing=1))
    return charts


def _mean_looks(run: Run, key: str) -> list[dict[str, Any]]:
    """The mean of the grounding metric `key` at every step that a run was looked at."""
    measured: dict[int, list[float]] = {}
    for item in run.looks:
        value = None if item.grounding is None else number(getattr(item.grounding, key))
        if value is not None and item.step is not None:
            measured.setdefault(item.step, []).append(value)
    return [{"step": step, key: sum(values) / len(values)} for step, values in measured.items()]


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

    def level(values: np.ndarray) -> np.ndarray:
        """Values as the axis counts them; what it cannot show is NaN."""
        return np.log10(np.where(values > 0, values, np.nan)) if log else values

    averaged = [seed_band(level(np.stack([_moving_mean(run, window) for run in line.values]))) for line in series]
    if log:
        low, high = np.log10(np.quantile(positive, 0.01)), np.log10(positive.max())
        locations = np.log10(LogLocator(numticks=6).tick_values(10**low, 10**high))
    else:
        # One wild step must not flatten the rest of the curve.
        low = min(float(np.quantile(shown, 0.01)), *(float(mean.min()) for mean, _ in averaged))
        high = max(float(np.quantile(shown, 0.99)), *(float(mean.max()) for mean, _ in averaged))
        # A constant line still differs from itself by rounding.
        spread = high - low if high - low > 1e-6 * max(abs(low), abs(high)) else 0.0
        margin = spread * 0.06 or abs(high) * 0.1 or 1.0
        low, high = low - margin if low < 0 or low > margin else 0.0, high + margin
        locations = np.asarray(MaxNLocator(5).tick_values(low, high))
    x_low, x_high = float(min(line.x[0] for line in series)), float(max(line.x[-1] for line in series))

    def place_x(x: np.ndarray) -> np.ndarray:
        return LEFT + (x - x_low) / ((x_high - x_low) or 1.0) * (WIDTH - LEFT - RIGHT)

    def place_y(y: np.ndarray) -> np.ndarray:
        inside = np.clip((y - low) / ((high - low) or 1.0), 0.0, 1.0)
        return HEIGHT - BOTTOM - inside * (HEIGHT - TOP - BOTTOM)

    lines = []
    for line, (mean, half) in zip(series, averaged, strict=True):
        x, raw, smooth, reach = (_bucket(values) for values in (line.x, level(line.values[0]), mean, half))
        read_off = np.nan_to_num(10**smooth) if log else smooth  # a geometric mean with a zero among its values is zero
        several = len(line.values) > 1
        points = list(zip(place_x(x).round(1).tolist(), place_y(smooth).round(1).tolist(), strict=True))
        lines.append(
            Line(
                arm=line.arm, label=line.label, dashed=line.dashed,
                raw=_path(place_x(x), place_y(raw)) if window > 1 and not several else "",
                smooth=_path(place_x(x), place_y(smooth)),
                band=_area(place_x(x), place_y(smooth - reach), place_y(smooth + reach)) if several else "",
                x=x.round(2).tolist(), y=[float(f"{value:.4g}") for value in read_off], dots=points if dots else [],
            )
        )  # fmt: skip
    ticks = MaxNLocator(5 if x_label == "step" else 10, integer=True).tick_values(x_low, x_high)
    return Chart(
        key="".join(character if character.isalnum() else "-" for character in title.lower()),
        title=title,
        note=note + ("; log scale" if log else ""),
        x_label=x_label,
        lines=lines,
        x_ticks=[(float(place_x(np.array(t))), compact(float(t))) for t in ticks if x_low <= t <= x_high],
        y_ticks=[
            (float(HEIGHT - BOTTOM - (t - low) / (high - low) * (HEIGHT - TOP - BOTTOM)), compact(10**t if log else float(t)))
            for t in locations.tolist()
            if low - 1e-9 <= t <= high + 1e-9
        ],
        x_range=(x_low, x_high),
        bands=[float(place_x(np.array(band))) for band in bands],
        alt=f"{title}. " + " ".join(_in_words(line, x_label) for line in lines),
    )  # fmt: skip


def _in_words(line: Line, x_label: str) -> str:
    best = max(range(len(line.y)), key=line.y.__getitem__)
    if x_label == "layer":
        return f"{line.label}: highest in layer {line.x[best]:.0f} with {compact(line.y[best])}."
    return f"{line.label}: from {compact(line.y[0])} to {compact(line.y[-1])}."


def _series(arm: int, label: str, runs: Sequence[Sequence[dict[str, Any]]], key: str, dashed: bool) -> Series | None:
    """The metric `key` of the `runs` that have it, at the steps that all of these have; None if there is nothing."""
    curves = []
    for rows in runs:
        found = [(number(row["step"]), number(row.get(key))) for row in rows]
        if curve := {x: y for x, y in found if x is not None and y is not None}:
            curves.append(curve)
    steps = sorted(set(curves[0]).intersection(*curves[1:])) if curves else []
    if not steps:
        return None
    label = f"{label}, {len(curves)} seeds" if len(curves) > 1 else label
    values = np.array([[curve[step] for step in steps] for curve in curves], dtype=np.float64)
    return Series(arm, label, np.array(steps, dtype=np.float64), values, dashed)


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
