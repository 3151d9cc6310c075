"""The look at the first prompt finds what a family does not say, in either precision, and says what happens then."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from experiments.families.zoo import tiny
from torch import Tensor
from transformers import GenerationConfig

from ral.attention import prepare_prompt
from ral.attention.models import make_capturable, why_repeated
from ral.attention.selfcheck import SAME, SAME_IN_16_BITS, Distances, measure, repeated_cost, settle
from ral.attention.sight import EVERYTHING
from ral.config import RALConfig
from ral.data.record import Record
from ral.errors import ConfigError
from ral.files import read_jsonl
from ral.testbed.model import build_tokenizer
from ral.training.trainer import RALTrainer

#: What is left out of the code, on which architecture, and which distance grows.
FAULTS = {
    "windows": ("gemma3_text", "ral.attention.packed.sight_of", lambda module: EVERYTHING, "logps"),
    "image tokens that see each other": ("gemma3", "ral.families.gemma.Gemma3.together", lambda *_: None, "rows"),
    "a factor behind the head": ("granite", "ral.families.family.Family.final", lambda *_: None, "plain"),
    "a cap behind the head": ("gemma2", "ral.families.family.Family.final", lambda *_: None, "plain"),
    "sinks": ("gpt_oss", "ral.families.text.Sinks.unshareable", lambda *_: None, "logps"),
}


def measured(kind: str, dtype: torch.dtype) -> Distances:
    model, inputs = tiny(kind)
    model = make_capturable(model.to(dtype))
    cast = {k: v.to(dtype) if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in inputs.items()}
    return Distances.of(measure(model, prepare_prompt(model, cast), (3,)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_left_out_is_found(fault: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, where, nothing, grows = FAULTS[fault]
    same = SAME if dtype == torch.float32 else SAME_IN_16_BITS
    right = measured(kind, dtype)
    assert max(right.logps, right.rows, right.plain) < same / 2
    monkeypatch.setattr(where, nothing)
    assert getattr(measured(kind, dtype), grows) > same


def test_a_packed_row_that_differs_is_given_up_for_policy_and_reference(caplog: pytest.LogCaptureFixture) -> None:
    policy, reference = tiny("llama")[0], tiny("llama")[0]
    with caplog.at_level(logging.INFO, "ral.attention.selfcheck"):
        settle(Distances(4e-4, 9e-4, 1e-7), [policy, reference], torch.float32)
    assert why_repeated(policy) is None
    assert caplog.messages == [
        "LlamaForCausalLM on the first prompt, a token: log-probabilities are 0.0004 and attention rows 0.0009 from those of the "
        "prompt repeated, which are 1e-07 from the model's own"
    ]
    settle(Distances(0.0, 0.04, 0.03), [policy, reference], torch.bfloat16)
    assert why_repeated(policy) is None
    settle(Distances(0.0, 2e-3, 1e-7), [policy, reference], torch.float32)
    assert why_repeated(policy) == why_repeated(reference) == "its packed row differs"
    assert "attention rows 0.002 a token from those of the prompt repeated, more than 0.001" in caplog.text
    assert why_repeated(tiny("llama")[0]) is None, "another model is another one"


@pytest.mark.parametrize("plain", [2e-3, float("nan")])
def test_a_model_whose_own_logits_are_others_is_not_trained(plain: float) -> None:
    with pytest.raises(ConfigError, match=r"LlamaForCausalLM: .*nats a token from the model's own, more than 0.001"):
        settle(Distances(0.0, 0.0, plain), [tiny("llama")[0]], torch.float32)


def test_what_repeating_costs() -> None:
    assert repeated_cost(1000, 8, 32) == pytest.approx(8 * 1032 / 1256)


@pytest.mark.parametrize(("kind", "way"), [("qwen3_5_text", None), ("gemma2", "its attention caps its scores")])
def test_the_trainer_says_it_and_its_first_update_is_on_policy(
    kind: str, way: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Two updates of a hybrid, and of an architecture that cannot share prompts: ratio 1 and KL 0 at the first."""
    tokenizer: Any = build_tokenizer()
    model, _ = tiny(kind, vocab_size=len(tokenizer))
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    rows = [Record(str(i), f"what is {i}?", "red", origin=str(i)) for i in range(4)]
    args = RALConfig(
        output_dir=str(tmp_path), use_cpu=True, template="plain", num_generations=4, per_device_train_batch_size=8,
        max_steps=2, max_completion_length=6, learning_rate=1e-3, save_strategy="no", disable_tqdm=True, logging_steps=1,
        report_to="none", beta=0.04,
    )  # fmt: skip

    def spread(prompts: Any, completions: list[str], **columns: Any) -> list[float]:
        return [1 - (i % 4) / 4 for i in range(len(completions))]

    trainer = RALTrainer(model, args, train_dataset=rows, processing_class=tokenizer, reward_funcs=[spread])
    with caplog.at_level(logging.INFO):
        trainer.train()
    first = next(iter(read_jsonl(tmp_path / "metrics.jsonl")))
    assert first["kl"] == pytest.approx(0, abs=1e-6)
    assert first["ratio"] == pytest.approx(1, abs=1e-6)
    assert first["grad_norm"] > 0
    assert sum("on the first prompt" in message for message in caplog.messages) == 1
    assert any("behind a copy of its prompt, as" in message for message in caplog.messages) == (way is not None)
    assert why_repeated(model) == way
