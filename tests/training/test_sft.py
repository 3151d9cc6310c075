"""Supervised fine-tuning on the embedded model: what is taught, what a run does, and the two stages of the paper."""

from __future__ import annotations

import copy
import json
import logging
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
import yaml
from datasets import Dataset
from transformers import TrainerCallback
from typer.testing import CliRunner

from ral.attention import prepare_prompt
from ral.cli import app
from ral.config import ConfigError
from ral.data.prompt import encode_prompt
from ral.data.record import Record
from ral.data.record_errors import WatchedRecords, WorkerError
from ral.errors import DataError
from ral.files import read_jsonl
from ral.models.loading import load_model
from ral.recipe import load_recipe
from ral.testbed import load_start
from ral.testbed.rings import ring_records
from ral.training.launch import train
from ral.training.nonfinite import NonFiniteError
from ral.training.sft import (
    IGNORED,
    Examples,
    SFTSettings,
    SFTTask,
    WorkedExamplesTrainer,
    build_trainer,
    fine_tune,
    worked_examples,
)

MODEL, PROCESSOR = load_start()
RINGS = ring_records(4, seed=0)
TEXT = Record("text", "what is red and blue?", "purple", trace="mix them", origin="text")


def settings(**changes: Any) -> SFTSettings:
    return SFTSettings(**{"output_dir": "unused", "use_cpu": True, "template": "plain"} | changes)


def batch(records: Sequence[Record], **changes: Any) -> dict[str, torch.Tensor]:
    return Examples(PROCESSOR, WatchedRecords(records), settings(**changes))(
        [{"number": i} for i in range(len(records))]
    )


def write(folder: Path, name: str, **changes: Any) -> Path:
    recipe = {
        "model": "start",
        "data": "rings",
        "template": "plain",
        "use_cpu": True,
        "disable_tqdm": True,
        "lr_scheduler_type": "constant",
        "learning_rate": 1e-3,
        "per_device_train_batch_size": 4,
        "max_steps": 3,
        "output_dir": str(folder / name),
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(recipe | changes), encoding="utf-8")
    return path


def saved(folder: Path, records: Sequence[Record]) -> str:
    """A data file of ring records."""
    rows = []
    for i, record in enumerate(records):
        image = folder / f"{i}.png"
        record.images[0].save(image)
        rows.append(
            {"problem": record.problem, "solution": record.solution, "trace": record.trace, "image": str(image)}
        )
    data = folder / "data.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return str(data)


def task(folder: Path, name: str = "run", **changes: Any) -> SFTTask:
    return load_recipe(write(folder, name, **changes), (), SFTTask)


