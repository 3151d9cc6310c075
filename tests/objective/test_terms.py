"""GRPO's loss, gradient and advantages against TRL's own trainer on the same rollouts; the weights by definition."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedModel
from trl import GRPOConfig, GRPOTrainer

from ral.attention import Prompt, forward_groups, prepare_prompt
from ral.config import RALConfig
from ral.data.record import Record
from ral.objective.divergence import jensen_shannon
from ral.objective.terms import (
    StepTotals,
    attention_loss,
    cancelled_share,
    distillation_loss,
    group_advantages,
    grpo_loss,
    importance,
    token_weights,
)
from ral.rollouts.group import OldPass, RewardedGroup, Targets, TrainingGroup
from ral.rollouts.sampling import Completion
from ral.testbed.model import build_model, build_processor
from ral.testbed.rings import ring_records
from ral.training.advantages import score_groups
from ral.training.losses import micro_batch_loss, policy_pass
from tests.tiny import tiny_model

G, PROMPTS, LONGEST = 4, 2, 6
TEMPERATURE = 0.9
PROCESSOR = build_processor()
# TRL pads `input_ids` on the left and takes the token types beside them as the processor pads them.
PROCESSOR.tokenizer.padding_side = "left"


def spread(completions: list[Any], **columns: Any) -> list[float]:
    """A reward with signal in every group, whatever was sampled."""
    return [[1.0, 0.1, 0.1, 0.7][i % G] for i in range(len(completions))]


def text_case() -> tuple[PreTrainedModel, Any, list[dict[str, Any]]]:
    tokenizer = copy.deepcopy(PROCESSOR.tokenizer)
    tokenizer.chat_template = PROCESSOR.chat_template
    model = tiny_model(
        "qwen2",
        vocab_size=len(tokenizer),
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.3,
    )
    return model, tokenizer, [{"prompt": "what colour is inside the red ring?"}, {"prompt": "is there a ring?"}]


def image_case() -> tuple[PreTrainedModel, Any, list[dict[str, Any]]]:
    records = ring_records(PROMPTS, seed=0, image_size=32, grid=2, rings=2)
    rows = [
        {"prompt": [{"role": "user", "content": r.problem.replace("<image>", "")}], "image": r.images[0]}
        for r in records
    ]
    return build_model(PROCESSOR).eval(), PROCESSOR, rows


@pytest.fixture(scope="module", params=["text", "image"])
def trl(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[GRPOTrainer, dict[str, Any]]:
    """A real GRPOTrainer with the two groups that it has sampled, scored and prepared."""
    model, processing_class, rows = {"text": text_case, "image": image_case}[request.param]()
    args = GRPOConfig(
        output_dir=str(tmp_path_factory.mktemp("trl")),
        use_cpu=True,
        bf16=False,
        per_device_train_batch_size=G * PROMPTS,
        num_generations=G,
        max_completion_length=LONGEST,
        temperature=TEMPERATURE,
        beta=0.0,  # it would load the reference from a hub; the reference log-probs are made below
        num_iterations=2,
        use_bias_correction_kl=False,  # its default departs from GRPO as published
        report_to="none",
        seed=1,
    )
    trainer = GRPOTrainer(
        model, spread, args=args, train_dataset=Dataset.from_list(rows), processing_class=processing_class
    )
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    batch = trainer._generate_and_score_completions([row for row in trainer.train_dataset for _ in range(G)])
    generator = torch.Generator().manual_seed(0)
    logps = our_logps(trainer, batch)
    for name, size in (("old_per_token_logps", 0.4), ("ref_per_token_logps", 0.2)):
        batch[name] = (logps + size * torch.randn(logps.shape, generator=generator)).detach()
    return trainer, batch


def our_groups(trainer: GRPOTrainer, batch: dict[str, Any]) -> tuple[list[Prompt], list[list[Tensor]]]:
    """The batch of TRL's, whose prompts are padded and repeated, as prompt groups."""
    prompts, completions = [], []
    for i in range(0, G * PROMPTS, G):
        inputs = {"input_ids": batch["prompt_ids"][i][None], "attention_mask": batch["prompt_mask"][i][None]}
        if "pixel_values" in batch:
            patches = int(batch["image_grid_thw"][i].prod())  # all images are of one size
            inputs["pixel_values"] = batch["pixel_values"][i * patches : (i + 1) * patches]
            inputs["image_grid_thw"] = batch["image_grid_thw"][i][None]
        prompts.append(prepare_prompt(trainer.model, inputs))
        rows = zip(batch["completion_ids"][i : i + G], batch["completion_mask"][i : i + G].bool(), strict=True)
        completions.append([ids[mask] for ids, mask in rows])
    return prompts, completions


