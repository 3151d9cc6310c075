"""Chooses the charts of a page from the logged metrics and looks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ral.report.artefacts import Run, number
from ral.report.experiment import Arm
from ral.report.geometry import Chart, Series, line_chart


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
        (
            ("attention/jsd_positive", "A > 0", False),
            ("attention/jsd_negative", "A < 0", True),
            ("attention/kl_positive", "KL", False),
        ),
        logarithmic=True,
    ),
    Curve("Attention on the evidence", "of the trained rows, in training", (("attention/on_evidence", "", False),)),
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
    Curve("Replaced prompts", "prompts without a signal that were replaced, per place (dynamic_sampling)", (("prompts_replaced", "", False),)),
    Curve("Entropy", "of the token distribution, nats", (("entropy", "", False),)),
    Curve("KL to the reference", "estimate, per token", (("kl", "", False),), logarithmic=True),
    Curve("KL to the answer under a masked image", "estimate, per token (papo)", (("perception/kl", "", False),), logarithmic=True),
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
                layers = found.x.astype(int).tolist()  # those with attention
                bands |= {layer for layer in trained[index] if layer in layers}
                bands |= {layers[layer] for layer in trained[index] if -len(layers) <= layer < 0}
        if series:
            charts.append(line_chart(title, note, "layer", series, smoothing=1, bands=sorted(bands), dots=True))
    return charts


def _by_layer(layers: object) -> list[dict[str, Any]]:
    rows = layers if isinstance(layers, list) else []
    return [{"step": index, **row} for index, row in enumerate(rows) if isinstance(row, dict)]


def looking_charts(arms: Sequence[Arm]) -> list[Chart]:
    """Charts of the looks during training: mass in box and visual share, means over the items with boxes."""
    names = (
        (
            "mass",
            "Mass in box during training",
            "share of the visual attention in the true box, mean over these images",
        ),
        ("visual_share", "Visual share during training", "share of the attention that falls on the image, their mean"),
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