def video(path: Path, frames: int = 4) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=2)
        stream.width = stream.height = 64
        for shade in range(frames):
            picture = np.full((64, 64, 3), 40 * shade % 256, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


# --- what is taught -----------------------------------------------------------------------------------------------


def media_records(folder: Path) -> list[Record]:
    clip = video(folder / "clip.mp4")
    image = RINGS[0].images[0]
    return [
        RINGS[0],
        TEXT,
        Record("v", "what is it? <video>", "red", videos=(clip,), trace="a longer look at every frame", origin="v"),
        Record("two", "<image> or <image>?", "red", images=(image, image), trace="row 1", origin="two"),
        Record("all", "<image> and <video>?", "red", images=(image,), videos=(clip, clip), trace="both", origin="all"),
    ]


def test_labels_count_the_completion_behind_the_prompt_of_reinforcement(tmp_path: Path) -> None:
    records = media_records(tmp_path)
    encoded = batch(records, num_frames=4, max_pixels=1024)
    for record, ids, labels, real in zip(
        records, encoded["input_ids"], encoded["labels"], encoded["attention_mask"].bool(), strict=True
    ):
        prompt = encode_prompt(PROCESSOR, record, think=True, template="plain", num_frames=4, max_pixels=1024)
        length = prompt["input_ids"].shape[1]
        assert torch.equal(ids[:length], prompt["input_ids"][0])
        taught = labels != IGNORED
        assert torch.equal(taught, real & (torch.arange(len(ids)) >= length))
        assert torch.equal(labels[taught], ids[taught])
        text = f"<think>{record.trace}</think><answer>{record.solution}</answer><|im_end|>"
        assert PROCESSOR.tokenizer.decode(labels[taught]) == text
    assert encoded["image_grid_thw"].shape == (4, 3)
    assert encoded["video_grid_thw"].shape == (3, 3)


def test_a_batch_of_every_medium_has_the_loss_of_its_examples(tmp_path: Path) -> None:
    records = media_records(tmp_path)
    sizes = {"num_frames": 4, "max_pixels": 1024}
    together = batch(records, **sizes)
    with torch.no_grad():
        loss = MODEL(**together).loss
        alone = [(part := batch([record], **sizes), MODEL(**part).loss) for record in records]
    counts = [int((part["labels"] != IGNORED).sum()) for part, _ in alone]
    expected = sum(count * one for count, (_, one) in zip(counts, alone, strict=True)) / sum(counts)
    torch.testing.assert_close(loss, expected, atol=1e-4, rtol=0)


def test_examples_stand_where_the_prompts_of_reinforcement_do(tmp_path: Path) -> None:
    """Behind a video that outruns its sides, too: positions of a batch are those of each of its prompts, and count on."""
    records = [
        *media_records(tmp_path),
        Record("long", "<video>?", "red", videos=(video(tmp_path / "b.mp4", 24),), trace="x"),
    ]
    sizes = {"num_frames": 24, "max_pixels": 1024}
    encoded = batch(records, **sizes)
    trainer = build_trainer(task(tmp_path, data="rings", freeze_vision=True), records, None)
    seen = []
    hook = trainer.model.register_forward_pre_hook(lambda *call: seen.append(call[2]["position_ids"]), with_kwargs=True)
    with torch.no_grad():
        trainer.compute_loss(trainer.model, dict(encoded))
    hook.remove()
    (positions,) = seen
    outran = 0
    for row, record in enumerate(records):
        prompt = prepare_prompt(MODEL, encode_prompt(PROCESSOR, record, think=True, template="plain", **sizes))
        length, real = len(prompt.input_ids), int(encoded["attention_mask"][row].sum())
        assert torch.equal(positions[:, row, :length], prompt.position_ids)
        assert positions[:, row, length:real].tolist() == [[prompt.next_position + i for i in range(real - length)]] * 3
        outran += prompt.grids != () and int(prompt.position_ids[0][prompt.visual].diff().max()) > 4
    assert outran


def test_bare_answers_are_taught_without_thinking() -> None:
    records = [replace(RINGS[0], trace=None)]
    labels = batch(records, think=False)["labels"]
    assert PROCESSOR.tokenizer.decode(labels[labels != IGNORED]) == f"{records[0].solution}<|im_end|>"
    assert worked_examples(records, think=False) == records


def test_a_long_completion_is_cut_and_a_prompt_never() -> None:
    whole = batch(RINGS[:1])
    prompt = int((whole["labels"] == IGNORED).sum())
    cut = batch(RINGS[:1], max_length=prompt + 3)
    assert torch.equal(cut["input_ids"], whole["input_ids"][:, : prompt + 3])
    with pytest.raises(DataError, match=rf"the prompt alone has {prompt} tokens, max_length is {prompt}"):
        batch(RINGS[:1], max_length=prompt)


def test_records_without_a_trace_are_counted_and_left_out(caplog: pytest.LogCaptureFixture) -> None:
    bare = [replace(record, trace=None) for record in RINGS]
    with caplog.at_level(logging.WARNING):
        assert worked_examples([*bare, TEXT], think=True) == [TEXT]
    assert "4 of 5 records have no trace" in caplog.text
    with pytest.raises(DataError, match="none of 4 records has a trace"):
        worked_examples(bare, think=True)


def test_a_trace_with_a_control_token_is_refused() -> None:
    with pytest.raises(DataError, match=r"text: the text contains '<\|image_pad\|>'"):
        batch([replace(TEXT, trace="look at <|image_pad|>")])


@pytest.mark.parametrize("name", ["packing", "shuffle_dataset", "assistant_only_loss"])
def test_settings_of_the_other_preparation_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} belongs to TRL's own preparation"):
        settings(**{name: True})


