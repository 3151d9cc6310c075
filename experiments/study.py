"""Arms of a comparison over paired seeds: `python -m experiments.study STUDY --seeds 0 1 2 …`.

An arm is a recipe of `recipes/testbed` with changes, so that any one cell is repeated by `ral train` and `ral eval` alone
(`--show` prints the commands). All arms of a study start from one checkpoint, see the same prompts in the same order, draw
their random numbers from the same seed and make the same number of updates. Cells that are in the result file,
`experiments/results/study/STUDY.json`, are not run again; every cell is written as soon as it is known.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from experiments.common import RECIPES, RESULTS, evaluated, trained
from experiments.studies import STUDIES, Study
from ral.evaluate.settings import EvalSettings
from ral.evaluate.tasks.selection import find_task
from ral.files import atomic_write_text, read_jsonl
from ral.recipe import BaseRecipe, Recipe, load_recipe
from ral.runs.folder import machine_class
from ral.runs.names import ITEMS, LOOKS
from ral.testbed import model_name
from ral.training.sft import SFTTask

#: Blocks of updates that a training curve is averaged over.
BLOCKS = 8
#: What is kept of grounding.
LOOKING = ("pointing", "mass", "visual_share")


@dataclass(frozen=True)
class Cell:
    """One run of one arm.

    Attributes:
        accuracy: on the held-out items, greedy. correct: which of them, as hexadecimal bits, the first item the highest.
        pointing, mass, visual_share: of the last trained layer, at the row that predicts the answer; None without boxes.
        curve: mean reward of sampled completions in each of `BLOCKS` equal parts of the run.
        signal: attention gradient's norm over the token gradient's, the mean over measured updates; None if never seen.
        seconds: of training. commit: of the source that ran. finished: when, in UTC.
        tokens: mean length of the held-out completions.
        followed: share of held-out answers that are the hint's; None without hints. control: accuracy on the `control_task`.
        causal: what hiding the box changes the answer's log-probability by, less what random tokens do (nats); None if not probed.
        fixed_mass, fixed_share: mass in box and visual share on the start's completions; None if not measured.
        watch: during the run, on `look_items` held-out items: step, accuracy, mass in box, visual share, tokens, causal.
    """

    arm: str
    seed: int
    accuracy: float
    correct: str
    pointing: float | None
    mass: float | None
    visual_share: float | None
    curve: tuple[float, ...]
    signal: float | None
    seconds: float
    commit: str | None
    machine: str = field(default_factory=machine_class)
    finished: str | None = None
    tokens: float | None = None
    followed: float | None = None
    control: float | None = None
    causal: float | None = None
    fixed_mass: float | None = None
    fixed_share: float | None = None
    watch: tuple[tuple[float | None, ...], ...] = ()


def overrides(study: Study, arm: str, seed: int, output: Path) -> list[str]:
    """The command-line words that turn the arm's recipe into this run."""
    changes = {**study.common, **study.arms[arm].changes, "seed": seed, "output_dir": output / arm / f"seed-{seed}"}
    return [
        f"--{key}={json.dumps(value) if isinstance(value, list | dict) else value}" for key, value in changes.items()
    ]


def recipe_of(study: Study, arm: str, seed: int, output: Path) -> BaseRecipe:
    """The arm's recipe with the changes of this run; one whose name ends in `sft` is of `ral sft`."""
    path = (RECIPES / f"{study.arms[arm].recipe}.yaml").resolve()
    kind: type[BaseRecipe] = SFTTask if path.stem.endswith("sft") else Recipe
    return load_recipe(path, [*overrides(study, arm, seed, output), "--disable_tqdm=true"], kind)


