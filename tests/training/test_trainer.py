"""The trainer on the embedded model: what a run writes, what it must equal bit for bit, and what it refuses."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig
from torch import Tensor

from ral.attention import forward_groups
from ral.config import ConfigError, RALConfig
from ral.data.record import Box, Record
from ral.errors import DataError
from ral.families.qwen_vl import Qwen2_5VL
from ral.objective.anchors import ANCHORS
from ral.rewards.functions import RewardError
from ral.rollouts.group import TrainingGroup, selected_rows
from ral.testbed import load_start
from ral.testbed.rings import ring_records
from ral.training.learning_warnings import WINDOW
from ral.training.trainer import RALTrainer

G = 4
MODEL, PROCESSOR = load_start()
RECORDS = ring_records(4, seed=0)
LORA = LoraConfig(r=4, target_modules=["q_proj", "k_proj", "v_proj"])


def settings(folder: Path, **changes: Any) -> RALConfig:
    values = {
        "output_dir": str(folder),
        "use_cpu": True,
        "template": "plain",
        "num_generations": G,
        "per_device_train_batch_size": 2 * G,
        "max_steps": 2,
        "max_completion_length": 12,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "gradient_norm_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
        "seed": 3,
    }
    return RALConfig(**(values | changes))


def trainer(
    folder: Path, records: Sequence[Record] = RECORDS, kind: type[RALTrainer] = RALTrainer, **changes: Any
) -> RALTrainer:
    names = ("eval_dataset", "reward_funcs", "peft_config", "reward_weights", "teacher")
    others = {name: changes.pop(name) for name in names if name in changes}
    return kind(
        copy.deepcopy(MODEL), settings(folder, **changes), train_dataset=records, processing_class=PROCESSOR, **others
    )


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def trained(folder: Path, **changes: Any) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Parameters after, and metrics of, a run."""
    run = trainer(folder, **changes)
    run.train()
    return {name: p.detach() for name, p in run.model.named_parameters()}, lines(folder / "metrics.jsonl")