def test_settings_of_reinforcement_are_unknown(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="unknown key 'reward_funcs'"):
        task(tmp_path, reward_funcs=["accuracy"])


def test_the_command_line_runs_both_stages_and_exports(tmp_path: Path) -> None:
    def ral(*words: object) -> str:
        found = CliRunner().invoke(app, [str(word) for word in words])
        assert found.exit_code == 0, found.output
        return found.stdout

    data = saved(tmp_path, RINGS)
    lora = {"peft": {"r": 4, "target_modules": "all-linear"}, "data": data}
    first = write(tmp_path, "first", **lora)
    assert str(tmp_path / "first/report.html") in ral("sft", first, "--max_steps", 1)
    written = load_recipe(tmp_path / "first/config.yaml", (), SFTTask)
    assert written.settings() == {**written.settings(), "max_steps": 1, "template": "plain", **lora}
    second = write(
        tmp_path, "second", model=str(tmp_path / "first"), num_generations=2, max_completion_length=4, **lora
    )
    ral("train", second, "--max_steps", 2, "--beta", 0)
    ral("export", tmp_path / "second", "--output", tmp_path / "whole")
    assert (tmp_path / "whole/model.safetensors").exists()
    assert (tmp_path / "whole/tokenizer.json").exists()


# --- runs ---------------------------------------------------------------------------------------------------------


def test_the_loss_of_a_memorised_batch_falls_and_the_vision_tower_stays(tmp_path: Path) -> None:
    data = saved(tmp_path, [replace(record, trace="look at the ring") for record in RINGS])
    run = fine_tune(task(tmp_path, data=data, num_train_epochs=3))
    losses = [row["loss"] for row in read_jsonl(run / "metrics.jsonl")]
    assert len(losses) == 3
    assert losses[2] < 0.8 * losses[0]
    before, after = MODEL.state_dict(), load_model(run).state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert not any(".visual." in name for name in changed)
    assert (run / "final/tokenizer.json").exists()
    assert {"config.yaml", "environment.json"} <= {path.name for path in run.iterdir()}


@pytest.mark.parametrize("peft", [None, {"r": 4, "target_modules": "all-linear"}], ids=["full", "lora"])
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path, peft: dict[str, Any] | None) -> None:
    data = saved(tmp_path, ring_records(12, seed=1))
    whole = fine_tune(task(tmp_path, "whole", data=data, peft=peft, max_steps=4))
    fine_tune(task(tmp_path, "cut", data=data, peft=peft, max_steps=2, save_steps=2))
    cut = fine_tune(task(tmp_path, "cut", data=data, peft=peft, max_steps=4), resume=True)
    expected, resumed = load_model(whole).state_dict(), load_model(cut).state_dict()
    for name, value in expected.items():
        assert torch.equal(resumed[name], value), name
    assert [row["step"] for row in read_jsonl(cut / "metrics.jsonl")] == [1, 2, 3, 4]
    with pytest.raises(ValueError, match="already holds a run"):
        fine_tune(task(tmp_path, "cut", peft=peft))


@pytest.mark.parametrize("peft", [None, {"r": 4, "target_modules": "all-linear"}], ids=["full", "lora"])
def test_reinforcement_starts_from_what_was_taught(tmp_path: Path, peft: dict[str, Any] | None) -> None:
    """The reference of the second stage is the end of the first, adapters included."""
    data = saved(tmp_path, RINGS)
    first = fine_tune(task(tmp_path, "first", data=data, peft=peft))
    recipe = write(
        tmp_path,
        "second",
        model=str(first),
        data=data,
        peft=peft,
        max_steps=2,
        num_generations=4,
        max_completion_length=12,
        learning_rate=1e-6,
        beta=0.04,
    )
    second = train(load_recipe(recipe))
    assert abs(next(iter(read_jsonl(second / "metrics.jsonl")))["kl"]) < 1e-6
    taught, reinforced = load_model(first), load_model(second)
    inputs = {name: value for name, value in batch(RINGS[:1]).items() if name != "labels"}
    with torch.no_grad():
        shift = (reinforced(**inputs).logits - taught(**inputs).logits).abs().max()
        learned = (taught(**inputs).logits - copy.deepcopy(MODEL)(**inputs).logits).abs().max()
    assert shift < 0.1 * learned