def run_cell(study: Study, arm: str, seed: int, output: Path) -> Cell:
    """Train and evaluate one arm with one seed, in this process and on one thread."""
    import torch

    torch.set_num_threads(1)
    recipe = recipe_of(study, arm, seed, output)
    began = time.perf_counter()
    folder = trained(recipe)
    took = time.perf_counter() - began  # with what loading takes; of a run whose steps are not timed
    task = _task(recipe)
    settings = EvalSettings.of_model(folder, show=0)
    probed = EvalSettings.of_model(folder, show=0, probes=study.probes)
    summary = evaluated(str(folder), task, study.held_out, folder / "eval" / task, probed)
    control = study.control_task
    other = evaluated(str(folder), control, study.held_out, folder / "eval" / control, settings) if control else {}
    on_start = _on_words_of(folder, output / "start", study, task) if study.fixed_text else {}
    items = list(read_jsonl(folder / "eval" / task / "items.jsonl"))
    rows = [row for row in read_jsonl(folder / "metrics.jsonl") if "step_seconds" in row]
    steps = [0, *(row["step"] for row in rows)]
    rewards = np.array_split([row["reward"] for row in rows], BLOCKS)
    signals = [row["grad/attention_to_token"] for row in rows if row.get("grad/attention_to_token") is not None]
    looking = summary["grounding"] or {}
    commit = json.loads((folder / "environment.json").read_text(encoding="utf-8"))["commit"]
    return Cell(
        arm=arm,
        seed=seed,
        accuracy=summary["accuracy"],
        correct=_bits(item["correct"] == 1 for item in items),
        **{name: looking.get(name) for name in LOOKING},
        curve=tuple(round(float(np.mean(block)), 4) for block in rewards if len(block)),
        signal=float(np.mean(signals)) if signals else None,
        seconds=round(
            sum(row["step_seconds"] * (b - a) for row, a, b in zip(rows, steps, steps[1:], strict=False)) or took,
            1,
        ),
        commit=commit,
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        tokens=float(np.mean([item["tokens"] for item in items])),
        followed=_followed(items, task, study.held_out),
        control=other.get("accuracy"),
        causal=_causal(summary["probes"]),
        fixed_mass=on_start.get("mass"),
        fixed_share=on_start.get("visual_share"),
        watch=_watch(folder / LOOKS / ITEMS),
    )


def _on_words_of(folder: Path, start: Path, study: Study, task: str) -> dict[str, Any]:
    """Where a run's model looks while it writes what the start wrote."""
    settings = EvalSettings.of_model(folder, show=0, text_from=str(start))
    summary = evaluated(str(folder), task, study.held_out, folder / "eval" / "fixed-text", settings)
    return summary["grounding"] or {}


def _followed(items: Sequence[dict[str, Any]], task: str, held_out: int) -> float | None:
    """Share of the answers that are what the hint says; None where the records have none."""
    records = list(find_task(task, n=held_out).records())
    if any("hint" not in record.extra for record in records):
        return None
    return float(np.mean([item["prediction"] == r.extra["hint"] for item, r in zip(items, records, strict=True)]))


def _causal(probes: dict[str, Any] | None) -> float | None:
    return probes["masking"]["difference"] if probes and "masking" in probes else None


def _watch(looks: Path) -> tuple[tuple[float | None, ...], ...]:
    """Means of every look of a run, in the order of `Cell.watch`; empty where none were taken."""
    rows = list(read_jsonl(looks)) if looks.exists() else []
    found = []
    for step in sorted({row["step"] for row in rows}):
        taken = [row for row in rows if row["step"] == step]
        grounded = [row["grounding"] for row in taken if row["grounding"]]
        masked = [row["probes"]["masking"] for row in taken if row["probes"] and row["probes"].get("masking")]
        figures = (
            [row["correct"] for row in taken],
            [one["mass"] for one in grounded],
            [one["visual_share"] for one in grounded],
            [row["tokens"] for row in taken],
            [one["box"] - one["random"] for one in masked],
        )
        found.append((step, *(round(float(np.mean(values)), 4) if values else None for values in figures)))
    return tuple(found)


def run_start(study: Study, output: Path) -> dict[str, Any]:
    """The checkpoint that all arms start from, asked as the baseline is."""
    recipe = recipe_of(study, study.baseline, 0, output)
    settings = EvalSettings.of_config(recipe.settings(), show=0, probes=study.probes)
    summary = evaluated(model_name(recipe.model), _task(recipe), study.held_out, output / "start", settings)
    looking = summary["grounding"] or {}
    found = {"accuracy": summary["accuracy"], **{name: looking.get(name) for name in LOOKING}}
    return found | ({"causal": _causal(summary["probes"])} if study.probes else {})


