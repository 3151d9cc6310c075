"""Text from end to end: a text model with its tokenizer, trained, resumed and evaluated on the needle search."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from ral import RALConfig, RALTrainer
from ral.cli import app
from ral.files import read_jsonl
from ral.testbed.model import build_text_model, build_tokenizer
from ral.testbed.needles import needle_records

RECIPE = """\
model: {model}
data: needles
template: plain
num_generations: 4
num_iterations: 2
per_device_train_batch_size: 8
max_completion_length: 4
attention_coef: 10
attention_anchor: explore
max_steps: 4
save_steps: 2
beta: 0
learning_rate: 1e-3
use_cpu: true
disable_tqdm: true
"""


def reward(completions: list[str], **columns: object) -> list[float]:
    """Differs inside a group whatever a model without training writes."""
    return [float(len(text)) for text in completions]


def test_the_look_bias_lies_on_all_of_a_text_prompt_and_training_moves_the_model(tmp_path: Path) -> None:
    tokenizer = build_tokenizer()
    model = build_text_model(tokenizer)
    before = model.model.layers[-1].self_attn.q_proj.weight.clone()
    args = RALConfig(
        output_dir=str(tmp_path), template="plain", num_generations=4, per_device_train_batch_size=8, num_iterations=2,
        max_completion_length=4, attention_coef=10, attention_anchor="explore", beta=0, max_steps=2, use_cpu=True,
        learning_rate=1e-3, disable_tqdm=True, save_strategy="no",
    )  # fmt: skip
    trainer = RALTrainer(model, args, needle_records(2, 0), reward_funcs=reward, processing_class=tokenizer)
    trainer.train()
    for group in (group for batch in trainer.groups for group in batch):
        assert group.scored.look_bias is not None
        assert group.scored.look_bias.shape == (4, len(group.prompt.input_ids))
        assert bool((group.scored.look_bias != 0).all())
    assert not torch.equal(before, model.model.layers[-1].self_attn.q_proj.weight)


def test_a_text_model_trains_resumes_and_is_evaluated_from_the_command_line(tmp_path: Path) -> None:
    start, recipe, run = tmp_path / "start", tmp_path / "text.yaml", tmp_path / "run"
    tokenizer = build_tokenizer()
    build_text_model(tokenizer).save_pretrained(start)
    tokenizer.save_pretrained(start)
    recipe.write_text(RECIPE.format(model=start))

    def ral(*words: str) -> None:
        found = CliRunner().invoke(app, [str(word) for word in words])
        assert found.exit_code == 0, found.output

    whole = tmp_path / "whole"
    ral("train", str(recipe), "--output_dir", str(whole))
    ral("train", str(recipe), "--output_dir", str(run))
    (run / "checkpoint-4").rename(tmp_path / "later")  # as if the run had been cut off behind checkpoint 2
    ral("train", str(recipe), "--output_dir", str(run), "--resume")
    ours, theirs = (AutoModelForCausalLM.from_pretrained(folder / "final").state_dict() for folder in (run, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert [row["step"] for row in read_jsonl(run / "metrics.jsonl")][-1] == 4

    ral("eval", str(run), "--tasks", "needles", "--n", "4", "--no-think", "--max-completion-length", "2")
    summary = json.loads((run / "eval/needles/summary.json").read_text())
    assert summary["n"] == 4
    assert 0 < summary["grounding"]["mass"] < 1