def our_logps(trainer: GRPOTrainer, batch: dict[str, Any]) -> Tensor:
    """`[PROMPTS·G, R]` log-probabilities of the packed forward in TRL's padding."""
    outputs = forward_groups(trainer.model, *our_groups(trainer, batch), layers=(), temperature=TEMPERATURE)
    longest = batch["completion_ids"].shape[1]
    return torch.cat([torch.nn.functional.pad(o.logps, (0, longest - o.logps.shape[1])) for o in outputs])


def gradient(loss: Tensor, model: PreTrainedModel) -> Tensor:
    parameters = [p for p in model.parameters() if p.requires_grad]
    grads = torch.autograd.grad(loss, parameters, allow_unused=True)
    return torch.cat(
        [(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(parameters, grads, strict=True)]
    )


def test_advantages_are_trls(trl: tuple[GRPOTrainer, dict[str, Any]]) -> None:
    rewards = torch.tensor(spread([None] * G))
    torch.testing.assert_close(trl[1]["advantages"], group_advantages(rewards).repeat(PROMPTS))


def test_log_probabilities_are_trls(trl: tuple[GRPOTrainer, dict[str, Any]]) -> None:
    trainer, batch = trl
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    names = ("pixel_values", "image_grid_thw", "num_images", "mm_token_type_ids")
    with torch.no_grad():
        theirs, _, _ = trainer._get_per_token_logps_and_entropies(
            trainer.model, ids, mask, batch["completion_ids"].shape[1], **{n: batch[n] for n in names if n in batch}
        )
        ours = our_logps(trainer, batch)
    real = batch["completion_mask"].bool()
    torch.testing.assert_close(ours[real], theirs[real], atol=2e-5, rtol=0)


#: Of each case the settings that differ from GRPO's, by TRL's names.
LOSSES: dict[str, dict[str, Any]] = {
    "grpo": {"loss_type": "grpo"},
    "dapo": {"loss_type": "dapo"},
    "dapo, clip higher": {"loss_type": "dapo", "epsilon_high": 0.5},
    "dr_grpo": {"loss_type": "dr_grpo"},
    "bnpo": {"loss_type": "bnpo"},
    "two-sided": {"loss_type": "dapo", "delta": 1.3},
    "cispo": {"loss_type": "cispo", "epsilon_high": 1.1},
    "sapo": {"loss_type": "sapo", "sapo_temperature_pos": 1.5, "sapo_temperature_neg": 2.5},
    "gspo": {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 0.02},
    "gspo, per token": {"loss_type": "dapo", "importance_sampling_level": "sequence", "epsilon": 0.02},
    "cispo of completions": {"loss_type": "cispo", "importance_sampling_level": "sequence", "epsilon_high": 1.01},
    "luspo": {"loss_type": "luspo", "importance_sampling_level": "sequence", "epsilon": 0.02},
    "high entropy": {"loss_type": "dapo", "top_entropy_quantile": 0.4},
    "highest entropy": {"loss_type": "grpo", "top_entropy_quantile": 0.0},
    "entropy bonus": {"loss_type": "dr_grpo", "entropy_coef": 0.3},
    "bonus of high entropy": {"loss_type": "grpo", "entropy_coef": 0.3, "top_entropy_quantile": 0.4},
}
MASKED = ("grpo", "dapo", "dr_grpo", "bnpo", "gspo", "bonus of high entropy")


@pytest.mark.parametrize("beta", [0.0, 0.04])
@pytest.mark.parametrize(("name", "masked"), [*((n, False) for n in LOSSES), *((n, True) for n in MASKED)])
def test_loss_and_gradient_are_trls(
    trl: tuple[GRPOTrainer, dict[str, Any]], name: str, masked: bool, beta: float, tmp_path: Path
) -> None:
    """With `mask_truncated_completions` the third completion of each group counts as truncated."""
    trainer, batch = trl
    args = RALConfig(
        output_dir=str(tmp_path), use_cpu=True, num_generations=G, per_device_train_batch_size=G * PROMPTS,
        max_completion_length=LONGEST, temperature=TEMPERATURE, beta=beta, mask_truncated_completions=masked, **LOSSES[name],
    )  # fmt: skip
    told_to(trainer, args)
    Accelerator(cpu=True)  # of both trainers; new settings take its state away
    counted = torch.tensor([not masked or i % G != 2 for i in range(G * PROMPTS)])
    mask = batch["completion_mask"] * counted[:, None]
    given = {"completion_mask": mask, "num_items_in_batch": mask.sum() * trainer.args.steps_per_generation}
    theirs = trainer._compute_loss(trainer.model, batch | given)

    groups = training_groups(trainer, batch, args, counted)
    outputs = policy_pass(trainer.model, groups, args, capture=False, teacher=None)
    ours = micro_batch_loss(trainer.model, groups, outputs, args)
    torch.testing.assert_close(ours.token, theirs, atol=1e-6, rtol=1e-5)
    mine, other = gradient(ours.token, trainer.model), gradient(theirs, trainer.model)
    assert (mine - other).norm() < 1e-4 * other.norm()
    assert other.norm() > 1e-4
    if args.loss_type != "sapo":
        assert sum(metrics["clip_fraction"].total for metrics in ours.metrics if "clip_fraction" in metrics) > 0


def told_to(trainer: GRPOTrainer, args: RALConfig) -> None:
    """TRL's trainer reads some settings when it is made, some from its arguments."""
    for name in ("loss_type", "beta", "importance_sampling_level", "top_entropy_quantile", "entropy_coef"):
        setattr(trainer, name, getattr(args, name))
    trainer._entropy_bonus_enabled = args.entropy_coef > 0
    trainer.epsilon_low, trainer.epsilon_high = args.epsilon, args.epsilon_high or args.epsilon
    for name in ("delta", "sapo_temperature_pos", "sapo_temperature_neg"):
        setattr(trainer.args, name, getattr(args, name))


def training_groups(trainer: GRPOTrainer, batch: dict[str, Any], args: RALConfig, whole: Tensor) -> list[TrainingGroup]:
    """TRL's batch as our records behind the first inner update; completions are truncated that are not `whole`."""
    rewards, rewarded = torch.tensor(spread([None] * G)), []
    for i, (prompt, ids) in enumerate(zip(*our_groups(trainer, batch), strict=True)):
        completions = [Completion(y, not bool(whole[i * G + g])) for g, y in enumerate(ids)]
        rewarded.append(
            RewardedGroup(
                record=Record("a", "", ""),
                prompt=prompt,
                completions=completions,
                texts=[""] * G,
                rewards={},
                reward=rewards,
            )
        )
    shuffles = [torch.Generator()] * PROMPTS
    [scored] = score_groups([rewarded], [shuffles], args, trainer.accelerator)
    found = []
    for i, group in enumerate(scored):
        own = slice(i * G, (i + 1) * G), slice(0, group.mask.shape[1])
        old = OldPass(logps=batch["old_per_token_logps"][own], rows={})
        targets = Targets(ref_logps=batch["ref_per_token_logps"][own])
        found.append(TrainingGroup(scored=group, targets=targets, old=old))
    return found


def test_advantages_over_the_batch_are_trls(trl: tuple[GRPOTrainer, dict[str, Any]], tmp_path: Path) -> None:
    """Rewards of the second prompt spread less; the batch's deviation divides them all."""
    trainer, batch = trl
    rewards = torch.tensor([1.0, 0.1, 0.1, 0.7, 0.5, 0.4, 0.5, 0.5])[:, None]
    for scale in ("group", "batch", "none"):
        args = RALConfig(output_dir=str(tmp_path), use_cpu=True, num_generations=G, per_device_train_batch_size=G,
                         scale_rewards=scale)  # fmt: skip
        Accelerator(cpu=True)
        prompts, completions = our_groups(trainer, batch)
        rewarded = [
            RewardedGroup(record=Record("a", "", ""), prompt=prompt, completions=[Completion(y, False) for y in ids],
                          texts=[""] * G, rewards={}, reward=own[:, 0])
            for prompt, ids, own in zip(prompts, completions, rewards.split(G), strict=True)
        ]  # fmt: skip
        scored = score_groups([[group] for group in rewarded], [[torch.Generator()]] * 2, args, trainer.accelerator)
        trainer.scale_rewards, trainer.beta = scale, 0.0  # it has no reference
        with patch.object(trainer, "_calculate_rewards", return_value=rewards):
            rows = [row for row in trainer.train_dataset for _ in range(G)]
            theirs = trainer._generate_and_score_completions(rows)["advantages"]
        torch.testing.assert_close(torch.cat([group.advantages for [group] in scored]), theirs)


def test_clip_fraction_and_kl_by_hand() -> None:
    logps = torch.tensor([[0.0, 0.5, -0.5], [0.5, -0.5, 9.0]])
    weights = torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]])
    term = grpo_loss(
        logps,
        torch.zeros(2, 3),
        torch.tensor([1.0, -1.0]),
        weights,
        epsilon=0.2,
        ref_logps=logps + torch.tensor(2.0).log(),
        beta=0.5,
    )
    e = torch.tensor([0.5, -0.5]).exp()
    # Clipped: a good token that became likelier, a bad token that became less likely.
    assert term.metrics["clip_fraction"] == (2, 5)
    kl = 2 - torch.tensor(2.0).log() - 1
    torch.testing.assert_close(term.metrics["kl"].total, 5 * kl)
    torch.testing.assert_close(term.loss, -(1 + 1.2 + e[1]) + (e[0] + 0.8) + 0.5 * 5 * kl)