def spread(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    """Signal in every group, whatever is said."""
    return [1.0 - i / G for i in range(len(completions))]


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def rollouts(run: RALTrainer, records: Sequence[Record] = RECORDS[:2]) -> list[TrainingGroup]:
    [groups] = run.make_rollouts([list(records)])
    return groups


# --- what a run writes --------------------------------------------------------------------------------------------

METRICS = [
    "step",
    "epoch",
    "loss",
    "learning_rate",
    "grad_norm",
    "reward",
    "reward_std",
    "reward/accuracy",
    "reward/format",
    "advantage_std",
    "groups_without_signal",
    "kl",
    "clip_fraction",
    "entropy",
    "completion_length",
    "truncated",
    "attention/jsd_positive",
    "attention/loss",
    "visual_share",
    "grad/token_norm",
    "grad/attention_norm",
    "grad/attention_to_token",
    "tokens_per_second",
    "memory_peak_gib",
    "step_seconds",
]
SAMPLE = {"step", "id", "question", "solution", "completion", "reward", "rewards", "advantage"}


@pytest.mark.parametrize("anchor", list(ANCHORS))
def test_a_run_writes_its_metrics_and_samples(tmp_path: Path, anchor: str) -> None:
    before = MODEL.state_dict()
    teacher = {"teacher": copy.deepcopy(MODEL)} if anchor == "teacher" else {}
    parameters, metrics = trained(tmp_path, attention_anchor=anchor, save_strategy="no", **teacher)
    assert [row["step"] for row in metrics] == [1, 2]
    for row in metrics:
        assert set(METRICS) <= row.keys()
        assert all(math.isfinite(value) for value in row.values())
        # `group` takes A by magnitude, `credit` into its target, `evidence` not at all.
        signed = anchor not in ("group", "credit", "evidence")
        assert ("attention/jsd_negative" in row) == signed
        assert row["reward"] == pytest.approx(0.9 * row["reward/accuracy"] + 0.1 * row["reward/format"])
        assert 0 < row["visual_share"] < 1
        assert row["advantage_std"] == pytest.approx(1 - row["groups_without_signal"], abs=0.01)
    assert not same(parameters, before)
    # A language model's tower and projector stay as they are unless asked for.
    assert all(torch.equal(p, before[name]) for name, p in parameters.items() if ".visual." in name)

    samples = lines(tmp_path / "samples.jsonl")
    assert [row["step"] for row in samples] == [1] * G, "one group, of the only rollout batch"
    assert ["prompt" in row for row in samples] == [g == 0 for g in range(G)], "once a group"
    said = samples[0]["prompt"].replace("<|vision_start|><|image_pad|>×64<|vision_end|> ", "")
    assert said == f"<|im_start|>user\n{samples[0]['question']} think<|im_end|>\n<|im_start|>assistant\n"
    for row in samples:
        assert row.keys() - {"prompt"} == SAMPLE
        assert row["rewards"].keys() == {"accuracy", "format"}
        assert row["completion"].startswith("<think>"), "tags are text, not control tokens"
        assert "<|im_end|>" not in row["completion"]
    assert sum(row["advantage"] for row in samples) == pytest.approx(0, abs=1e-4)


def test_the_ratio_of_the_gradients_is_logged_as_often_as_told(tmp_path: Path) -> None:
    _, metrics = trained(tmp_path, max_steps=6, gradient_norm_steps=2)
    assert ["grad/attention_to_token" in row for row in metrics] == [True, True, False, False, True, True]
    row = metrics[1]
    assert row["grad/attention_to_token"] == pytest.approx(row["grad/attention_norm"] / row["grad/token_norm"])


# --- what must be equal -------------------------------------------------------------------------------------------


def test_one_inner_step_of_the_papers_anchor_is_plain_grpo_bit_for_bit(tmp_path: Path) -> None:
    """At p = old the attention term is exactly zero, however large λ; the second inner update is where it starts."""
    for steps, equal in ((1, True), (2, False)):
        plain, _ = trained(tmp_path / f"plain{steps}", max_steps=steps, attention_coef=0.0)
        ours, metrics = trained(tmp_path / f"old{steps}", max_steps=steps, attention_coef=1000.0)
        assert same(plain, ours) == equal
        assert [row["grad/attention_norm"] > 0 for row in metrics] == [False, True][:steps]
        assert metrics[0]["attention/jsd_positive"] == metrics[0]["attention/jsd_negative"] == 0


def test_measuring_changes_nothing(tmp_path: Path) -> None:
    one, _ = trained(tmp_path / "a", gradient_norm_steps=1)
    other, _ = trained(tmp_path / "b", gradient_norm_steps=0, samples_per_step=0)
    assert same(one, other)


@pytest.mark.parametrize("anchor", ["group", "explore"])
def test_first_order_anchors_train_attention_from_the_first_step(tmp_path: Path, anchor: str) -> None:
    plain, _ = trained(tmp_path / "plain", max_steps=1, attention_anchor=anchor, attention_coef=0.0)
    ours, metrics = trained(tmp_path / "ours", max_steps=1, attention_anchor=anchor, attention_coef=10.0)
    assert metrics[0]["grad/attention_norm"] > 1e-3
    assert not same(plain, ours)


def test_old_log_probabilities_are_those_of_the_policy_that_sampled(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    groups = rollouts(run)
    with torch.no_grad():
        explicit = forward_groups(
            run.model, [g.prompt for g in groups], [g.scored.ids for g in groups], temperature=run.args.temperature
        )
    run.compute_loss(run.model, groups)
    for group, output in zip(groups, explicit, strict=True):
        torch.testing.assert_close(group.old.logps, output.logps, atol=1e-6, rtol=0)
        torch.testing.assert_close(group.old.rows[1], output.attention, atol=1e-6, rtol=0)
        assert not group.old.logps.requires_grad
        assert not group.old.rows[1].requires_grad


def test_explore_aims_at_the_rows_of_the_biased_rollout(tmp_path: Path) -> None:
    run = trainer(tmp_path, attention_anchor="explore", explore_sigma=1.0)
    groups = rollouts(run)
    with torch.no_grad():
        biased = forward_groups(
            run.model,
            [g.prompt for g in groups],
            [g.scored.ids for g in groups],
            look_bias=[g.scored.look_bias for g in groups],
        )
    run.compute_loss(run.model, groups)
    for group, output in zip(groups, biased, strict=True):
        torch.testing.assert_close(group.targets.target_rows[1], output.attention, atol=1e-6, rtol=0)
        assert (group.targets.target_rows[1] - group.old.rows[1]).abs().max() > 1e-2


def test_the_exact_ratio_of_explore_is_taken_to_the_biased_policy(tmp_path: Path) -> None:
    """With `behaviour` the old log-probabilities are those under the bias; the gap to the policy's is logged either way."""
    for ratio in ("policy", "behaviour"):
        run = trainer(tmp_path / ratio, attention_anchor="explore", explore_sigma=1.0, explore_ratio=ratio)
        groups = rollouts(run)
        outputs = run.compute_loss(run.model, groups, return_outputs=True)[1]
        for group, output in zip(groups, outputs, strict=True):
            expected = output.logps.detach() if ratio == "policy" else group.targets.biased_logps
            assert torch.equal(group.old.logps, expected)
            assert (group.targets.biased_logps - output.logps).abs().max() > 1e-3
    run.train()
    first = lines(tmp_path / "behaviour" / "metrics.jsonl")[0]
    assert first["explore/logp_gap"] > 0
    assert first["ratio"] != 1


@pytest.mark.parametrize("query", ["token", "predictor"])
def test_direct_answers_lose_their_attention_signal_inside_the_group(tmp_path: Path, query: str) -> None:
    """Trap 3 in the log: with rows of the predictor the first answer token's signal always cancels."""
    _, metrics = trained(
        tmp_path, think=False, attention_query=query, attention_coef=100.0, temperature=1.2, reward_funcs=spread
    )
    assert "attention/cancelled" not in metrics[0], "there is no signal to lose while p is old"
    assert 0 <= metrics[1]["attention/cancelled"] <= 1
    if query == "predictor":
        assert metrics[1]["attention/cancelled"] > 0.1


def test_the_attention_gradient_is_kept_at_its_share(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"attention_anchor": "group", "attention_share": 0.5, "max_steps": 4, "save_steps": 2}
    changes |= {"save_strategy": "steps", "attention_coef": 1e-3, "reward_funcs": spread}
    whole, metrics = trained(tmp_path, **changes)
    shares = [row["grad/attention_to_token"] for row in metrics]
    assert shares == pytest.approx([0.5] * 4), "the factor is that of the same step's measure"
    (tmp_path / "metrics.jsonl").unlink()
    again = trainer(tmp_path, **changes)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert again.balance.factor != 1
    assert same(whole, {name: p.detach() for name, p in again.model.named_parameters()})


def test_the_loss_holds_the_attention_term_times_lambda_and_the_factor(tmp_path: Path) -> None:
    """The same groups under other factors and λ: the loss is linear in both."""
    run = trainer(tmp_path, attention_anchor="group", attention_coef=2.0, gradient_norm_steps=0, reward_funcs=spread)
    groups = rollouts(run)
    found = []
    for coef, factor in ((2.0, 0.0), (2.0, 1.0), (2.0, 5.0), (4.0, 5.0)):
        run.args.attention_coef, run.balance.factor = coef, factor
        found.append(float(run.compute_loss(run.model, groups).detach()))
    token, once, five, ten = found
    assert abs(once - token) > 1e-4
    assert five - token == pytest.approx(5 * (once - token), rel=1e-2)
    assert ten - token == pytest.approx(10 * (once - token), rel=1e-2)


def test_the_factor_goes_on_where_it_was_saved(tmp_path: Path) -> None:
    """Measured in the first rollout batch alone, it is what the second one is trained with."""
    changes: dict[str, Any] = {"attention_anchor": "group", "attention_share": 0.5, "max_steps": 4, "save_steps": 2}
    changes |= {"save_strategy": "steps", "attention_coef": 1e-3, "reward_funcs": spread, "gradient_norm_steps": 2}
    whole, _ = trained(tmp_path, **changes)
    again = trainer(tmp_path, **changes)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert again.balance.factor > 10
    assert same(whole, {name: p.detach() for name, p in again.model.named_parameters()})


def test_a_prompts_random_numbers_are_its_own(tmp_path: Path) -> None:
    """They depend on seed, rollout batch, place in the step and stream, and on nothing else."""
    run, other = trainer(tmp_path), trainer(tmp_path, seed=4)
    states = {}
    for name, one, step in (("first", run, 0), ("inner update", run, 1), ("next", run, 2), ("other seed", other, 0)):
        one.state.global_step = step
        for place in range(3):
            for stream in range(3):
                states[name, place, stream] = one._generator(place, stream).initial_seed()
    for place in range(3):
        for stream in range(3):
            assert states["inner update", place, stream] == states["first", place, stream]
    assert len(set(states.values())) == 3 * 9


def test_the_streams_of_a_prompt_reach_what_they_are_for(tmp_path: Path) -> None:
    """Bias, tokens and shuffle of the prompt at each place: equal prompts at other places have others."""
    changes: dict[str, Any] = {"attention_anchor": "explore", "attention_advantage": "shuffled", "temperature": 1.5}
    run = trainer(tmp_path, reward_funcs=spread, **changes)
    record = RECORDS[0]
    first, second = (group.scored for group in rollouts(run, [record, record]))
    assert not torch.equal(first.look_bias, second.look_bias)
    assert first.texts != second.texts
    again, alone = (group.scored for group in rollouts(run, [record, RECORDS[1]]))
    assert torch.equal(again.look_bias, first.look_bias)
    assert again.texts == first.texts
    assert torch.equal(again.attention_advantages, first.attention_advantages)
    assert alone.texts != second.texts
    seen = {tuple(group.scored.attention_advantages.tolist()) for group in rollouts(run, [record] * 6)}
    assert len(seen) > 1, "each place is shuffled by itself"


def test_sinks_are_left_out_of_the_rows(tmp_path: Path) -> None:
    run = trainer(tmp_path, attention_skip=2, attention_anchor="group", attention_coef=10.0)
    groups = rollouts(run)
    _, outputs = run.compute_loss(run.model, groups, return_outputs=True)
    for group, output in zip(groups, outputs, strict=True):
        rows = group.old.rows[1]
        assert rows.shape[-1] == output.attention.shape[-1] - 2
        torch.testing.assert_close(rows.sum(-1), output.mask.float())
        kept = output.attention.detach()[..., 2:]
        torch.testing.assert_close(rows * kept.sum(-1, keepdim=True), kept)
    run.train()


def test_dropout_is_off_unless_kept(tmp_path: Path) -> None:
    lora = LoraConfig(r=2, target_modules=["q_proj"], lora_dropout=0.5)
    for off in (True, False):
        run = trainer(tmp_path, peft_config=lora, disable_dropout=off)
        assert {m.p for m in run.model.modules() if isinstance(m, torch.nn.Dropout)} == ({0.0} if off else {0.5})


@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "dr_grpo", "cispo", "sapo"])
def test_accumulating_gradients_is_a_larger_batch(tmp_path: Path, loss_type: str) -> None:
    """Down to the rollouts: every prompt has its own random numbers."""
    found = []
    for accumulation, prompts in ((1, 4), (2, 2), (4, 1)):
        folder = tmp_path / str(accumulation)
        run = trainer(
            folder,
            gradient_accumulation_steps=accumulation,
            per_device_train_batch_size=prompts * G,
            loss_type=loss_type,
            epsilon_high={"cispo": 5.0}.get(loss_type),
            attention_coef=5.0,
            temperature=1.5,  # lengths that differ
            optim="sgd",
            learning_rate=0.1,
        )
        run.train()
        found.append(({name: p.detach() for name, p in run.model.named_parameters()}, lines(folder / "metrics.jsonl")))
        lengths = {len(group_row["completion"]) for group_row in lines(folder / "samples.jsonl")}
        assert len(lengths) > 1
    (whole, whole_metrics), *parts = found
    moved = max((p - MODEL.state_dict()[name]).abs().max() for name, p in whole.items())
    assert moved > 1e-4
    for part, metrics in parts:
        for name, p in whole.items():
            torch.testing.assert_close(part[name], p, atol=1e-6, rtol=0)
        for row, expected in zip(metrics, whole_metrics, strict=True):
            for key in ("loss", "reward", "grad_norm", "kl", "entropy", "attention/jsd_positive", "completion_length"):
                assert row[key] == pytest.approx(expected[key], rel=1e-3, abs=1e-7), key


