from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from ral.report.artefacts import Evaluation, Run
from ral.report.charts import CURVES, MORE_CURVES, layer_charts, training_charts
from ral.report.experiment import Arm
from ral.report.geometry import BOTTOM, HEIGHT, MAX_POINTS, TOP, Chart, Series, line_chart
from ral.report.templating import compact, points, script_json


def series(y: list[float]) -> Series:
    return Series(0, "arm", np.arange(len(y), dtype=float), np.array([y]))


def test_moving_mean_keeps_a_constant_and_shortens_at_the_ends() -> None:
    assert line_chart("t", "", "step", [series([2.0] * 9)], smoothing=3).lines[0].y == [2.0] * 9
    line = line_chart("t", "", "step", [series([0.0, 3.0, 6.0])], smoothing=3).lines[0]
    assert line.y == [1.5, 3.0, 4.5]


def test_long_runs_are_averaged_into_buckets() -> None:
    line = line_chart("t", "", "step", [series(list(range(10_000)))]).lines[0]
    assert len(line.x) == len(line.y) == MAX_POINTS


@pytest.mark.parametrize("y", [[1.0], [0.0] * 5, [-3.0] * 4, [0.02] * 300, [1e-300, 1e300], [0.0, 1e-7, 1.0]])
@pytest.mark.parametrize("logarithmic", [False, True])
def test_any_finite_line_can_be_drawn(y: list[float], logarithmic: bool) -> None:
    chart = line_chart("t", "", "step", [series(y)], logarithmic=logarithmic)
    assert "nan" not in chart.lines[0].smooth
    assert all(0 <= place <= HEIGHT for place, _ in chart.y_ticks)


def test_wide_ranges_are_logarithmic_only_where_that_was_wished() -> None:
    wide = [series([1e-6, 1e-3, 1.0])]
    assert "log scale" in line_chart("t", "", "step", wide, logarithmic=True).note
    assert "log scale" not in line_chart("t", "", "step", wide).note


def test_absent_and_undefined_metrics_leave_no_chart() -> None:
    rows = [{"step": 1, "reward": float("nan"), "kl": None, "entropy": "high"}, {"step": 2, "reward": 0.5}]
    charts = training_charts([Arm("a", "A", [Run(Path("a"), metrics=rows)])], CURVES + MORE_CURVES)
    assert [(chart.title, chart.lines[0].x, chart.lines[0].y) for chart in charts] == [("Reward", [2.0], [0.5])]


def test_the_trained_layers_of_a_hybrid_are_among_those_with_attention() -> None:
    layers = [None, {"mass": 0.2}, None, {"mass": 0.4}, None]
    run = Run(Path("a"), evaluations={"rings": Evaluation("rings", Path("a"), {"layers": layers}, {})})
    (chart,) = layer_charts([Arm("a", "A", [run])], "rings", [[-1, 1, 2]])
    assert chart.lines[0].x == [1, 3]
    (low, _), (high, _) = (at for at in chart.x_ticks if at[1] in ("1", "3"))
    assert sorted(chart.bands) == pytest.approx([low, high])


def test_the_band_over_seeds_is_students_t_interval_of_the_moving_means() -> None:
    runs = np.array([[0.2, 0.4, 0.6], [0.3, 0.5, 0.9], [0.1, 0.6, 0.6], [0.2, 0.5, 0.7]])
    chart = line_chart("t", "", "step", [Series(0, "arm", np.arange(3.0), runs)], smoothing=1)
    (line,) = chart.lines
    assert line.y == pytest.approx(runs.mean(axis=0), rel=1e-3)
    assert line.raw == ""
    corners = [tuple(map(float, corner.split())) for corner in line.band.removeprefix("M").removesuffix("Z").split("L")]
    upper, lower = corners[:3], corners[:2:-1]
    level = scale(chart)
    for step, ((_, top), (_, bottom)) in enumerate(zip(upper, lower, strict=True)):
        low, high = stats.t.interval(0.95, 3, runs[:, step].mean(), stats.sem(runs[:, step]))
        assert top == pytest.approx(max(level(high), TOP), abs=0.06)
        assert bottom == pytest.approx(min(level(low), HEIGHT - BOTTOM), abs=0.06)


