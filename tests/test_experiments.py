"""The studies: their arms are recipes that load, and their page is made of the result files."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from experiments import soak
from experiments.processes import CASES, OPTIONS, PROCESSES, RESULTS, engines_of
from experiments.results import PAGE, detectable, known, page
from experiments.studies import STUDIES
from experiments.study import _bits, commands, read_cells, recipe_of
from experiments.table import Table
from experiments.told import at_equal_cost
from scipy import stats

from ral.training.sft import SFTTask

ARMS = [(name, arm) for name, study in STUDIES.items() for arm in study.arms]


@pytest.mark.parametrize(("name", "arm"), ARMS)
def test_every_arm_is_a_recipe(name: str, arm: str) -> None:
    study = STUDIES[name]
    recipe = recipe_of(study, arm, 7, Path("runs"))
    assert recipe.args.seed == 7
    assert recipe.args.output_dir == f"runs/{arm}/seed-7"
    for key, value in {**study.common, **study.arms[arm].changes}.items():
        assert getattr(recipe if hasattr(recipe, key) else recipe.args, key) == value
    baseline = recipe_of(study, study.baseline, 7, Path("runs"))
    if isinstance(recipe, SFTTask):  # of the same records, but not of rollouts
        assert (recipe.model, recipe.data, recipe.args.think) == (baseline.model, baseline.data, baseline.args.think)
        return
    assert recipe.args.max_steps == baseline.args.max_steps or arm == "grpo-long"
    for same in ("learning_rate", "num_generations", "per_device_train_batch_size", "temperature"):
        assert getattr(recipe.args, same) == getattr(baseline.args, same)
    assert (recipe.model, recipe.data, recipe.args.think) == (baseline.model, baseline.data, baseline.args.think)


def test_a_cell_is_repeated_by_two_commands() -> None:
    train, evaluate = commands(STUDIES["rings"], "old-5", 3, Path("runs"))
    assert train == (
        "ral train recipes/testbed/ral.yaml --max_steps=160 --attention_coef=5 --seed=3 --output_dir=runs/old-5/seed-3"
    )
    assert evaluate == "ral eval runs/old-5/seed-3 --tasks rings --n 512"


def test_correct_items_as_bits() -> None:
    assert _bits(iter([True, False, False, False, True])) == "11"
    assert _bits(iter([False] * 7 + [True])) == "01"


@pytest.mark.parametrize("name", known())
def test_cells_agree_with_their_items(name: str) -> None:
    for cell in read_cells(name):
        right = int(cell.correct, 16).bit_count()
        assert right / STUDIES[name].held_out == pytest.approx(cell.accuracy)


def test_the_page_is_that_of_the_result_files() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(known()), "run python -m experiments.results"


def test_the_soak_says_which_commits_ran_its_attempts() -> None:
    found = json.loads(soak.RESULTS.read_text(encoding="utf-8"))
    attempt = {key: value for key, value in found["attempts"][0].items() if key != "commit"}
    found["attempts"] = [attempt, {"commit": "a1", **attempt}, {"commit": "a1", **attempt}]
    assert soak.summary(found)["attempts_by_commit"] == {soak.NOT_RECORDED: 1, "a1": 2}


def scientific(value: float) -> str:
    if value == 0:
        return "0"
    digits, exponent = f"{value:.1e}".split("e")
    return f"{digits} · 10⁻{str(-int(exponent)).translate(str.maketrans('0123456789', '⁰¹²³⁴⁵⁶⁷⁸⁹'))}"


def matrix(name: str) -> dict[tuple[str, str, int], float]:
    """By precision, engine and processes: how far the losses of a case are from those of one process, of the largest one."""
    rows = json.loads(RESULTS.read_text(encoding="utf-8"))["runs"]
    return {
        (row["dtype"], row["engine"], row["processes"]): row["of_the_largest"] for row in rows if row["case"] == name
    }


def bound(dtype: str, engine: str) -> float:
    """What is promised. DeepSpeed updates in float32, whatever the model's precision."""
    return 1e-8 if dtype == "float64" and engine != "zero2" else 1e-5


def told(*cells: str) -> bool:
    """Whether the page on scaling has this row in a table."""
    return f"| {' | '.join(cells)} |" in (PAGE.parents[1] / "docs/scaling.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", CASES)
def test_every_engine_gives_the_losses_of_one_process_as_the_page_says(name: str) -> None:
    found, dtypes = matrix(name), {"float32": engines_of(double=False), "float64": engines_of(double=True)}
    columns = [(dtype, engine) for dtype, engines in dtypes.items() for engine in engines]
    assert found.keys() == {(*column, n) for column in columns for n in PROCESSES}
    assert all(gap <= bound(dtype, engine) for (dtype, engine, _), gap in found.items()), found
    cells = [max(found[*column, n] for n in PROCESSES) for column in columns]
    assert told(name, *map(scientific, cells)), [name, *map(scientific, cells)]


@pytest.mark.parametrize("name", OPTIONS)
def test_settings_under_full_sharding_give_the_losses_of_one_process_as_the_page_says(name: str) -> None:
    _, engines, package = OPTIONS[name]
    found, dtypes = matrix(name), ("float32",) if package else ("float32", "float64")
    assert found.keys() == set(product(dtypes, engines, PROCESSES[:1]))
    for (dtype, engine, _), gap in found.items():
        # torchao rounds its states by blocks of a shard: cut in another way, they are rounded in another way.
        assert gap <= bound(dtype, engine) or (package, engine) == ("torchao", "full-shard"), found
    for engine in engines:
        cells = [scientific(found[dtype, engine, PROCESSES[0]]) for dtype in dtypes]
        assert told(name, engine, *cells, *["—"] * (2 - len(cells))), [name, engine, *cells]


@pytest.mark.parametrize("cost", [0.8, 1.0, 1.1, 1.375, 2.0])
def test_equal_cost_lies_between_the_two_lengths_of_grpo(cost: float) -> None:
    table = Table("rings")
    seeds = sorted(set(table.common("explore", "grpo")) & set(table.common("explore", "grpo-long")))
    at = {
        (arm, seed): 100 * table.cells[arm, seed].accuracy for arm in ("explore", "grpo", "grpo-long") for seed in seeds
    }
    updates = min(max(160 * cost, 160), 220)
    wanted = [
        at["explore", s] - np.interp(updates, [160, 220], [at["grpo", s], at["grpo-long", s]]) for s in seeds
    ]  # fmt: skip
    assert at_equal_cost(table, "explore", "grpo", "grpo-long", cost) == pytest.approx(wanted)


def test_a_detectable_effect_is_found_four_times_in_five() -> None:
    differences = np.random.default_rng(0).normal(0, 3, 12)
    n, sd = len(differences), differences.std(ddof=1)
    shift = detectable(differences) / (sd / np.sqrt(n))
    critical = stats.t.ppf(0.975, n - 1)
    power = stats.nct.sf(critical, n - 1, shift) + stats.nct.cdf(-critical, n - 1, shift)
    assert power == pytest.approx(0.8, abs=1e-3)
