"""Artefacts of a small comparison, written through the schemas that training and evaluation use."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image, ImageDraw

COLOURS = {
    "red": "#d1495b",
    "green": "#3a9d5d",
    "blue": "#2f6fb7",
    "purple": "#7d4fa6",
    "orange": "#e08a1e",
    "teal": "#1f9e9e",
}
CELLS, SIDE = 8, 64
SKILL = {"start": 0.48, "grpo": 0.67, "ral-old": 0.69, "ral-explore": 0.86}
LABELS = {"start": "Start checkpoint", "grpo": "GRPO", "ral-old": "RAL (old)", "ral-explore": "RAL (explore)"}


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def grounding(mass: float, pointing: float) -> dict[str, float]:
    return {
        "pointing": pointing,
        "mass": mass,
        "lift": mass / 0.0625,
        "auc": 0.5 + mass / 2,
        "visual_share": 0.5 + mass / 4,
    }


def ring_image(rng: np.random.Generator) -> tuple[Image.Image, list[tuple[str, str, int, int]]]:
    """A picture of six rings and (ring colour, fill, row, column) of each."""
    names = list(COLOURS)
    image = Image.new("RGB", (SIDE, SIDE), "#f2f0ec")
    draw = ImageDraw.Draw(image)
    places = rng.permutation(16)[:6]
    rings = []
    for index, place in enumerate(places.tolist()):
        row, column = divmod(place, 4)
        fill = names[int(rng.integers(6))]
        x, y = column * 16, row * 16
        draw.ellipse((x + 2, y + 2, x + 13, y + 13), fill=COLOURS[fill], outline=COLOURS[names[index]], width=3)
        rings.append((names[index], fill, row, column))
    return image, rings


def attention(rng: np.random.Generator, row: int, column: int, focus: float) -> np.ndarray:
    values = rng.gamma(0.7, 1.0, (CELLS, CELLS))
    values /= values.sum()
    values *= 1 - focus
    values[2 * row : 2 * row + 2, 2 * column : 2 * column + 2] += focus / 4 * rng.uniform(0.6, 1.4, (2, 2))
    return values / values.sum()


def write_looks(folder: Path, name: str, *, steps: Sequence[int] = (0, 40, 80, 120), items: int = 3) -> None:
    """`looks/` of one run: items that start wrong and unfocused and end right, the more focused the better the arm."""
    rng = np.random.default_rng(7)
    (folder / "looks" / "media").mkdir(parents=True, exist_ok=True)
    drawn = [ring_image(rng) for _ in range(items)]
    rows = []
    for step in steps:
        for index, (image, rings) in enumerate(drawn):
            image.save(folder / "looks" / "media" / f"{index}.png")
            ring, fill, row, column = rings[0]
            learnt = step / max(steps)
            values = attention(np.random.default_rng(index), row, column, learnt * SKILL[name])
            mass = float(values[2 * row : 2 * row + 2, 2 * column : 2 * column + 2].sum())
            rows.append(
                {
                    "step": step, "id": f"look-{index}", "question": f"What colour is inside the {ring} ring?", "solution": fill,
                    "completion": f"<think> at step {step} </think><answer> {fill if learnt > 0.5 else 'none'} </answer>",
                    "prediction": fill if learnt > 0.5 else "none", "correct": float(learnt > 0.5), "truncated": False, "tokens": 13,
                    "grounding": grounding(mass, float(learnt > 0.5)), "layers": None, "image": f"media/{index}.png",
                    "map": {"grid": [CELLS, CELLS], "values": values.ravel().tolist()}, "size": [SIDE, SIDE],
                    "boxes": [[column * 16, row * 16, column * 16 + 16, row * 16 + 16]],
                }
            )  # fmt: skip
    write_rows(folder / "looks" / "items.jsonl", rows)


def write_evaluation(folder: Path, name: str, *, items: int = 300, shown: int = 24, gain: float = 0.0) -> None:
    """`eval/rings` of one arm; the same items and luck for every arm, so that their comparison is paired. `gain` is added to
    its skill."""
    rng, luck = np.random.default_rng(7), np.random.default_rng(11)
    rows, skill = [], SKILL[name] + gain
    masses, hits = [], []
    for index in range(items):
        image, rings = ring_image(rng)
        ring, fill, row, column = rings[0]
        roll = luck.random() + 0.1 * np.random.default_rng([index, len(name)]).normal()
        correct = float(roll < skill)
        focus = float(np.clip(skill - 0.35 + 0.3 * correct + 0.1 * rng.normal(), 0.02, 0.9))
        values = attention(np.random.default_rng(index), row, column, focus)
        box = (slice(2 * row, 2 * row + 2), slice(2 * column, 2 * column + 2))
        mass = float(values[box].sum())
        hit = float(values[box].max() == values.max())
        masses.append(mass)
        hits.append(hit)
        said = fill if correct else next(colour for colour in COLOURS if colour != fill)
        kept = index < shown
        if kept:
            (folder / "media").mkdir(parents=True, exist_ok=True)
            image.save(folder / "media" / f"{index}.png")
        rows.append(
            {
                "id": str(index),
                "question": f"What colour is inside the {ring} ring?",
                "solution": fill,
                "completion": f"<think> row {row + 1} col {column + 1} </think><answer> {said} </answer>",
                "prediction": said,
                "correct": correct,
                "truncated": False,
                "tokens": 13,
                "grounding": grounding(mass, hit),
                "layers": [grounding(mass * share, hit * share) for share in (0.3, 1.0, 0.5)],
                "map": {"grid": [CELLS, CELLS], "values": values.ravel().tolist()} if kept else None,
                "image": f"media/{index}.png" if kept else None,
                "size": [SIDE, SIDE],
                "boxes": [[column * 16, row * 16, column * 16 + 16, row * 16 + 16]],
            }
        )
    accuracy = float(np.mean([row["correct"] for row in rows]))
    half = 1.96 * (accuracy * (1 - accuracy) / items) ** 0.5
    mean = grounding(float(np.mean(masses)), float(np.mean(hits)))
    summary = {
        "model": name, "task": "rings", "n": items, "accuracy": accuracy, "ci": [accuracy - half, accuracy + half],
        "unparsed": 2, "truncated": 0, "majority": 0.19, "grounding": mean,
        "layers": [grounding(mean["mass"] * share, mean["pointing"] * share) for share in (0.3, 1.0, 0.5)],
        "settings": {"temperature": 0.0},
    }  # fmt: skip
    write_rows(folder / "items.jsonl", rows)
    (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")


def write_training(folder: Path, name: str, *, steps: int = 120, seed: int = 0) -> None:
    """The files of a training run of `steps` steps."""
    rng = np.random.default_rng([len(name), seed])
    rows = []
    for step in range(1, steps + 1):
        level = (
            SKILL["start"]
            + (SKILL[name] - SKILL["start"]) * (1 - np.exp(-step / 40))
            - 0.1 * np.exp(-((step - 15) ** 2) / 90)
        )
        accuracy = float(np.clip(level + 0.07 * rng.normal(), 0, 1))
        row: dict[str, Any] = {
            "step": step, "epoch": step / steps, "loss": 0.1 * rng.normal(), "learning_rate": 3e-4 * min(1, step / 20),
            "grad_norm": float(0.3 + 0.1 * rng.gamma(2)), "reward": 0.1 + 0.9 * accuracy, "reward_std": 0.3,
            "reward/accuracy": accuracy, "reward/format": 1.0, "groups_without_signal": float(0.2 + 0.3 * accuracy),
            "kl": 0.001 * step, "clip_fraction": 0.02, "entropy": float(1.2 * np.exp(-step / 90) + 0.02 * rng.normal()),
            "completion_length": float(13 + rng.normal()), "truncated": 0.0, "visual_share": 0.5 + 0.3 * accuracy,
            "step_seconds": 0.9 + 0.1 * rng.random(), "grad/token_norm": 0.3,
        }  # fmt: skip
        if name != "grpo":
            scale = 1e-6 if name == "ral-old" else 3e-2
            row |= {
                "attention/jsd_positive": scale * rng.gamma(3),
                "attention/jsd_negative": 0.7 * scale * rng.gamma(3),
                "grad/attention_norm": scale,
                "grad/attention_to_token": float("nan") if step == 3 else 3 * scale * rng.gamma(3),
            }
        rows.append(row)
    write_rows(folder / "metrics.jsonl", rows)
    samples = [
        {
            "step": step, "id": f"train-{step}", "question": "What colour is inside the teal ring?", "solution": "blue",
            "completion": f"<think> row {g} col 2 </think><answer> {'blue' if g % 3 else 'red'} </answer>",
            "reward": 1.0 if g % 3 else 0.1, "rewards": {"accuracy": float(g % 3 > 0), "format": 1.0}, "advantage": 0.7 if g % 3 else -1.2,
        }
        for step in (1, steps // 2, steps) for g in range(6)
    ]  # fmt: skip
    write_rows(folder / "samples.jsonl", samples)
    anchor = {"grpo": None, "ral-old": "old", "ral-explore": "explore"}[name]
    config = {
        "attention_coef": 0.0 if anchor is None else 1.0, "attention_anchor": anchor or "old", "attention_layers": [-2],
        "num_generations": 8, "num_iterations": 2, "beta": 0.0, "learning_rate": 3e-4, "max_steps": steps, "seed": seed,
    }  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    environment = {"python": "3.11.9", "packages": {"torch": "2.14.1"}, "machine": {"system": "Linux", "gpus": []}}
    (folder / "environment.json").write_text(json.dumps(environment), encoding="utf-8")


def write_quickstart(folder: Path) -> Path:
    for name in SKILL:
        if name != "start":
            (folder / name).mkdir(parents=True, exist_ok=True)
            write_training(folder / name, name)
            write_looks(folder / name, name)
        write_evaluation(folder / name / "eval" / "rings", name)
    index = {
        "seed": 0,
        "machine": "2 CPU cores, 8 GiB",
        "arms": [{"name": name, "label": LABELS[name], "path": name} for name in SKILL],
        "task": "rings",
        "commands": ["ral quickstart --output quickstart --seed 0", "ral train quickstart/ral-old/config.yaml --output_dir again"],
        "seconds": {"grpo": 108.0, "ral-old": 121.4, "ral-explore": 133.0},
    }  # fmt: skip
    (folder / "quickstart.json").write_text(json.dumps(index), encoding="utf-8")
    return folder


#: What the seeds 0, 1 and 2 add to the skill of an arm.
LUCK = {"grpo": (0.0, -0.04, 0.05), "ral-explore": (-0.05, -0.06, 0.02)}


def write_seeds(folder: Path) -> list[Path]:
    """Two arms of three seeds each, as run folders `grpo-s0`, `grpo-s1` and so on."""
    folders = []
    for name, gains in LUCK.items():
        for seed, gain in enumerate(gains):
            run = folder / f"{name}-s{seed}"
            run.mkdir(parents=True)
            write_training(run, name, steps=30, seed=seed)
            write_evaluation(run / "eval" / "rings", name, items=200, shown=2, gain=gain)
            folders.append(run)
    return folders