@pytest.mark.parametrize("adapter", [None, LORA], ids=["full", "lora"])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(tmp_path: Path, adapter: LoraConfig | None) -> None:
    """From an epoch's end and from inside the second epoch; attention exploration draws random numbers, too."""
    changes: dict[str, Any] = {"max_steps": 8, "save_strategy": "steps", "save_steps": 2, "attention_anchor": "explore"}
    changes["peft_config"] = adapter
    whole, metrics = trained(tmp_path, **changes)
    assert metrics[-1]["epoch"] == 2
    for step in (4, 6):
        run = trainer(tmp_path, **changes)
        run.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
        assert same({name: p.detach() for name, p in run.model.named_parameters()}, whole)
        resumed = lines(tmp_path / "metrics.jsonl")
        assert [row["step"] for row in resumed] == list(range(1, 9))
        for row, expected in zip(resumed, metrics, strict=True):
            for key in ("loss", "reward", "grad_norm", "attention/loss", "visual_share"):
                assert row[key] == expected[key]
    assert [row["step"] for row in lines(tmp_path / "samples.jsonl")] == [s for s in (1, 3, 5, 7) for _ in range(G)]


def test_random_numbers_outside_of_the_rollouts_go_on_where_they_were(tmp_path: Path) -> None:
    """Dropout draws from torch's own state, a reward function may from Python's and numpy's."""
    drawn: list[tuple[float, ...]] = []

    def drawing(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        drawn.append((random.random(), float(np.random.rand()), float(torch.rand(1))))
        return spread(prompts, completions)

    lora = LoraConfig(r=2, target_modules=["q_proj"], lora_dropout=0.3)
    changes: dict[str, Any] = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "disable_dropout": False}
    changes |= {"peft_config": lora, "reward_funcs": drawing}
    whole, _ = trained(tmp_path, **changes)
    expected = drawn[2:]
    drawn.clear()
    run = trainer(tmp_path, **changes)
    run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert drawn == expected
    assert same(whole, {name: p.detach() for name, p in run.model.named_parameters()})