def test_on_a_logarithmic_axis_mean_and_band_are_of_the_logarithms_and_break_at_a_zero() -> None:
    runs = np.array([[1e-4, 1e-2, 0.0, 1e-1, 1.0], [1e-3, 1e-2, 1e-2, 1e-1, 0.5]])
    (line,) = line_chart("t", "", "step", [Series(0, "arm", np.arange(5.0), runs)], smoothing=1, logarithmic=True).lines
    assert line.y == pytest.approx([10**-3.5, 1e-2, 0, 1e-1, 0.5**0.5], rel=1e-3)
    assert line.smooth.count("M") == line.band.count("M") == line.band.count("Z") == 2


def scale(chart: Chart) -> Callable[[float], float]:
    """Value → place on the y axis, read off two ticks."""
    (y0, low), (y1, high) = chart.y_ticks[0], chart.y_ticks[-1]
    return lambda value: y0 + (value - float(low)) / (float(high) - float(low)) * (y1 - y0)


def test_curves_over_seeds_are_of_the_steps_that_all_runs_have() -> None:
    runs = [Run(Path("a"), metrics=[{"step": step, "reward": value} for step, value in enumerate(values)])
            for values in ([0.0, 0.2, 0.4], [0.2, 0.4])]  # fmt: skip
    chart = training_charts([Arm("a", "A", runs)], CURVES)[0]
    assert (chart.lines[0].label, chart.lines[0].x) == ("A, 2 seeds", [0.0, 1.0])
    assert chart.lines[0].y == pytest.approx([0.1, 0.3])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (1, "1"),
        (0.05, "0.05"),
        (-2.5, "−2.5"),
        (1234.0, "1,234"),
        (1e-6, "10⁻⁶"),
        (2e-6, "2·10⁻⁶"),
        (120, "120"),
    ],
)
def test_compact_numbers(value: float, text: str) -> None:
    assert compact(value) == text


def test_points_are_signed() -> None:
    assert (points(0.193), points(-0.02)) == ("+19.3", "−2.0")


def test_json_in_a_script_element_cannot_end_it() -> None:
    assert script_json({"a": "</script><!--&"}) == '{"a":"\\u003c/script\\u003e\\u003c!--\\u0026"}'


@pytest.mark.parametrize(
    ("first", "last"),
    [
        (1, 1),
        (500, 500),
        (1, 2),
        (1, 3),
        (1, 7),
        (1, 80),
        (0, 160),
        (1, 12_345),
        (10_000, 10_009),
        (1, 10**6),
        (99_950, 100_049),
    ],
)
def test_the_ticks_of_any_number_of_steps_can_be_read(first: int, last: int) -> None:
    x = np.unique(np.linspace(first, last, 400).round())
    chart = line_chart("Reward", "", "step", [Series(0, "a", x, np.full((1, len(x)), 0.5))])
    places, labels = zip(*chart.x_ticks, strict=True)
    assert len(set(labels)) == len(labels) == len(set(places))
    assert 1 <= len(labels) <= 7
    values = [float(label.replace(",", "").replace("M", "e6")) for label in labels]
    assert all(first <= value <= last for value in values)
    assert all(value == round(value) for value in values)
    # 12 units high, letters are about 7 wide: no label reaches into the next.
    assert all(right - left > 3.5 * (len(a) + len(b)) for (left, a), (right, b) in pairwise(chart.x_ticks))


def test_a_narrow_range_has_labels_that_differ() -> None:
    y = np.linspace(0.50012, 0.50047, 20)[None]
    chart = line_chart("KL", "", "step", [Series(0, "a", np.arange(20.0), y)])
    labels = [label for _, label in chart.y_ticks]
    assert len(set(labels)) == len(labels) >= 3