MASK = torch.tensor([[True, True, True, True], [True, False, False, False], [True, True, False, False]])


@pytest.mark.parametrize(
    ("loss_type", "per_token"),
    [
        ("grpo", [1 / 4 / 10, 1 / 10, 1 / 2 / 10]),  # mean over its tokens, then over the step's 10 completions
        ("dapo", [1 / 50] * 3),  # over the step's 50 tokens
        ("dr_grpo", [1 / (10 * 8)] * 3),  # over 10 completions of the longest length, 8
    ],
)
def test_token_weights(loss_type: str, per_token: list[float]) -> None:
    weights = token_weights(MASK, StepTotals(completions=10, tokens=50), loss_type, 8)
    torch.testing.assert_close(weights, MASK * torch.tensor(per_token)[:, None])


@settings(max_examples=50)
@given(st.floats(-1, 1, width=32), st.integers(2, 64))
def test_equal_rewards_give_exactly_no_signal(reward: float, size: int) -> None:
    for scale in ("group", "none"):
        assert not group_advantages(torch.full((size,), reward), scale).any()


@settings(max_examples=50)
@given(st.lists(st.floats(-1, 1, width=32), min_size=2, max_size=16))
def test_advantages_sum_to_zero_and_keep_the_order(rewards: list[float]) -> None:
    r = torch.tensor(rewards, dtype=torch.float64)
    for scale in ("group", "none"):
        advantages = group_advantages(r, scale)
        assert abs(advantages.sum()) < 1e-9
        assert (advantages[r.argsort()].diff() >= 0).all()
    torch.testing.assert_close(group_advantages(r, "none"), r - r.mean())