def test_the_best_checkpoint_is_loaded_at_the_end_when_asked(tmp_path: Path) -> None:
    best = trainer(
        tmp_path,
        max_steps=4,
        save_strategy="steps",
        save_steps=2,
        eval_strategy="steps",
        eval_steps=2,
        eval_dataset=RECORDS[:2],
        reward_funcs=spread,
        load_best_model_at_end=True,
        metric_for_best_model="reward",
    )
    best.train()
    chosen = Path(best.state.best_model_checkpoint)
    assert chosen.name == "checkpoint-2", "the reward is the same, so the first is kept"
    saved = type(MODEL).from_pretrained(chosen)
    assert same(dict(best.model.named_parameters()), dict(saved.named_parameters()))


def test_two_runs_with_one_seed_are_equal_and_with_two_are_not(tmp_path: Path) -> None:
    one, again, other = (
        trained(tmp_path / name, seed=seed, reward_funcs=spread)[0] for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert same(one, again)
    assert not same(one, other)


def test_a_compiled_policy_trains_as_it_is(tmp_path: Path) -> None:
    """Traced and run as it was written (`eager`): what torch_compile changes but for the kernels, which need a compiler."""
    plain, plain_log = trained(tmp_path / "plain", reward_funcs=[spread])
    quick, quick_log = trained(
        tmp_path / "compiled", reward_funcs=[spread], torch_compile=True, torch_compile_backend="eager"
    )
    for name, parameter in plain.items():
        torch.testing.assert_close(quick[name], parameter, atol=1e-5, rtol=0)
    for a, b in zip(plain_log, quick_log, strict=True):
        assert b.get("grad_norm") == pytest.approx(a.get("grad_norm"), rel=1e-4)


# --- the reference ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adapter", [None, LORA], ids=["full", "lora"])
def test_the_reference_is_the_start_model(tmp_path: Path, adapter: LoraConfig | None) -> None:
    run = trainer(tmp_path, beta=0.04, attention_anchor="ref", peft_config=adapter, max_steps=4, reward_funcs=spread)
    run.train()
    metrics = lines(tmp_path / "metrics.jsonl")
    assert abs(metrics[0]["kl"]) < 1e-6
    assert abs(metrics[0]["attention/jsd_positive"]) < 1e-6
    assert metrics[1]["kl"] > 1e-5
    assert metrics[2]["kl"] > 1e-5, "the next rollouts are compared with the start, not with their own policy"
    assert metrics[2]["attention/jsd_positive"] > 1e-9
    groups = rollouts(run)
    with torch.no_grad():
        start = forward_groups(
            copy.deepcopy(MODEL),
            [g.prompt for g in groups],
            [g.scored.ids for g in groups],
            temperature=run.args.temperature,
        )
    for group, output in zip(groups, start, strict=True):
        torch.testing.assert_close(group.targets.ref_logps, output.logps, atol=1e-5, rtol=0)
        torch.testing.assert_close(group.targets.target_rows[1], output.attention, atol=1e-5, rtol=0)


@pytest.mark.parametrize("adapter", [None, LORA], ids=["full", "lora"])
def test_the_reference_has_the_policys_precision(tmp_path: Path, adapter: LoraConfig | None) -> None:
    """Otherwise the start model would differ from itself by rounding, and the ref anchor would train on that."""
    _, metrics = trained(tmp_path, bf16=True, max_steps=1, attention_anchor="ref", peft_config=adapter)
    assert metrics[0]["kl"] == 0
    assert metrics[0]["grad/attention_norm"] == 0


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_parameters(tmp_path: Path, reentrant: bool) -> None:
    plain, _ = trained(tmp_path / "plain", attention_coef=10.0)
    saving, _ = trained(
        tmp_path / "saving",
        attention_coef=10.0,
        gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": reentrant},
        gradient_norm_steps=int(not reentrant),
    )
    for name, p in plain.items():
        torch.testing.assert_close(saving[name], p, atol=1e-6, rtol=0)


def test_without_a_use_for_it_no_reference_is_kept(tmp_path: Path) -> None:
    run = trainer(tmp_path, beta=0.0)
    assert run.reference is None
    run.train()
    assert "kl" not in lines(tmp_path / "metrics.jsonl")[0]


def test_the_control_arm_of_the_ref_anchor_runs(tmp_path: Path) -> None:
    """λ = 0 keeps the KL's reference but asks it for no attention, while the gradients' norms are measured."""
    _, metrics = trained(tmp_path, beta=0.04, attention_anchor="ref", attention_coef=0.0)
    assert metrics[1]["grad/attention_norm"] == 0
    assert metrics[1]["kl"] > 0


def test_with_an_adapter_only_the_adapter_trains(tmp_path: Path) -> None:
    parameters, _ = trained(tmp_path, peft_config=LORA, attention_coef=10.0)
    start = MODEL.state_dict()
    changed = []
    for name, p in parameters.items():
        if "lora_" in name:
            changed.append(bool(p.any()))
        else:
            own = name.removeprefix("base_model.model.").replace(".base_layer", "")
            assert torch.equal(p, start[own]), name
    assert all(changed)
    assert changed


def test_the_vision_tower_trains_when_asked(tmp_path: Path) -> None:
    parameters, _ = trained(tmp_path, freeze_vision=False)
    name = "model.visual.patch_embed.proj.weight"
    assert not torch.equal(parameters[name], MODEL.state_dict()[name])


# --- controls, layers, keys ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("advantage", ["absolute", "shuffled"])
def test_controls_change_the_attention_term_only(tmp_path: Path, advantage: str) -> None:
    run = trainer(tmp_path, attention_advantage=advantage, reward_funcs=spread)
    plain = trainer(tmp_path / "plain", reward_funcs=spread)
    for group, without in zip(rollouts(run), rollouts(plain), strict=True):
        assert torch.equal(group.scored.advantages, without.scored.advantages)
        assert torch.equal(without.scored.attention_advantages, without.scored.advantages)
        used = group.scored.attention_advantages
        if advantage == "absolute":
            assert torch.equal(used, group.scored.advantages.abs())
        else:
            assert torch.equal(used.sort().values, group.scored.advantages.sort().values)
    assert any(not torch.equal(group.scored.attention_advantages, group.scored.advantages) for group in rollouts(run))


@pytest.mark.parametrize("keys", ["all", "prompt", "visual"])
def test_several_layers_and_every_key_selection_train(tmp_path: Path, keys: str) -> None:
    run = trainer(
        tmp_path, attention_layers=[0, -1], attention_keys=keys, attention_anchor="group", attention_coef=10.0
    )
    groups = rollouts(run)
    _, outputs = run.compute_loss(run.model, groups, return_outputs=True)
    assert [list(selected_rows(output, keys)) for output in outputs] == [[0, 1]] * 2
    assert groups[0].old.rows.keys() == {0, 1}
    run.train()
    assert lines(tmp_path / "metrics.jsonl")[1]["grad/attention_norm"] > 0


# --- rewards and evaluation ---------------------------------------------------------------------------------------


def test_a_reward_function_gets_what_trl_would_give_it(tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []

    def shorter(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        seen.append({"prompts": prompts, "completions": completions, **columns})
        return [-float(len(ids)) for ids in columns["completion_ids"]]

    records = [Record("a", "what is it? <image>", "red", images=RECORDS[0].images, extra={"level": 7}), *RECORDS[1:]]
    run = trainer(tmp_path, records, reward_funcs=shorter)
    run.train()
    metrics = lines(tmp_path / "metrics.jsonl")
    assert metrics[0]["reward"] == metrics[0]["reward/shorter"] == pytest.approx(-metrics[0]["completion_length"])
    [group] = rollouts(run, records[:1])
    call = seen[-1]
    once = {"trainer_state", "log_extra", "log_metric"}
    assert {len(values) for name, values in call.items() if name not in once} == {G}
    assert once <= call.keys()
    assert call["solution"] == ["red"] * G
    assert call["level"] == [7] * G
    assert call["problem_type"] == ["free-form"] * G
    assert call["completions"] == group.scored.texts
    assert call["completion_ids"] == [y.ids.tolist() for y in group.completions]
    assert "what is it?" in call["prompts"][0]


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ([1.0], r"'broken' returned 1 values for 4 completions"),
        ([1.0, math.nan, 0.0, 0.0], r"'broken' returned nan for completion 1"),
        ([1.0, 0.0, "good", 0.0], r"'broken' returned 'good' for completion 2"),
        (None, r"'broken' returned NoneType"),
    ],
)
def test_a_broken_reward_function_is_named(tmp_path: Path, returned: Any, message: str) -> None:
    def broken(prompts: list[str], completions: list[str], **columns: Any) -> Any:
        return returned

    with pytest.raises(RewardError, match=message):
        trainer(tmp_path, reward_funcs=broken).train()


def test_a_reward_that_does_not_apply_is_left_out_of_its_mean(tmp_path: Path) -> None:
    def sometimes(prompts: list[str], completions: list[str], **columns: Any) -> list[float | None]:
        return [0.5, None, 0.5, None]

    run = trainer(tmp_path, reward_funcs=["accuracy", sometimes], reward_weights=[1.0, 2.0])
    run.train()
    metrics = lines(tmp_path / "metrics.jsonl")[0]
    assert metrics["reward/sometimes"] == 0.5
    assert metrics["reward"] == pytest.approx(metrics["reward/accuracy"] + 2 * 0.5 / 2)


def test_groups_of_equal_rewards_train_nothing(tmp_path: Path) -> None:
    def constant(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        return [0.9] * len(completions)

    parameters, metrics = trained(tmp_path, reward_funcs=constant, beta=0.0, weight_decay=0.0)
    assert metrics[0]["groups_without_signal"] == 1
    assert metrics[0]["grad_norm"] == 0
    assert same(parameters, dict(MODEL.named_parameters()))


def test_evaluate_gives_the_mean_rewards_of_greedy_completions(tmp_path: Path) -> None:
    held_out = ring_records(6, seed=1)
    run = trainer(tmp_path, eval_dataset=held_out, per_device_eval_batch_size=4)
    metrics = run.evaluate()
    assert metrics["eval_reward"] == pytest.approx(
        0.9 * metrics["eval_reward/accuracy"] + 0.1 * metrics["eval_reward/format"]
    )
    assert metrics["eval_reward/accuracy"] * 6 == pytest.approx(round(metrics["eval_reward/accuracy"] * 6))
    assert run.evaluate() == metrics, "no randomness"
    alone = run.evaluate(held_out[:1])
    assert alone["eval_reward/accuracy"] in (0, 1)
    assert lines(tmp_path / "metrics.jsonl")[0]["eval_reward"] == metrics["eval_reward"]


def test_evaluation_while_training_changes_nothing(tmp_path: Path) -> None:
    plain, _ = trained(tmp_path / "plain")
    watched, metrics = trained(tmp_path / "watched", eval_dataset=RECORDS[:2], eval_strategy="steps", eval_steps=1)
    assert same(plain, watched)
    assert sum("eval_reward" in row for row in metrics) == 2


# --- what is refused ----------------------------------------------------------------------------------------------


def test_visual_keys_with_a_prompt_without_visual_tokens_are_refused(tmp_path: Path) -> None:
    records = [Record(str(i), "what colour is it?", "red") for i in range(2)]
    with pytest.raises(ValueError, match=r'attention_keys="visual".*no visual tokens'):
        trainer(tmp_path, records, attention_keys="visual").train()


def test_records_of_text_only_train_beside_images(tmp_path: Path) -> None:
    records = [Record("text", "what colour is it?", "red"), RECORDS[0]]
    _, metrics = trained(tmp_path, records=records, reward_funcs=spread, attention_coef=10.0)
    assert metrics[0]["groups_without_signal"] == 0
    assert metrics[1]["grad/attention_norm"] > 0


def test_a_layer_that_the_model_does_not_have_is_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"attention_layers contains 5, but the model has 2 decoder layers"):
        trainer(tmp_path, attention_layers=[5])


def test_an_adapter_of_the_frozen_vision_tower_is_refused(tmp_path: Path) -> None:
    everywhere = LoraConfig(r=4, target_modules="all-linear")
    with pytest.raises(ConfigError, match=r"adapts the vision tower.*exclude_modules.*freeze_vision=False"):
        trainer(tmp_path, peft_config=everywhere)
    trainer(tmp_path, peft_config=everywhere, freeze_vision=False)
    trainer(tmp_path, peft_config=LoraConfig(r=4, target_modules="all-linear", exclude_modules=r".*visual.*"))


def test_too_few_prompts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds 1 prompts, but one optimiser step takes 2"):
        trainer(tmp_path, RECORDS[:1]).train()


def test_missing_datasets_are_refused(tmp_path: Path) -> None:
    run = RALTrainer(copy.deepcopy(MODEL), settings(tmp_path), processing_class=PROCESSOR)
    with pytest.raises(ValueError, match="train_dataset"):
        run.train()
    with pytest.raises(ValueError, match="eval_dataset"):
        run.evaluate()


def test_evidence_raises_the_mass_on_the_boxes(tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "max_steps": 8,
        "num_iterations": 1,
        "attention_query": "predictor",
        "attention_keys": "visual",
    }
    _, plain = trained(tmp_path / "grpo", attention_coef=0.0, **changes)
    _, metrics = trained(tmp_path / "evidence", attention_anchor="evidence", attention_coef=100.0, **changes)
    assert "attention/on_evidence" not in plain[0]
    assert metrics[-1]["attention/on_evidence"] > metrics[0]["attention/on_evidence"] + 0.05
    assert all(row["attention/without_evidence"] == 0 for row in metrics)


def test_records_without_evidence_are_told_and_all_of_them_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    blind = [dataclasses.replace(record, boxes=()) for record in RECORDS]
    with pytest.raises(DataError, match=r"none of the 4 records says where it is; give them boxes"):
        trainer(tmp_path / "none", blind, attention_anchor="evidence")
    trainer(tmp_path / "off", blind, attention_anchor="evidence", attention_coef=0.0)
    run = trainer(tmp_path / "some", [*RECORDS[:1], *blind[1:]], attention_anchor="evidence")
    assert "3 of 4 records say nothing of where their evidence is" in caplog.text
    run.train()
    shares = [row["attention/without_evidence"] for row in lines(tmp_path / "some" / "metrics.jsonl")]
    assert sum(shares) > 0


def test_a_model_whose_boxes_have_no_known_scale_needs_the_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Qwen2_5VL, "box_space", None)
    wanted = {"attention_anchor": "evidence", "evidence_from": "completion"}
    with pytest.raises(ConfigError, match=r"set evidence_box_space .* to one of image, resized, thousandths"):
        trainer(tmp_path / "unknown", RECORDS, **wanted)
    trainer(tmp_path / "off", RECORDS, attention_coef=0.0, attention_anchor="evidence")
    run = trainer(tmp_path / "named", RECORDS, evidence_box_space="image", **wanted)
    assert run.needs.stated_boxes
    run.train()


