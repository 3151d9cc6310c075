"""The engine of a run samples in training and in the evaluation while training; what another engine sampled is weighed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ral.config import ConfigError
from ral.rollouts import engine
from ral.rollouts.engine import ENGINES, PolicyEngine
from ral.rollouts.sampling import Completion, Sampling
from ral.training.trainer import RALTrainer
from tests.training.test_trainer import RECORDS, G, spread, trainer

#: By how much the likelihood that another engine reports is too high, in nats.
OFF = 0.25


class Recording:
    """Samples as the policy does, and says that it drew each token at another log-probability."""

    def __init__(self, model: Any):
        self.inner, self.model, self.calls = PolicyEngine(model), model, []

    def sync_weights(self, model: Any, accelerator: Any) -> None:
        self.calls.append("sync")
        self.inner.sync_weights(model, accelerator)

    def sample(
        self,
        records: Sequence[Any],
        prompts: Sequence[Any],
        num_generations: int,
        sampling: Sampling,
        generators: Sequence[torch.Generator] | None = None,
        look_bias: Sequence[Tensor] | None = None,
    ) -> list[list[Completion]]:
        self.calls.append((num_generations, sampling.temperature, generators is None))
        groups = self.inner.sample(records, prompts, num_generations, sampling, generators, look_bias)
        return [[Completion(c.ids, c.truncated, torch.full((len(c.ids),), -OFF)) for c in group] for group in groups]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RALTrainer:
    monkeypatch.setitem(ENGINES, "recording", lambda model, settings: Recording(model))
    return trainer(tmp_path, rollout_engine="recording", reward_funcs=spread, eval_dataset=RECORDS[:3], max_steps=2)


def test_training_and_evaluation_ask_the_same_engine(run: RALTrainer) -> None:
    run.train()
    temperature = run.args.temperature
    assert run.engine.calls == ["sync", (G, temperature, False)], "two inner updates of one rollout batch"
    run.engine.calls.clear()
    metrics = run.evaluate()
    assert run.engine.calls == ["sync", (1, 0, True)], "the most likely completion; no random number is drawn"
    assert metrics["eval_reward"] == 1.0


def test_tokens_of_another_engine_count_by_their_importance(run: RALTrainer) -> None:
    [groups] = run.make_rollouts([list(RECORDS[:2])])
    before = [group.weights.clone() for group in groups]
    loss, outputs = run.compute_loss(run.model, groups, return_outputs=True)
    for group, output, weights in zip(groups, outputs, before, strict=True):
        ratio = (output.logps.detach() + OFF).exp().clamp(max=run.args.importance_cap) * output.mask
        torch.testing.assert_close(group.weights, weights * ratio)
        assert torch.equal(group.scored.weights, weights), "the record itself never changes"
    # At the first update the ratio is 1 and the KL 0, so the loss is −Σ w · A.
    expected = sum(-(group.weights * group.scored.advantages[:, None]).sum() for group in groups)
    torch.testing.assert_close(loss.detach(), expected, atol=1e-6, rtol=1e-4)
    unweighed = sum(-(w * g.scored.advantages[:, None]).sum() for w, g in zip(before, groups, strict=True))
    assert (unweighed - expected).abs() > 1e-3


def test_an_unknown_engine_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"rollout_engine='other' is not known; choose one of transformers, vllm"):
        trainer(tmp_path, rollout_engine="other")


def test_the_prompts_of_all_micro_batches_are_sampled_at_once_whatever_the_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four micro-batches of one prompt; as many rows as there is room for, or those of one or of two prompts."""
    asked: list[tuple[int, int]] = []
    inner = engine.sample

    def sampling(model: Any, prompts: Sequence[Any], *others: Any, rows: int) -> Any:
        asked.append((len(prompts), rows))
        return inner(model, prompts, *others, rows=rows)

    monkeypatch.setattr(engine, "sample", sampling)
    found = {}
    for rows in (None, G, 2 * G + 1):
        run = trainer(
            tmp_path / str(rows), reward_funcs=spread, per_device_train_batch_size=G, gradient_accumulation_steps=4,
            rollout_rows=rows,
        )  # fmt: skip
        batches = run.make_rollouts([[record] for record in RECORDS[:4]])
        assert [len(batch) for batch in batches] == [1, 1, 1, 1]
        assert [batch[0].scored.record for batch in batches] == list(RECORDS[:4])
        found[rows] = [[one.ids.tolist() for one in batch[0].completions] for batch in batches]
    assert [prompts for prompts, _ in asked] == [4, 4, 4]
    assert [rows for _, rows in asked][1:] == [G, 2 * G + 1]
    assert asked[0][1] > 100
    assert found[None] == found[G] == found[2 * G + 1]


def test_rows_of_less_than_a_prompt_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"rollout_rows={G - 1}: .* at least num_generations={G}"):
        trainer(tmp_path, rollout_rows=G - 1)