def test_signals_on_one_context_cancel_as_their_advantages_do() -> None:
    """Trap 3: completions that agree so far pull at the same row, and advantages sum to zero."""
    a, b, c = torch.tensor([7, 1]), torch.tensor([7, 2]), torch.tensor([7, 1])
    advantages = group_advantages(torch.tensor([1.0, 0.0, 0.0]))
    signal = advantages[:, None, None] * torch.rand(1, 2, 5).expand(3, -1, -1)
    norms = signal.norm(dim=-1)
    left = (signal[0, 1] + signal[2, 1]).norm() + norms[1, 1]  # the second token of the first and third agree
    seen = cancelled_share(signal, [a, b, c], sees_itself=True)
    assert seen.total.item() == pytest.approx(1 - (left / norms.sum()).item())
    assert cancelled_share(signal, [a, b, c], sees_itself=False).total.item() == pytest.approx(1, abs=1e-6)
    assert cancelled_share(signal, [a, a, a], sees_itself=True).total.item() == pytest.approx(1, abs=1e-6)
    apart = [torch.tensor([g, 0]) for g in range(3)]
    assert cancelled_share(signal, apart, sees_itself=True).total.item() == pytest.approx(0, abs=1e-6)
    assert cancelled_share(torch.zeros(3, 2, 5), [a, b, c], sees_itself=True).weight == 0


