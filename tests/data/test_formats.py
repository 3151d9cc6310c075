"""Every data format of the peers, with real media: what is read is checked, trained on, and evaluated."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import Qwen2_5_VLProcessor, Qwen2VLImageProcessor, Qwen2VLVideoProcessor
from typer.testing import CliRunner

from ral.cli import app
from ral.config import RALConfig
from ral.data.readers import as_records, detect_format
from ral.data.sources import rows
from ral.errors import DataError
from ral.models.loading import load_model
from ral.rewards.arguments import text_of
from ral.training.trainer import RALTrainer
from tests.data.conftest import TEMPLATE, byte_tokenizer, picture, write_video
from tests.data.test_readers import png, write_lines
from tests.tiny import tiny_model

PIXELS = {"min_pixels": 8 * 8 * 4, "max_pixels": 8 * 8 * 12, "num_frames": 4}
Row = dict[str, Any]


def _json(path: Path, table: list[Row]) -> Path:
    path.write_text(json.dumps(table), encoding="utf-8")
    return path


def _parquet(path: Path, table: list[Row]) -> Path:
    pq.write_table(pa.Table.from_pylist(table), path)
    return path


def _video_r1(folder: Path, **more: str) -> list[Row]:
    common = {"data_source": "made", **more}
    choice = {"problem_type": "multiple choice", "options": ["A. dark", "B. bright"], "solution": "<answer>B</answer>"}
    number = {"problem_type": "numerical", "options": [], "solution": "<answer>2</answer>"}
    text = {"problem_type": "OCR", "options": [], "solution": "<answer>stop</answer>"}
    value = {"problem_type": "regression", "options": [], "solution": "<answer>1.5</answer>"}
    return [
        {
            "problem_id": 1,
            "problem": "How does it end?",
            "data_type": "video",
            "path": "./clip.mp4",
            **choice,
            **common,
        },
        {"problem_id": 2, "problem": "How many colours?", "data_type": "image", "path": "./a.png", **number, **common},
        {"problem_id": 3, "problem": "What is written?", "data_type": "image", "path": "./b.jpg", **text, **common},
        {"problem_id": 4, "problem": "How long?", "data_type": "video", "path": "./clip.mp4", **value, **common},
    ]


def _turns(question: str, answer: str) -> list[Row]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


def _embedded(question: str, seeds: list[int], answer: str) -> Row:
    return {"images": [{"bytes": png(n), "path": None} for n in seeds], "problem": question, "answer": answer}


def _verl(question: str, answer: str) -> Row:
    return {
        "data_source": "geo3k",
        "prompt": [{"role": "user", "content": question}],
        "images": [{"bytes": png(len(question)), "path": None}],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": answer},
    }


#: name → (format as detected, writes the file into a folder that holds a.png, b.jpg and clip.mp4).
FORMATS: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "video-r1": ("video-r1", lambda folder: _json(folder / "video_r1.json", _video_r1(folder))),
    "video-r1-cot": (
        "video-r1",
        lambda folder: _json(folder / "cot.json", _video_r1(folder, process="<think>I look.</think>")),
    ),
    "easyr1-parquet": (
        "columns",
        lambda folder: _parquet(
            folder / "easyr1.parquet",
            [_embedded("<image>Sum?", [1], "3"), _embedded("<image>or<image>?", [2, 3], "the first")] * 2,
        ),
    ),
    "easyr1-json": (
        "columns",
        lambda folder: _json(
            folder / "easyr1.json",
            [
                {"images": [], "videos": ["clip.mp4"], "problem": "<video>Brighter?", "answer": "yes"},
                {"images": ["a.png"], "videos": [], "problem": "<image>Which?", "answer": "A"},
            ],
        ),
    ),
    "vlm-r1": (
        "vlm-r1",
        lambda folder: write_lines(
            folder / "vlm_r1.jsonl",
            [
                {"id": 1, "image": "a.png", "conversations": _turns("<image>Where?", "[1, 2, 30, 40]")},
                {"id": 2, "image": ["a.png", "b.jpg"], "conversations": _turns("<image><image>Same?", "no")},
                {
                    "id": 3,
                    "image": "b.jpg",
                    "conversations": _turns("<image>$x$?", "<answer> (B) </answer>"),
                    "accu_reward_method": "mcq",
                },
            ],
        ),
    ),
    "r1-v": (
        "columns",
        lambda folder: _parquet(
            folder / "r1_v.parquet",
            [
                {"image": {"bytes": png(n), "path": "x"}, "problem": f"{n}?", "solution": f"<answer> {n} </answer>"}
                for n in range(3)
            ],
        ),
    ),
    "verl": (
        "verl",
        lambda folder: _parquet(
            folder / "verl.parquet", [_verl("<image>Angle?", "\\frac{1}{2}"), _verl("<image>Angles?", "60")]
        ),
    ),
    "trl": (
        "trl",
        lambda folder: write_lines(
            folder / "trl.jsonl",
            [
                {"prompt": [{"role": "user", "content": "Colour?"}], "image": "a.png", "solution": "red", "level": 3},
                {"prompt": [{"role": "user", "content": "Colours?"}], "image": "b.jpg", "solution": "2", "level": 1},
            ],
        ),
    ),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a real Qwen2.5-VL of random weights, and its processor."""
    folder, tokenizer = tmp_path_factory.mktemp("model"), byte_tokenizer()
    net = tiny_model(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, pad_token_id=None)
    for name in ("image", "video"):
        setattr(net.config, f"{name}_token_id", tokenizer.convert_tokens_to_ids(f"<|{name}_pad|>"))
    for name in ("vision_start", "vision_end"):
        setattr(net.config, f"{name}_token_id", tokenizer.convert_tokens_to_ids(f"<|{name}|>"))
    net.generation_config.eos_token_id = tokenizer.eos_token_id
    net.save_pretrained(folder)
    sizes = {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 2}
    images, videos = Qwen2VLImageProcessor(**sizes), Qwen2VLVideoProcessor(**sizes)
    Qwen2_5_VLProcessor(images, tokenizer, videos, chat_template=TEMPLATE).save_pretrained(folder)
    return folder


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with the media that the rows name."""
    picture(1).save(tmp_path / "a.png")
    picture(2, (100, 50)).save(tmp_path / "b.jpg")
    write_video(tmp_path / "clip.mp4", frames=12)
    return tmp_path


def ral(*words: str | Path) -> str:
    found = CliRunner().invoke(app, [str(word) for word in words])
    assert found.exit_code == 0, found.output
    return found.stdout


@pytest.mark.parametrize("prompt", ["What?", [{"role": "user", "content": "What?"}]], ids=["text", "turns"])
def test_a_completion_of_trl_is_a_text_or_turns(prompt: Any) -> None:
    said = "<think>it is red</think><answer>red</answer>"
    for completion in (said, [{"role": "assistant", "content": said}]):
        (record,) = as_records([{"prompt": prompt, "completion": completion}])
        assert (record.problem, record.solution, record.trace) == ("What?", "red", "it is red")
    for wrong in (7, {"role": "assistant", "content": said}):
        with pytest.raises(DataError, match="row 1: field 'completion': expected a text or a list of messages"):
            as_records([{"prompt": prompt, "completion": wrong}])


def letters(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
    """A reward that differs where completions do, so that a random model gets a signal whatever it draws."""
    return [float(sum(map(ord, text_of(completion))) % 997) for completion in completions]


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_loads_checks_trains_and_evaluates(name: str, place: Path, model: Path, tmp_path: Path) -> None:
    kind, write = FORMATS[name]
    data = write(place)
    assert {detect_format(row) for _, row in rows(data) if isinstance(row, dict)} == {kind}
    records = as_records(data)
    assert all(record.images or record.videos for record in records)
    assert all((record.trace == "I look.") == (name == "video-r1-cot") for record in records)

    pixels = [word for key, value in PIXELS.items() for word in (f"--{key.replace('_', '-')}", str(value))]
    assert "ready to train" in ral("check", data, "--model", model, *pixels)

    args = RALConfig(
        output_dir=str(tmp_path / "run"), use_cpu=True, num_generations=2, per_device_train_batch_size=4, max_steps=3,
        max_completion_length=5, learning_rate=1e-2, beta=0.0, save_strategy="no", disable_tqdm=True, **PIXELS,
    )  # fmt: skip
    trainer = RALTrainer(str(model), args, train_dataset=records, reward_funcs=["accuracy", "format", letters])
    trainer.train()
    trainer.save_model(str(tmp_path / "final"))
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in metrics] == [1, 2, 3]
    before, after = load_model(model).state_dict(), load_model(tmp_path / "final").state_dict()
    assert all(torch.isfinite(value).all() for value in after.values())
    assert any(not torch.equal(before[key], after[key]) for key in before)

    ral(
        "eval", tmp_path / "final", "--tasks", data, "--output", tmp_path / "eval", "--max-completion-length", "5",
        *pixels,
    )  # fmt: skip
    summary = json.loads((tmp_path / "eval" / data.stem / "summary.json").read_text())
    assert (summary["n"], summary["settings"]["max_pixels"]) == (len(records), PIXELS["max_pixels"])
    assert {f"problem_type/{record.problem_type}" for record in records} <= summary["figures"].keys()
