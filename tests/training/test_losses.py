"""Each setting of a run acts on its term: numbers by hand, on groups without a model."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ral.attention import GroupOutput, Prompt
from ral.config import RALConfig
from ral.data.record import Record
from ral.objective.divergence import jensen_shannon
from ral.objective.terms import Mean
from ral.rollouts.group import OldPass, ScoredGroup, Targets, TrainingGroup
from ral.rollouts.sampling import Completion
from ral.training.losses import MicroBatchLoss, attention_term, distillation_term, token_term

G, R, P = 2, 2, 4
ADVANTAGES = torch.tensor([1.0, -1.0])
WEIGHTS = torch.tensor([[0.25, 0.25], [0.5, 0.0]])
LOGPS = torch.tensor([[-1.0, -0.5], [-2.0, 0.0]])
VISUAL = torch.tensor([1, 2])


def settings(folder: Path, **changes: Any) -> RALConfig:
    return RALConfig(output_dir=str(folder), use_cpu=True, num_generations=G, per_device_train_batch_size=G, **changes)


def rows(seed: int) -> Tensor:
    return torch.rand(G, R, P + R, generator=torch.Generator().manual_seed(seed)).softmax(-1)


def output(*layers: Tensor, logps: Tensor = LOGPS, **extra: Tensor) -> GroupOutput:
    mask = WEIGHTS > 0
    visual = torch.zeros(P, dtype=torch.bool).index_fill(0, VISUAL, True)
    named = dict(enumerate(layers))
    own = {layer: torch.zeros(G, R) for layer in named}
    return GroupOutput(logps=logps, entropy=logps, mask=mask, layers=named, own=own, visual=visual, extra=extra)


def group(old: dict[int, Tensor] | None = None, logps: Tensor = LOGPS, **targets: Any) -> TrainingGroup:
    prompt = Prompt(torch.arange(P), torch.arange(P), ((1, 1, 2),), VISUAL, None, {})
    completions = [Completion(torch.tensor([5, 6]), True), Completion(torch.tensor([7]), False)]
    scored = ScoredGroup(
        record=Record("a", "", ""), prompt=prompt, completions=completions, texts=["", ""], rewards={}, reward=ADVANTAGES,
        advantages=ADVANTAGES, attention_advantages=ADVANTAGES, weights=WEIGHTS,
    )  # fmt: skip
    return TrainingGroup(scored=scored, targets=Targets(**targets), old=OldPass(logps=logps, rows=old or {}))


def test_the_upper_clip_is_epsilon_high(tmp_path: Path) -> None:
    """A success whose tokens became e^0.5 = 1.65 times as likely: clipped at 1.2, or not at all below 2."""
    one = group(logps=LOGPS - 0.5)
    one.scored = dataclasses.replace(one.scored, advantages=torch.ones(G))
    for high, ratio in ((None, 1.2), (0.4, 1.4), (1.0, math.exp(0.5))):
        term = token_term(one, output(), settings(tmp_path, beta=0.0, epsilon_high=high))
        torch.testing.assert_close(term.loss, -(WEIGHTS.sum() * ratio))


def test_the_kl_is_to_the_reference_where_beta_says_so(tmp_path: Path) -> None:
    one = group(ref_logps=LOGPS + torch.tensor(2.0).log())
    with_kl, without = (token_term(one, output(), settings(tmp_path, beta=beta)) for beta in (0.5, 0.0))
    kl = 2 - torch.tensor(2.0).log() - 1
    torch.testing.assert_close(with_kl.loss - without.loss, 0.5 * kl * WEIGHTS.sum())
    assert "kl" not in without.metrics


def test_attention_takes_its_own_advantages(tmp_path: Path) -> None:
    """A control permutes them or takes them without their sign; those of the token loss stay."""
    now, old = rows(0), rows(1)
    one = group({0: old})
    divergence = WEIGHTS * jensen_shannon(now, old)
    for advantages in (ADVANTAGES, ADVANTAGES.flip(0), ADVANTAGES.abs(), torch.tensor([3.0, 0.0])):
        one.scored = dataclasses.replace(one.scored, attention_advantages=advantages)
        term = attention_term(one, output(now), settings(tmp_path))
        torch.testing.assert_close(term.loss, (advantages[:, None] * divergence).sum())


def test_attention_is_the_mean_over_layers(tmp_path: Path) -> None:
    old, now = {layer: rows(layer) for layer in range(3)}, [rows(10 + layer) for layer in range(3)]
    one, args = group(old), settings(tmp_path, attention_layers=[0, 1, 2])
    alone = [attention_term(group({0: old[layer]}), output(now[layer]), args).loss for layer in range(3)]
    torch.testing.assert_close(attention_term(one, output(*now), args).loss, torch.stack(alone).mean())


def test_boxes_that_were_left_out_are_shown(tmp_path: Path) -> None:
    left_out = torch.tensor([2.0, 3.0])
    found = attention_term(group({0: rows(1)}, boxes_left_out=left_out), output(rows(0)), settings(tmp_path))
    assert found.metrics["attention/boxes_left_out"] == Mean(torch.tensor(2.0), torch.tensor(3.0))
    assert (
        "attention/boxes_left_out"
        not in attention_term(group({0: rows(1)}), output(rows(0)), settings(tmp_path)).metrics
    )


def test_distilled_attention_is_the_mean_over_layers_times_gamma(tmp_path: Path) -> None:
    taught, now = [rows(layer) for layer in range(3)], [rows(10 + layer) for layer in range(3)]
    found = distillation_term(group(teacher_rows=taught), output(*now), settings(tmp_path, attention_distill_coef=0.3))
    divergences = [(WEIGHTS * jensen_shannon(*pair)).sum() for pair in zip(now, taught, strict=True)]
    torch.testing.assert_close(found.loss, 0.3 * torch.stack(divergences).mean())


def test_distilled_tokens_count_mu_times(tmp_path: Path) -> None:
    divergence = torch.tensor([[1.0, 2.0], [3.0, 9.0]])
    found = distillation_term(group(), output(gkd=divergence), settings(tmp_path, distill_coef=0.3))
    torch.testing.assert_close(found.loss, 0.3 * (WEIGHTS * divergence).sum())


def test_all_terms_are_weighed_with_the_importance_of_the_tokens(tmp_path: Path) -> None:
    now, old, taught = rows(0), rows(1), [rows(2)]
    ratio = torch.tensor([[2.0, 0.5], [0.25, 1.0]])
    args = settings(tmp_path, beta=0.0, attention_distill_coef=1.0)
    plain, weighed = group({0: old}, teacher_rows=taught), group({0: old}, teacher_rows=taught)
    weighed.old = dataclasses.replace(weighed.old, importance=ratio)
    plain.scored = dataclasses.replace(plain.scored, weights=WEIGHTS * ratio)
    for term in (token_term, attention_term, distillation_term):
        assert torch.equal(term(weighed, output(now), args).loss, term(plain, output(now), args).loss)


def test_the_total_weighs_the_attention_term() -> None:
    losses = MicroBatchLoss(torch.tensor(1.0), torch.tensor(10.0), torch.tensor(100.0), [])
    assert float(losses.total(0.5)) == 106
    assert float(losses.total(0.0)) == 101
    nothing = dataclasses.replace(losses, attention=torch.tensor(torch.nan))
    assert float(nothing.total(0.0)) == 101, "a term that is not trained cannot spoil the loss"


@pytest.mark.parametrize(("keys", "skip", "shared"), [("all", 0, 4), ("all", 1, 3), ("prompt", 2, 2), ("visual", 1, 2)])
def test_the_shared_keys_are_those_of_the_prompt_that_are_selected(keys: Any, skip: int, shared: int) -> None:
    """Of the prompt's four tokens the last two show the evidence, the second and third are visual; sinks are left out in front."""
    evidence = torch.tensor([False, False, True, True])
    one = group(evidence=evidence)
    assert one.shared_keys(keys, skip) == shared
    expected = evidence[VISUAL] if keys == "visual" else evidence[skip:]
    assert torch.equal(one.shared_evidence(keys, skip), expected)
    assert group().shared_evidence(keys, skip) is None