def test_the_kl_is_bounded_where_its_exponential_overflows() -> None:
    """As it was up to a log-ratio of 20; beyond it the loss and its gradient stay numbers (NeMo-RL #874)."""
    advantages, weights = torch.zeros(1), torch.ones(1, 3)
    reference = torch.tensor([[-1.0, -1.0, -1.0]])
    logps = torch.tensor([[-0.5, -20.0, -300.0]], requires_grad=True)

    term = grpo_loss(logps, logps.detach(), advantages, weights, epsilon=0.2, ref_logps=reference, beta=1.0)
    (gradient,) = torch.autograd.grad(term.loss, logps)
    gap = (reference - logps).detach()
    expected = gap.exp() - gap - 1
    assert term.loss.item() == pytest.approx(expected[0, :2].sum().item() + math.exp(20) - 21, rel=1e-6)
    assert torch.equal(gradient[0, :2], (1 - gap.exp())[0, :2])
    assert gradient[0, 2] == 0


@settings(max_examples=200)
@given(
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.sampled_from([-2.0, -1e-3, 0.0, 1e-3, 2.0]),
    st.floats(-400, 0, width=32),
    st.floats(-400, 0, width=32),
    st.floats(-400, 0, width=32),
)
def test_the_loss_and_its_gradient_are_finite_for_any_log_probabilities(
    dtype: torch.dtype, advantage: float, now: float, old: float, reference: float
) -> None:
    logps, *others = (torch.tensor([[value]], dtype=dtype) for value in (now, old, reference))
    logps.requires_grad_()
    term = grpo_loss(
        logps, others[0], torch.tensor([advantage]), torch.ones(1, 1), epsilon=0.2, ref_logps=others[1], beta=0.04
    )
    (gradient,) = torch.autograd.grad(term.loss, logps)
    assert term.loss.isfinite()
    assert gradient.isfinite().all()
    assert all(metric.total.isfinite() for metric in term.metrics.values())


