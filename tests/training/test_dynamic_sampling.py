"""Prompts without a signal give their place to others; rollout batches that several optimiser steps share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ral.attention import forward_groups
from ral.config import ConfigError
from ral.rollouts.group import TrainingGroup
from ral.testbed.rings import ring_records
from tests.training.test_trainer import RECORDS, G, lines, rollouts, same, spread, trainer

MANY = ring_records(16, seed=0)
#: Whose completions earn differently: half of all.
ALIVE = {record.id for record in MANY[::2]}


def half_dead(prompts: list[str], completions: list[str], *, id: list[str], **columns: Any) -> list[float]:
    return [float(i % G == 0) if one in ALIVE else 0.5 for i, one in enumerate(id)]


def dead(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    return [0.5] * len(completions)


SETTINGS: dict[str, Any] = {
    "records": MANY,
    "reward_funcs": half_dead,
    "dynamic_sampling": True,
    "per_device_train_batch_size": 4 * G,
}


def ids(groups: list[TrainingGroup]) -> list[str]:
    return [group.scored.record.id for group in groups]


def test_prompts_without_a_signal_are_replaced_and_counted(tmp_path: Path) -> None:
    run = trainer(tmp_path, **SETTINGS, max_resample_times=8)
    run.get_train_dataloader()
    [numbers] = run.batches.rollout(0)
    groups = rollouts(run, [MANY[i] for i in numbers])
    first = [MANY[i].id for i in numbers]
    assert set(first) - ALIVE, "some have to be replaced"
    assert set(ids(groups)) <= ALIVE
    assert len(set(ids(groups))) == 4
    for group, was in zip(groups, first, strict=True):
        assert (group.scored.record.id == was) == (was in ALIVE)
        assert (group.scored.replaced == 0) == (was in ALIVE)
        assert was in ALIVE or group.scored.record.id not in first
        assert group.scored.advantages.abs().sum() > 0


def test_replacing_ends_after_its_rounds_and_where_no_prompt_is_left(tmp_path: Path) -> None:
    for rounds, made in ((1, 1), (2, 2), (9, 3)):  # 12 other prompts serve three rounds of 4
        run = trainer(tmp_path, **SETTINGS | {"reward_funcs": dead}, max_resample_times=rounds)
        groups = rollouts(run, MANY[:4])
        assert [group.scored.replaced for group in groups] == [made] * 4
        assert not any(group.scored.advantages.any() for group in groups)


def test_places_do_not_depend_on_the_accumulation_or_on_who_else_is_replaced(tmp_path: Path) -> None:
    whole = trainer(tmp_path, **SETTINGS, temperature=1.5)
    parts = trainer(
        tmp_path, **SETTINGS | {"per_device_train_batch_size": G}, gradient_accumulation_steps=4, temperature=1.5
    )
    [together] = whole.make_rollouts([list(MANY[:4])])
    apart = [group for [group] in parts.make_rollouts([[record] for record in MANY[:4]])]
    assert ids(together) == ids(apart)
    for one, other in zip(together, apart, strict=True):
        assert one.scored.texts == other.scored.texts
    # Only the place of a dead prompt among living ones is drawn anew, and gets the prompt it gets among dead ones.
    alive = trainer(tmp_path, **SETTINGS, temperature=1.5)
    [mixed] = alive.make_rollouts([[MANY[0], MANY[1], MANY[2], MANY[4]]])
    others = alive.batches.others(0)
    tried = [MANY[others[4 * attempt + 1]].id for attempt in range(3)]
    assert ids(mixed)[1] == next(one for one in tried if one in ALIVE)


def test_a_run_logs_it_and_resumes_exactly(tmp_path: Path) -> None:
    changes: dict[str, Any] = SETTINGS | {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    whole = trainer(tmp_path, **changes)
    whole.train()
    expected = lines(tmp_path / "metrics.jsonl")
    assert any(row["prompts_replaced"] > 0 for row in expected)
    assert max(row["groups_without_signal"] for row in expected) < 0.5, "half of the data"
    run = trainer(tmp_path, **changes)
    run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert same(dict(run.model.named_parameters()), dict(whole.model.named_parameters()))
    for row, other in zip(lines(tmp_path / "metrics.jsonl"), expected, strict=True):
        assert (row["loss"], row["prompts_replaced"]) == (other["loss"], other["prompts_replaced"])


def test_data_that_one_batch_exhausts_is_refused(tmp_path: Path) -> None:
    run = trainer(tmp_path, dynamic_sampling=True, per_device_train_batch_size=4 * G)
    with pytest.raises(ConfigError, match="one rollout batch takes all 4; add data"):
        run.train()


# --- rollout batches that several optimiser steps share -------------------------------------------------------------


def test_parts_of_a_rollout_batch_are_learnt_from_one_after_another(tmp_path: Path) -> None:
    """Two parts, twice: 1, 2, 1, 2. The old policy of every part is the one that sampled."""
    seen: list[tuple[list[str], list[float]]] = []
    run = trainer(
        tmp_path, records=MANY, reward_funcs=spread, steps_per_generation=2, max_steps=8, learning_rate=1e-2,
        per_device_train_batch_size=2 * G, attention_coef=0.0, gradient_norm_steps=0,
    )  # fmt: skip
    compute_loss = run.compute_loss

    def watched(*arguments: Any, **named: Any) -> Any:
        groups = arguments[1]
        loss, outputs = compute_loss(*arguments[:2], return_outputs=True)
        gaps = [float((o.logps.detach() - g.old.logps).abs().max()) for g, o in zip(groups, outputs, strict=True)]
        seen.append((ids(groups), gaps))
        return loss

    run.compute_loss = watched  # type: ignore[method-assign]
    run.train()
    order = [part for part, _ in seen]
    assert order[0] == order[2]
    assert order[1] == order[3]
    assert len({*order[0], *order[1], *order[4], *order[5]}) == 8
    assert max(seen[0][1]) == max(seen[4][1]) == 0, "of the first part the policy is still the old one"
    assert min(seen[1][1]) > 0, "of the second it has moved"
    # The same rollouts as of one larger step: prompts and random numbers belong to the rollout batch.
    larger = trainer(tmp_path, records=MANY, reward_funcs=spread, gradient_accumulation_steps=2)
    assert [MANY[i].id for micro_batch in larger.batches.rollout(0) for i in micro_batch] == order[0] + order[1]


def test_the_old_pass_of_a_later_part_is_the_policys_that_sampled(tmp_path: Path) -> None:
    run = trainer(tmp_path, records=MANY, reward_funcs=spread, steps_per_generation=2, attention_anchor="old")
    first, second = run.make_rollouts([MANY[:2], MANY[2:4]])
    assert all(group.old is None for group in first)
    for group in second:
        [output] = forward_groups(
            run.model, [group.prompt], [group.scored.ids], layers=[-1], temperature=run.args.temperature
        )
        torch.testing.assert_close(group.old.logps, output.logps.detach(), atol=1e-5, rtol=0)
        torch.testing.assert_close(group.old.rows[1], output.attention.detach(), atol=1e-5, rtol=0)


def test_a_run_in_parts_resumes_exactly_and_trains_the_papers_anchor_with_one_update_each(tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "records": MANY, "reward_funcs": spread, "steps_per_generation": 2, "num_iterations": 1, "max_steps": 4,
        "save_strategy": "steps", "save_steps": 2,
    }  # fmt: skip
    whole = trainer(tmp_path, **changes)
    whole.train()
    assert [row["attention/loss"] != 0 for row in lines(tmp_path / "metrics.jsonl")] == [False, True] * 2
    run = trainer(tmp_path, **changes)
    run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert same(dict(run.model.named_parameters()), dict(whole.model.named_parameters()))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"steps_per_generation": 3, "gradient_accumulation_steps": 2},
            "use a multiple of gradient_accumulation_steps=2",
        ),
        (
            {"steps_per_generation": 1, "gradient_accumulation_steps": 2},
            "use a multiple of gradient_accumulation_steps=2",
        ),
        (
            {"steps_per_generation": 2, "save_strategy": "steps", "save_steps": 6},
            "use a multiple of 4, the optimiser steps",
        ),
        ({"steps_per_generation": 8}, "one optimiser step takes 16"),
    ],
)
def test_parts_that_do_not_fit_are_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        trainer(tmp_path, records=RECORDS, **changes).train()