@pytest.mark.parametrize("changes", [{"evidence_from": "completion"}, {"evidence_from": "masking"}])
def test_a_source_in_pictures_wants_one_record_with_a_picture(tmp_path: Path, changes: dict[str, Any]) -> None:
    text = [dataclasses.replace(record, images=(), boxes=()) for record in RECORDS]
    with pytest.raises(DataError, match="works on images and videos, but none of the 4 records has any"):
        trainer(tmp_path / "none", text, attention_anchor="evidence", **changes)
    trainer(tmp_path / "some", [*text[1:], RECORDS[0]], attention_anchor="evidence", **changes)
    trainer(tmp_path / "off", text, attention_anchor="evidence", attention_coef=0.0)


def test_a_run_whose_rollouts_state_no_box_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    short: dict[str, Any] = {
        "max_steps": WINDOW,
        "max_completion_length": 2,
        "gradient_norm_steps": 0,
        "save_strategy": "no",
    }
    trained(tmp_path, attention_anchor="evidence", evidence_from="completion", **short)
    assert (
        f"step {WINDOW}: no rollout has had known evidence for {WINDOW} logged steps. No completion states a box"
        in caplog.text
    )


def test_a_box_outside_its_image_names_the_record(tmp_path: Path) -> None:
    [record] = RECORDS[:1]
    wrong = dataclasses.replace(record, boxes=(Box(900, 900, 950, 950),))
    run = trainer(tmp_path, [wrong], attention_anchor="evidence", per_device_train_batch_size=G)
    with pytest.raises(DataError, match=rf"(?s)covers nothing of its 64x64 medium.*{record.id}"):
        run.train()