@pytest.mark.parametrize(
    ("advantage", "loss", "gradient"),
    [(0.0, 0.0, 0.0), (1.0, -1.2, 0.0), (-1.0, math.exp(20), 0.0)],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_ratio_that_overflows_is_bounded(dtype: torch.dtype, advantage: float, loss: float, gradient: float) -> None:
    """A token 90 nats likelier than when it was drawn: where nothing clips it, it counts as one of 20 nats."""
    logps = torch.tensor([[-0.5]], dtype=dtype, requires_grad=True)
    old = torch.tensor([[-90.5]], dtype=dtype)
    term = grpo_loss(logps, old, torch.tensor([advantage]), torch.ones(1, 1), epsilon=0.2)
    assert term.loss.item() == pytest.approx(loss, rel=1e-6)
    assert torch.autograd.grad(term.loss, logps)[0].item() == gradient


def test_in_bfloat16_the_ratio_keeps_the_digits_of_float32() -> None:
    logps, old = (torch.tensor([[value]], dtype=torch.bfloat16) for value in (-1.0, -1.0078125))
    term = grpo_loss(logps, old, torch.ones(1), torch.ones(1, 1), epsilon=0.2)
    assert term.loss.item() == pytest.approx(-math.exp(0.0078125), rel=1e-6)


def test_tokens_count_by_their_likelihood_under_the_policy_up_to_a_cap() -> None:
    logps = torch.tensor([[-1.0, -1.0, -3.0]], requires_grad=True)
    sampling_logps = torch.tensor([[-1.0, -3.0, -1.0]])
    found = importance(logps, sampling_logps, cap=2.0)
    torch.testing.assert_close(found, torch.tensor([[1.0, 2.0, math.exp(-2)]]))
    assert not found.requires_grad


def test_without_an_advantage_nothing_is_clipped() -> None:
    """Neither value nor gradient of such a token depends on the clip."""
    logps, weights = torch.tensor([[1.0, -1.0], [1.0, -1.0], [1.0, -1.0]]), torch.ones(3, 2)
    term = grpo_loss(logps, torch.zeros(3, 2), torch.tensor([1.0, 0.0, -1.0]), weights, epsilon=0.2)
    assert term.metrics["clip_fraction"] == (2, 6)


def test_rollouts_without_an_advantage_count_neither_as_pulled_nor_as_pushed() -> None:
    rows, target = (torch.rand(3, 2, 5, generator=torch.Generator().manual_seed(n)).softmax(-1) for n in range(2))
    metrics = attention_loss(rows, target, torch.tensor([1.0, 0.0, -1.0]), torch.ones(3, 2)).metrics
    divergence = jensen_shannon(rows, target)
    for sign, rollout in (("positive", 0), ("negative", 2)):
        found = metrics[f"attention/jsd_{sign}"]
        assert found.weight == 2
        torch.testing.assert_close(found.total, divergence[rollout].sum())


def test_the_cancelled_share_does_not_depend_on_the_size_of_the_signal() -> None:
    completions = [torch.tensor([7, 1]), torch.tensor([7, 2])]
    signal = torch.rand(2, 2, 5, generator=torch.Generator().manual_seed(0)) - 0.5
    large, small = (cancelled_share(scale * signal, completions, sees_itself=True) for scale in (1.0, 1e-4))
    assert 0.01 < large.total.item() < 0.99
    assert small.total.item() == pytest.approx(large.total.item(), rel=1e-4)
    assert large.weight == small.weight == 1
    assert cancelled_share(torch.zeros(2, 2, 5), completions, sees_itself=True).total == 0


@pytest.mark.parametrize("divergence", ["jsd", "kl"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_of_weight_zero_reach_neither_loss_nor_gradient(divergence: str, dtype: torch.dtype) -> None:
    clean, target = (torch.rand(3, 2, 5, generator=torch.Generator().manual_seed(n)).softmax(-1) for n in range(2))
    clean, target = clean.to(dtype), target.to(dtype)
    weights = torch.tensor([[0.3, 0.0], [0.2, 0.1], [0.0, 0.0]])
    advantages = torch.tensor([1.0, -0.5, 2.0])
    loss, gradients = [], []
    for held in (None, math.nan, math.inf):
        rows, to = clean.clone(), target.clone()
        if held is not None:
            rows[0, 1], to[2] = held, held
        rows.requires_grad_()
        loss.append(attention_loss(rows, to, advantages, weights, divergence).loss)
        gradients.append(torch.autograd.grad(loss[-1], rows)[0])
    assert loss[0].isfinite()
    assert loss[0] != 0
    assert not gradients[0][weights == 0].any()
    assert loss[0] == loss[1] == loss[2]
    assert torch.equal(gradients[0], gradients[1])
    assert torch.equal(gradients[0], gradients[2])


def test_distilled_tokens_of_weight_zero_reach_neither_loss_nor_gradient() -> None:
    divergence = torch.tensor([[0.5, math.nan], [math.inf, 2.0]], requires_grad=True)
    term = distillation_loss(divergence, torch.tensor([[0.3, 0.0], [0.0, 0.1]]), "distill/gkd")
    assert term.loss.item() == pytest.approx(0.35)
    assert torch.autograd.grad(term.loss, divergence)[0].tolist() == [[pytest.approx(0.3), 0], [0, pytest.approx(0.1)]]
    assert term.metrics["distill/gkd"] == (2.5, 2)