class Break(TrainerCallback):
    """Before step 2 one weight becomes `value`."""

    def __init__(self, name: str, value: float):
        self.name, self.value = name, value

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step == 1:
            with torch.no_grad():
                dict(model.named_parameters())[self.name][0, 0] = self.value


@pytest.mark.parametrize("accumulated", [1, 2])
def test_a_loss_that_is_not_a_number_stops_before_the_update_and_is_replayed(tmp_path: Path, accumulated: int) -> None:
    name = "model.language_model.layers.1.mlp.up_proj.weight"
    broken = task(
        tmp_path, gradient_accumulation_steps=accumulated, per_device_train_batch_size=4 // accumulated, data="unused"
    )
    trainer = build_trainer(broken, [replace(record, trace="look") for record in RINGS], None)
    trainer.add_callback(Break(name, float("nan")))
    with pytest.raises(NonFiniteError, match=r"step 2: the loss is nan.*ral replay .*nonfinite-2"):
        trainer.train()
    dump = tmp_path / "run/nonfinite-2"
    saved = dict(load_model(dump / "model").named_parameters())
    for key, parameter in trainer.model.named_parameters():
        assert torch.equal(parameter.nan_to_num(7), saved[key].nan_to_num(7)), key
    found = CliRunner().invoke(app, ["replay", str(dump)])
    assert found.exit_code == 0, found.output
    told = found.stdout.splitlines()
    assert told[0].startswith(f"weights: {name} holds 1 NaN")
    assert told[1] == "stopped at step 2 of 3: the loss is nan"
    assert sum("layers.1.mlp.up_proj is the first that is not finite" in line for line in told) == accumulated


def test_a_gradient_that_overflows_stops_before_the_update(tmp_path: Path) -> None:
    """A loss of 10³⁸ tokens' worth is finite; the squares in the gradient's norm are not."""

    class Steep(WorkedExamplesTrainer):
        def compute_loss(self, *arguments: Any, **named: Any) -> Any:
            return 1e37 * super().compute_loss(*arguments, **named)

    args = task(tmp_path, data="unused").args
    model = copy.deepcopy(MODEL)
    rows = Dataset.from_dict({"number": range(4)})
    collator = Examples(PROCESSOR, WatchedRecords(RINGS), args)
    trainer = Steep(model, args, data_collator=collator, train_dataset=rows, processing_class=PROCESSOR)
    with pytest.raises(NonFiniteError, match=r"step 1: the gradient's norm is inf"):
        trainer.train()
    assert all(torch.equal(value, MODEL.state_dict()[name]) for name, value in model.state_dict().items())
    told = CliRunner().invoke(app, ["replay", str(tmp_path / "run/nonfinite-1")]).stdout
    assert "micro-batch 0: loss " in told


@dataclass(frozen=True)
class Fatal(Examples):
    """Calls `end` where a worker comes to the record "3"."""

    end: Callable[[], None]

    def encode(self, record: Record) -> dict[str, torch.Tensor]:
        if record.id == "3" and torch.utils.data.get_worker_info():
            self.end()
        return super().encode(record)


def with_workers(folder: Path, end: Callable[[], None]) -> WorkedExamplesTrainer:
    """A trainer with two real workers, one of which ends like this on one record."""
    records = [
        replace(record, id=str(i), trace="look", origin=f"data.jsonl: line {i + 1}")
        for i, record in enumerate(ring_records(8, seed=0))
    ]
    workers = {"dataloader_num_workers": 2, "per_device_train_batch_size": 2, "max_steps": 4}
    trainer = build_trainer(task(folder, data="unused", **workers), records, None)
    trainer.data_collator = Fatal(PROCESSOR, trainer.data_collator.records, trainer.args, end)
    return trainer