def run(study: Study, cells: Sequence[tuple[str, int]], output: Path, workers: int) -> Iterator[Cell]:
    """The cells (arm, seed), as they are finished. An error ends the study once the cells that are being run have ended."""
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        jobs = [pool.submit(run_cell, study, arm, seed, output) for arm, seed in cells]
        try:
            for job in as_completed(jobs):
                yield job.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _task(recipe: BaseRecipe) -> str:
    source = recipe.eval_data or recipe.data
    assert isinstance(source, str)  # studies are on one task each
    return source


def _bits(right: Iterator[bool]) -> str:
    bits = "".join("1" if one else "0" for one in right)
    return f"{int(bits, 2):0{-(-len(bits) // 4)}x}"


def result_file(name: str) -> Path:
    return RESULTS / "study" / f"{name}.json"


def read_cells(name: str) -> list[Cell]:
    """The cells of a study that are known so far."""
    file = result_file(name)
    found = json.loads(file.read_text(encoding="utf-8"))["cells"] if file.exists() else []
    return [
        Cell(**{**cell, "curve": tuple(cell["curve"]), "watch": tuple(map(tuple, cell.get("watch", ())))})
        for cell in found
    ]


def write_cells(name: str, start: Mapping[str, Any], cells: Sequence[Cell]) -> None:
    """One line a cell, in the order of the study's arms."""
    order = list(STUDIES[name].arms)
    lines = [json.dumps(asdict(cell)) for cell in sorted(cells, key=lambda cell: (order.index(cell.arm), cell.seed))]
    text = f'{{"study": "{name}",\n"start": {json.dumps(start)},\n"cells": [\n' + ",\n".join(lines) + "\n]}\n"
    atomic_write_text(result_file(name), text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(10)))
    parser.add_argument("--arms", nargs="+", help="default: all of the study")
    parser.add_argument("--workers", type=int, default=2, help="runs at a time, one core each")
    parser.add_argument("--output", type=Path, default=Path("runs/study"), help="where the runs are kept")
    parser.add_argument("--show", action="store_true", help="print the commands of the cells, and run nothing")
    args = parser.parse_args()
    study, output = STUDIES[args.study], args.output / args.study
    arms = args.arms or list(study.arms)
    if unknown := [arm for arm in arms if arm not in study.arms]:
        parser.error(f"unknown arm {unknown[0]!r}; {args.study} has {', '.join(study.arms)}")
    if args.show:
        for seed in args.seeds:
            for arm in arms:
                print(*commands(study, arm, seed, output), sep="\n")
        return
    cells = read_cells(args.study)
    known = {(cell.arm, cell.seed) for cell in cells}
    wanted = [(arm, seed) for seed in args.seeds for arm in arms if (arm, seed) not in known]
    start = run_start(study, output)
    for cell in run(study, wanted, output, args.workers):
        cells.append(cell)
        write_cells(args.study, start, cells)
        print(f"{cell.arm} {cell.seed}: {cell.accuracy:.1%} in {cell.seconds:.0f} s", flush=True)


def commands(study: Study, arm: str, seed: int, output: Path) -> list[str]:
    """What repeats one cell by hand."""
    recipe, folder = recipe_of(study, arm, seed, output), output / arm / f"seed-{seed}"
    words = shlex.join(overrides(study, arm, seed, output))
    path = f"recipes/testbed/{study.arms[arm].recipe}.yaml".replace("testbed/../", "")
    return [
        f"ral {'sft' if isinstance(recipe, SFTTask) else 'train'} {path} {words}",
        f"ral eval {folder} --tasks {_task(recipe)} --n {study.held_out}"
        + (f" --probes {study.probes}" if study.probes else ""),
        *([f"ral eval {folder} --tasks {study.control_task} --n {study.held_out}"] if study.control_task else []),
    ]


if __name__ == "__main__":
    main()
