"""What a run's rewards are given: whole turns, and records as the model was asked."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from ral.config import RALConfig
from ral.data.record import Record
from ral.errors import ConfigError
from ral.evaluate.answering import answer
from ral.evaluate.settings import EvalSettings
from ral.files import read_jsonl
from ral.rewards.calls import RewardError
from ral.rollouts.sampling import Completion
from ral.testbed import load_start
from ral.testbed.rings import ring_records
from ral.training.scoring import run_rewards
from ral.training.trainer import RALTrainer

MODEL, PROCESSOR = load_start()
RECORDS = ring_records(2, seed=0)
TURN, TEXT = PROCESSOR.tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])


def opening() -> Any:
    """The processor with a template that opens the thinking."""
    processor = copy.deepcopy(PROCESSOR)
    start = "<|im_start|>assistant\n{% endif"
    assert processor.chat_template.count(start) == 1
    processor.chat_template = processor.chat_template.replace(start, start.replace("{%", "<think>\n{%"))
    return processor


def trainer(folder: Path, processor: Any, model: Any = MODEL, **changes: Any) -> RALTrainer:
    args = RALConfig(
        output_dir=str(folder), use_cpu=True, template="plain", num_generations=2, per_device_train_batch_size=2,
        max_completion_length=8, save_strategy="no", disable_tqdm=True, **changes,
    )  # fmt: skip
    return RALTrainer(copy.deepcopy(model), args, train_dataset=RECORDS, processing_class=processor)


def scored(run: RALTrainer, record: Record, said: str) -> tuple[str, dict[str, float]]:
    """The turn that a completion makes, and what it earns."""
    ids = run.processing_class.tokenizer.encode(said, add_special_tokens=False)
    completions = [Completion(torch.tensor([*ids, TURN]), truncated=False)]
    asked, texts = run.scorer.read(record, run.prepare(record), completions)
    earned = run.scorer.reward(asked, texts, completions, 0)
    return texts[0], {name: float(values[0]) for name, values in earned.parts.items()}


@pytest.mark.parametrize(
    ("opened", "said", "format", "accuracy"),
    [
        (True, "the ring is there</think><answer>{}</answer>", 1, 1),
        (True, "<think>the ring is there</think><answer>{}</answer>", 0, 0),
        (True, "the ring <answer>{}</answer>", 0, 0),
        (False, "<think>the ring is there</think><answer>{}</answer>", 1, 1),
        (False, "the ring is there</think><answer>{}</answer>", 0, 1),
    ],
)
def test_the_format_is_that_of_the_whole_turn(
    opened: bool, said: str, format: int, accuracy: int, tmp_path: Path
) -> None:
    run = trainer(tmp_path, opening() if opened else PROCESSOR)
    text, earned = scored(run, RECORDS[0], said.format(RECORDS[0].solution))
    assert text == ("<think>\n" if opened else "") + said.format(RECORDS[0].solution)
    assert earned["format"] == format
    assert earned["accuracy"] == accuracy


def test_a_box_is_scored_in_pixels_of_the_shown_image(tmp_path: Path) -> None:
    run = trainer(tmp_path, PROCESSOR, max_pixels=64 * 32)
    record = Record("1", "where is it", "[40, 100, 120, 200]", "box", images=(Image.new("RGB", (160, 320)),))
    _, rows, columns = run.prepare(record).inputs["image_grid_thw"][0].tolist()
    assert (columns * 4, rows * 4) == (32, 64)
    assert scored(run, record, "<think>there</think><answer>[8, 20, 24, 40]</answer>")[1]["accuracy"] == 1
    assert scored(run, record, "<think>there</think><answer>[40, 100, 120, 200]</answer>")[1]["accuracy"] == 0


def test_a_run_ends_answers_where_evaluation_does_and_saves_it(tmp_path: Path) -> None:
    """The configuration knows only the end of a text, the template ends turns."""
    model = copy.deepcopy(MODEL)
    model.generation_config.eos_token_id = TEXT
    settings = EvalSettings(template="plain", max_completion_length=24)
    both = answer(MODEL, PROCESSOR, RECORDS, settings)
    assert not any(item.completion.truncated for item in both)
    assert [item.text for item in answer(model, PROCESSOR, RECORDS, settings)] == [item.text for item in both]
    run = trainer(tmp_path, PROCESSOR, model)
    assert run._sampling().eos_token_ids == (TEXT, TURN)
    run.save_model(str(tmp_path / "final"))
    saved = type(model).from_pretrained(tmp_path / "final").generation_config
    assert sorted(saved.eos_token_id) == sorted((TEXT, TURN))


def test_an_answer_is_read_behind_the_thinking_that_the_prompt_opens() -> None:
    settings = EvalSettings(template="plain", max_completion_length=4)
    for processor, start in ((opening(), "<think>\n"), (PROCESSOR, "")):
        [item] = answer(MODEL, processor, RECORDS[:1], settings)
        assert item.text == start + processor.tokenizer.decode(
            item.completion.ids[: 4 if item.completion.truncated else -1]
        )


def test_a_run_hands_rewards_its_state_and_keeps_what_they_log(tmp_path: Path) -> None:
    """Messages for a conversational prompt; the column goes to samples, the metric to metrics, over the groups of the step."""
    steps: list[int] = []

    async def look(prompts: Any, completions: Any, *, images: Any, trainer_state: Any, **columns: Any) -> list[float]:
        steps.append(trainer_state.global_step)
        [[turn], [picture]] = prompts[0], images[0]
        parts = {part["type"]: part[part["type"]] for part in turn["content"]}
        assert parts["image"] is picture
        assert picture.size == RECORDS[0].images[0].size
        said = [turns[0]["content"] for turns in completions]
        columns["log_extra"]("said", said)
        columns["log_metric"]("asked_for_red", float("red" in parts["text"]))
        return [float(len(text)) for text in said]

    asked = [replace(record, conversational=True) for record in RECORDS]
    args = RALConfig(
        output_dir=str(tmp_path), use_cpu=True, template="plain", num_generations=2, per_device_train_batch_size=4,
        max_completion_length=8, save_strategy="no", disable_tqdm=True, max_steps=4, temperature=1.5,
    )  # fmt: skip
    RALTrainer(copy.deepcopy(MODEL), args, train_dataset=asked, processing_class=PROCESSOR, reward_funcs=look).train()
    assert sorted(steps) == [0, 0, 2, 2]
    for row in read_jsonl(tmp_path / "samples.jsonl"):
        assert row["extra"] == {"said": row["completion"]}
        assert row["reward"] == len(row["completion"])
    expected = sum("red" in record.question for record in RECORDS) / len(RECORDS)
    assert {row["asked_for_red"] for row in read_jsonl(tmp_path / "metrics.jsonl")} == {expected}


def test_a_failure_names_the_record_and_the_line(tmp_path: Path) -> None:
    def fails(completions: Any, *, id: list[str], **columns: Any) -> list[float]:
        return [1 / 0 if id[0] == RECORDS[1].id else 0.0 for _ in completions]

    args = RALConfig(
        output_dir=str(tmp_path), use_cpu=True, template="plain", num_generations=2, per_device_train_batch_size=4,
        max_completion_length=4, save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    run = RALTrainer(copy.deepcopy(MODEL), args, train_dataset=RECORDS, processing_class=PROCESSOR, reward_funcs=fails)
    said = rf"record {RECORDS[1].id} .*reward 'fails' failed: ZeroDivisionError: .*test_scoring.py, line \d+\)\. `ral replay"
    with pytest.raises(RewardError, match=said):
        run.train()


def test_a_least_reward_that_nothing_can_earn_is_refused(tmp_path: Path) -> None:
    def rewards(least: float, functions: Any = None, weights: Any = None) -> None:
        args = RALConfig(str(tmp_path), use_cpu=True, attention_anchor="evidence", evidence_reward=least)
        run_rewards(functions, weights, args)

    with pytest.raises(
        ConfigError, match=r"evidence_reward=1\.5 is more than a completion can earn, which is 1 from accuracy, format"
    ):
        rewards(1.5)
    rewards(1.0)  # 0.9 + 0.1
    rewards(1.5, ["accuracy", "format"])
    with pytest.raises(ConfigError, match="which is 0 from format"):
        rewards(0.5, ["format"], [-1.0])
    rewards(1e9, ["accuracy", lambda completions, **columns: [1e10] * len(completions)])