@pytest.mark.parametrize(
    ("killer", "advice"), [("SIGKILL", "memory r[ua]ns? out"), ("SIGSEGV", "decoder may have crashed")]
)
def test_a_worker_that_is_killed_is_reported_with_its_record(tmp_path: Path, killer: str, advice: str) -> None:
    trainer = with_workers(tmp_path, partial(signal.raise_signal, signal.Signals[killer]))
    ended = f"(was killed by {killer}|ended unexpectedly)"  # the second if torch has waited for it first
    said = rf"process \d+\) {ended} while it read record 3 \(data\.jsonl: line 4\)\. .*{advice}"
    with pytest.raises(WorkerError, match=said):
        trainer.train()


def too_large() -> None:
    raise MemoryError("too large")


def test_an_exception_in_a_worker_names_its_record(tmp_path: Path) -> None:
    with pytest.raises(MemoryError, match=r"(?s)too large.*while using record 3 \(data\.jsonl: line 4\)"):
        with_workers(tmp_path, too_large).train()


def test_a_quantised_model_is_taught_an_adapter(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    four_bits = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    peft = {"r": 8, "target_modules": "all-linear"}
    data = saved(tmp_path, [replace(record, trace="look at the ring") for record in RINGS])
    run = fine_tune(task(tmp_path, data=data, peft=peft, quantization=four_bits, learning_rate=1e-2, max_steps=6))
    losses = [row["loss"] for row in read_jsonl(run / "metrics.jsonl")]
    assert losses[5] < 0.8 * losses[0]
    with torch.no_grad():
        examples = batch([replace(record, trace="look at the ring") for record in RINGS])
        assert load_model(run)(**examples).loss < MODEL(**examples).loss


def test_held_out_examples_give_a_loss(tmp_path: Path) -> None:
    run = fine_tune(task(tmp_path, data=(data := saved(tmp_path, RINGS)), eval_data=data, eval_strategy="epoch"))
    evaluated = [row["eval_loss"] for row in read_jsonl(run / "metrics.jsonl") if "eval_loss" in row]
    assert len(evaluated) == 3
    assert evaluated[2] < evaluated[0]


def test_an_adapter_of_the_frozen_vision_tower_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="freeze_vision"):
        build_trainer(
            task(
                tmp_path,
                data="unused",
                peft={"r": 4, "target_modules": "all-linear", "exclude_modules": ["lm_head"]},
            ),
            RINGS,
            None,
        )


def update_of(folder: Path, batch_size: int, accumulated: int, **changes: Any) -> torch.Tensor:
    """What one step on four examples of different lengths changes, without momentum."""
    texts = ["a", "a b", "a b c d e f g h", "a b c d e f g h i j k l m n"]
    records = [replace(RINGS[i], trace=text) for i, text in enumerate(texts)]
    changes = {
        "optim": "sgd",
        "learning_rate": 1e-2,
        "max_grad_norm": 0.0,
        "save_strategy": "no",
        "max_steps": 1,
    } | changes
    recipe = write(
        folder, "r", per_device_train_batch_size=batch_size, gradient_accumulation_steps=accumulated, **changes
    )
    run = build_trainer(load_recipe(recipe, (), SFTTask), records, None)
    weights = [p for p in run.model.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in weights]
    run.train()
    return torch.cat([(p.detach() - b).flatten() for p, b in zip(weights, before, strict=True)])


@pytest.mark.parametrize("peft", [None, {"r": 4, "target_modules": "all-linear", "init_lora_weights": "gaussian"}])
def test_accumulated_micro_batches_are_a_larger_batch(tmp_path: Path, peft: dict[str, Any] | None) -> None:
    """The loss is a mean over tokens of the whole step, whatever the model says of its own loss (Qwen2.5-VL: that it cannot)."""
    assert MODEL.accepts_loss_kwargs is False
    together, halves, one_by_one = (update_of(tmp_path, size, 4 // size, peft=peft) for size in (4, 2, 1))
    for parts in (halves, one_by_one):
        assert (parts - together).norm() < 1e-4 * together.norm()


def test_an_adapter_that_rewrites_the_base_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="init_lora_weights='olora'"):
        update_of(tmp_path, 4, 1, peft={"r": 4, "target_modules": "all-linear", "init_lora_weights": "olora"})
