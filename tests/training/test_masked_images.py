"""Masked images: what is black, and the log-probabilities under them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ral.attention import prepare_prompt
from ral.config import RALConfig
from ral.data.prompt import encode_prompt
from ral.data.record import Record
from ral.objective.perception import PERCEPTION
from ral.objective.terms import Term
from ral.rollouts.group import ScoredGroup, TrainingGroup
from ral.rollouts.sampling import Completion
from ral.testbed import load_start
from ral.testbed.rings import ring_records
from ral.training.losses import policy_pass, token_term
from ral.training.masked_images import blackened, with_masked_media
from ral.training.targets import Sources, keep_old, of_masked_images, training_groups
from ral.training.trainer import RALTrainer

MODEL, PROCESSOR = load_start()
[RECORD] = ring_records(1, seed=0)


def settings(folder: Path, **changes: Any) -> RALConfig:
    values = {"template": "plain", "use_cpu": True, "attention_coef": 0.0, "beta": 0.0, "num_generations": 2}
    values |= {
        "per_device_train_batch_size": 2,
        "perception": "papo",
        "perception_patch": 8,
        "max_completion_length": 12,
    }
    return RALConfig(output_dir=str(folder), **(values | changes))


def group() -> ScoredGroup:
    prompt = prepare_prompt(MODEL, encode_prompt(PROCESSOR, RECORD, think=True, template="plain"))
    ids = PROCESSOR.tokenizer.encode("<think>row 1 col 1</think><answer>red</answer>")
    completions = [Completion(torch.tensor(ids), False), Completion(torch.tensor(ids[:4]), True)]
    zeros = torch.zeros(2)
    return ScoredGroup(
        record=RECORD, prompt=prompt, completions=completions, texts=["", ""], rewards={}, reward=zeros, advantages=zeros,
        attention_advantages=zeros, weights=torch.ones(2, len(ids)),
    )  # fmt: skip


def test_squares_are_black_in_all_frames_alike() -> None:
    frames = np.full((3, 30, 20, 3), 200, dtype=np.uint8)
    found = blackened(frames, 0.5, 8, np.random.default_rng(0))
    assert set(np.unique(found)) == {0, 200}
    assert (found == found[:1]).all()
    corners = found[0, ::8, ::8]
    assert (found[0] == corners.repeat(8, axis=0).repeat(8, axis=1)[:30, :20]).all()
    shares = [1 - blackened(frames[0], 0.6, 1, np.random.default_rng(seed)).mean() / 200 for seed in range(3)]
    assert shares == pytest.approx([0.6] * 3, abs=0.05)
    assert (blackened(frames, 1.0, 8, np.random.default_rng(0)) == 0).all()


def test_only_what_the_tower_sees_is_changed(tmp_path: Path) -> None:
    one, args = group(), settings(tmp_path, seed=4)
    masked = with_masked_media(MODEL, one, PROCESSOR, args, step=2)
    assert torch.equal(masked.prompt.input_ids, one.prompt.input_ids)
    before, after = (each.prompt.inputs["pixel_values"] for each in (one, masked))
    changed = (before != after).any(dim=1).float().mean()
    assert 0.3 < changed < 0.9  # a patch is half of a masked square's side
    again, later = (with_masked_media(MODEL, one, PROCESSOR, args, step=step) for step in (2, 3))
    assert torch.equal(again.prompt.inputs["pixel_values"], after)
    assert not torch.equal(later.prompt.inputs["pixel_values"], after)


def test_log_probabilities_are_those_of_a_black_image(tmp_path: Path) -> None:
    from PIL import Image

    from ral.attention import forward_groups

    args = settings(tmp_path, perception_mask=1.0, temperature=0.7)
    run = RALTrainer(MODEL, args, train_dataset=[RECORD], processing_class=PROCESSOR)
    one = group()
    [found] = of_masked_images(Sources(args, run.needs, MODEL, None, None, PROCESSOR), [one])  # type: ignore[arg-type]
    black = replace(RECORD, images=(Image.new("RGB", (64, 64)),))
    prompt = prepare_prompt(MODEL, encode_prompt(PROCESSOR, black, args.prompt))
    [expected] = forward_groups(MODEL, [prompt], [one.ids], layers=(), temperature=0.7)
    assert found.masked_logps is not None
    torch.testing.assert_close(found.masked_logps, expected.logps)


@pytest.mark.parametrize("name", sorted(PERCEPTION.keys() - {"none"}))
def test_a_rival_trains_and_says_how_much(tmp_path: Path, name: str) -> None:
    import copy

    from ral.files import read_jsonl

    changes: dict[str, Any] = {"papo": {}, "vppo": {"perception_patch": 8}, "at_rl": {"perception_patch": 14}}[name]
    args = settings(tmp_path, perception=name, max_steps=2, save_strategy="no", disable_tqdm=True, **changes)
    model = copy.deepcopy(MODEL)
    RALTrainer(model, args, train_dataset=ring_records(2, seed=0), processing_class=PROCESSOR).train()
    rows = list(read_jsonl(tmp_path / "metrics.jsonl"))
    if name == "papo":
        assert all(row["perception/kl"] > 0 for row in rows)
    else:
        share = rows[0]["perception/trained_tokens"]
        assert share == pytest.approx(1.0) if name == "at_rl" else 0.4 <= share < 0.7
    moved = [not torch.equal(a, b) for a, b in zip(model.parameters(), MODEL.parameters(), strict=True)]
    assert any(moved)


def text_group() -> ScoredGroup:
    record = Record("words", "what colour is inside the red ring?", "blue")
    prompt = prepare_prompt(MODEL, encode_prompt(PROCESSOR, record, think=True, template="plain"))
    return replace(group(), record=record, prompt=prompt)


def trained(name: str, folder: Path, scored: list[ScoredGroup]) -> list[tuple[TrainingGroup, Term, Tensor]]:
    """The groups of a micro-batch in an update after the first: their token terms, with the gradients in log-probabilities."""
    args = settings(folder, perception=name, perception_patch=8 if PERCEPTION[name].masked else 14)
    run = RALTrainer(MODEL, args, train_dataset=[RECORD], processing_class=PROCESSOR)
    signal = torch.tensor([1.0, -1.0])
    groups = training_groups(
        Sources(args, run.needs, MODEL, None, None, PROCESSOR),  # type: ignore[arg-type]
        [replace(one, advantages=signal, attention_advantages=signal, weights=one.mask.float()) for one in scored],
    )
    outputs = policy_pass(MODEL, groups, args, capture=name == "at_rl", teacher=None)
    found = []
    for seed, (one, output) in enumerate(zip(groups, outputs, strict=True)):
        keep_old(one, output, args, 1)
        moved = 0.1 * torch.randn(output.logps.shape, generator=torch.Generator().manual_seed(seed)) * output.mask
        now = replace(output, logps=(output.logps.detach() + moved).requires_grad_())
        term = token_term(one, now, args)
        found.append((one, term, torch.autograd.grad(term.loss, now.logps)[0]))
    return found


@pytest.mark.parametrize("name", sorted(PERCEPTION.keys() - {"none"}))
def test_text_beside_images_in_a_micro_batch_stays_as_it_is(tmp_path: Path, name: str) -> None:
    """In later updates, too: its loss and gradient are GRPO's alone. The image's are what they are without the text."""
    picture, words = group(), text_group()
    for order in ([picture, words], [words, picture], [words]):
        found = trained(name, tmp_path, order)
        at = next(i for i, one in enumerate(order) if one is words)
        one, term, gradient = found[at]
        assert one.targets.masked_logps is None
        assert one.old is not None
        if PERCEPTION[name].factors is not None:
            assert one.old.factors is not None
            assert torch.equal(one.old.factors, one.scored.mask.float())
        assert "perception/kl" not in term.metrics
        _, plain, expected = trained("none", tmp_path, order)[at]
        torch.testing.assert_close((term.loss, gradient), (plain.loss, expected))
        assert expected.any()
    [alone], beside = trained(name, tmp_path, [picture]), trained(name, tmp_path, [picture, words])[0]
    torch.testing.assert_close(beside[1:], alone[1:], rtol=1e-4, atol=1e-5)
    plain = trained("none", tmp_path, [picture])[0]
    assert not torch.allclose(beside[2], plain[2], atol=1e-3)
