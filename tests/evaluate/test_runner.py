"""Evaluations that can be trusted: resumed, batched, resized, cut off and refused."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from PIL import Image
from typer.testing import CliRunner

from ral.cli import app
from ral.data.prompt import encode_prompt
from ral.data.record import Box, Record
from ral.errors import ConfigError, DataError
from ral.evaluate.answering import load_for_answering
from ral.evaluate.runner import evaluate
from ral.evaluate.settings import EvalSettings
from ral.evaluate.summary import Summary
from ral.evaluate.tasks import Task
from ral.evaluate.tasks.selection import find_task
from ral.evaluate.tasks.testbed import named, rings_task
from ral.rewards.answers import Mode
from ral.runs.names import EVALUATION, ITEMS, SUMMARY
from ral.statistics import proportion_interval
from ral.testbed import load_start, start_checkpoint
from ral.testbed.rings import ring_records
from tests.tiny import tiny_model

SETTINGS_OF_TESTBED = EvalSettings(template="plain", max_completion_length=24, show=4)
ITEM_KEYS = {
    "id", "question", "solution", "completion", "prediction", "correct", "unparsed", "truncated", "tokens", "cluster", "grounding",
    "layers", "probes", "map", "image", "size", "boxes",
}  # fmt: skip
SUMMARY_KEYS = {
    "model", "task", "n", "accuracy", "ci", "unparsed", "truncated", "majority", "grounding", "layers", "probes", "figures", "main", "note",
    "settings", "tokens", "measured", "grounded",
}  # fmt: skip
DIRECT = {"think": False, "max_completion_length": 1}
GROUNDING_KEYS = {"pointing", "mass", "lift", "auc", "visual_share"}


@pytest.fixture(scope="module")
def start() -> tuple[Any, Any]:
    return load_start()


@pytest.fixture(scope="module")
def decided(start: tuple[Any, Any]) -> tuple[Any, Any]:
    """The start model with a bias that makes it answer "red" to anything, so that every item has an answer."""
    model = copy.deepcopy(start[0])
    bias = torch.zeros(model.config.text_config.vocab_size)
    bias[start[1].tokenizer.convert_tokens_to_ids("red")] = 1e4
    model.lm_head.bias = torch.nn.Parameter(bias)
    return model, start[1]


def task_of(*records: Record) -> Task:
    def source(table: Any = None, media: Any = None) -> Iterator[Record]:
        yield from records

    return Task("own", source, named)


def run(start: tuple[Any, Any], task: Task, output: Path, **changes: Any) -> tuple[Summary, list[dict[str, Any]]]:
    settings = {
        name: changes.pop(name) for name in list(changes) if name not in ("batch_size", "overwrite", "progress")
    }
    summary = evaluate(*start, task, output, settings=replace(SETTINGS_OF_TESTBED, **settings), **changes)
    return summary, [json.loads(line) for line in (output / ITEMS).read_text(encoding="utf-8").splitlines()]


def stop_after(items: int) -> Any:
    def progress(completed: int, total: int) -> None:
        if completed >= items:
            raise KeyboardInterrupt

    return progress


# ------------------------------------------------------------------------------------------------- what is written


def test_items_and_summary_hold_what_the_report_reads(start: tuple, tmp_path: Path) -> None:
    summary, items = run(start, rings_task(24), tmp_path)
    held = json.loads((tmp_path / SUMMARY).read_text(encoding="utf-8"))
    assert set(held) == SUMMARY_KEYS
    assert [item["id"] for item in items] == [record.id for record in rings_task(24).records()]
    assert all(set(item) == ITEM_KEYS for item in items)
    assert held["accuracy"] == np.mean([item["correct"] for item in items]) == summary.accuracy
    right = int(sum(item["correct"] for item in items))
    assert held["ci"] == [proportion_interval(right, 24).low, proportion_interval(right, 24).high]
    assert set(held["grounding"]) == GROUNDING_KEYS
    assert len(held["layers"]) == 2
    assert held["layers"][held["settings"]["layer"]] == held["grounding"]
    for name in GROUNDING_KEYS:
        assert held["grounding"][name] == pytest.approx(np.mean([item["grounding"][name] for item in items]))
    assert held["majority"] == max(np.mean([i["solution"] == s for i in items]) for s in {i["solution"] for i in items})


def test_shown_items_have_image_and_map_and_are_spread_over_the_task(start: tuple, tmp_path: Path) -> None:
    _, items = run(start, rings_task(24), tmp_path)
    shown = [item for item in items if item["image"]]
    assert [items.index(item) for item in shown] == [0, 6, 12, 18]
    assert [item for item in items if item["map"]] == shown
    for item in shown:
        assert Image.open(tmp_path / item["image"]).size == (64, 64) == tuple(item["size"])
        values = np.array(item["map"]["values"]).reshape(item["map"]["grid"])
        assert values.sum() == pytest.approx(item["grounding"]["visual_share"], rel=1e-3)
        (x0, y0, x1, y1), (row, column) = item["boxes"][0], np.unravel_index(values.argmax(), values.shape)
        inside = x0 <= 8 * column + 4 < x1 and y0 <= 8 * row + 4 < y1
        assert item["grounding"]["pointing"] == inside


def test_the_question_is_shown_without_its_marks(start: tuple, tmp_path: Path) -> None:
    _, items = run(start, rings_task(1), tmp_path)
    assert items[0]["question"].endswith("?")
    assert "<image>" not in items[0]["question"]


def test_cut_off_answers_are_counted_and_score_nothing(start: tuple, tmp_path: Path) -> None:
    summary, items = run(start, rings_task(6), tmp_path, max_completion_length=3)
    assert (summary.truncated, summary.unparsed, summary.accuracy) == (6, 6, 0.0)
    assert summary.grounding is None
    assert all(item["prediction"] is None and item["tokens"] == 3 and item["truncated"] for item in items)
    assert summary.ci[0] == pytest.approx(0, abs=1e-9)
    assert summary.ci[1] > 0.3


def test_a_text_model_is_scored_without_maps(start: tuple, tmp_path: Path) -> None:
    tokenizer = start[1].tokenizer
    model = tiny_model("qwen2", vocab_size=len(tokenizer))
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    records = [Record(id=str(i), problem=f"what is {i} and {i}?", solution="red", origin="text") for i in range(3)]
    summary, items = run((model, tokenizer), task_of(*records), tmp_path, max_completion_length=4)
    assert (summary.n, summary.grounding) == (3, None)
    assert all(item["map"] is None and item["image"] is None for item in items)


def test_an_id_that_is_no_file_name_gets_one(start: tuple, tmp_path: Path) -> None:
    records = [replace(record, id=id) for record, id in zip(ring_records(2, 3), ("../../a/b", "輪" * 200), strict=True)]
    _, items = run(start, task_of(*records), tmp_path / "folder")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder"]
    assert all((tmp_path / "folder" / item["image"]).is_file() for item in items)


# ------------------------------------------------------------------------------------------------- pixels and boxes


@pytest.mark.parametrize(("max_pixels", "grid"), [(None, [8, 16]), (32 * 64, [4, 8]), (36 * 72, [4, 9])])
def test_boxes_follow_the_image_through_resizing(decided: tuple, tmp_path: Path, max_pixels: int, grid: list) -> None:
    base = ring_records(1, 3)[0]
    base = replace(base, images=(base.images[0].resize((128, 64)),))
    left, all_of_it = Box(0, 0, 64, 64), Box(0, 0, 128, 64)
    records = [replace(base, id=id, boxes=(box,)) for id, box in (("left", left), ("all", all_of_it))]
    _, items = run(decided, task_of(*records), tmp_path, max_pixels=max_pixels, **DIRECT)
    values = np.array(items[0]["map"]["values"]).reshape(items[0]["map"]["grid"])
    assert items[0]["map"]["grid"] == grid
    assert items[0]["size"] == [128, 64]
    half = -(-grid[1] // 2)  # the middle column of nine is covered by half, and so belongs to the box
    assert items[0]["grounding"]["mass"] == pytest.approx(values[:, :half].sum() / values.sum(), rel=1e-3)
    assert items[1]["grounding"]["mass"] == pytest.approx(1)
    assert items[1]["grounding"]["auc"] is None


def test_a_box_in_the_second_image_is_looked_for_there(decided: tuple, tmp_path: Path) -> None:
    (first, second), question = ring_records(2, 3, image_size=64), "what colour is inside the red ring? <image> <image>"
    wide = second.images[0].resize((96, 64))
    record = replace(first, problem=question, images=(first.images[0], wide), boxes=(Box(0, 0, 96, 64, medium=1),))
    _, (item,) = run(decided, task_of(record), tmp_path, **DIRECT)
    assert item["size"] == [96, 64]
    assert item["map"]["grid"] == [8, 12]
    assert item["grounding"]["mass"] == pytest.approx(
        sum(item["map"]["values"]) / item["grounding"]["visual_share"], rel=1e-3
    )


def test_a_box_in_a_video_belongs_to_the_patch_that_shows_its_frame(decided: tuple, tmp_path: Path) -> None:
    with av.open(str(tmp_path / "v.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=4)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for shade in range(8):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 30 * shade, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    video = Record(
        id="v", problem="what colour is inside the red ring? <video>", solution="red", videos=(tmp_path / "v.mp4",),
        boxes=(Box(0, 0, 32, 64, frame=4),), origin="v.mp4",
    )  # fmt: skip
    _, (item,) = run(decided, task_of(video), tmp_path / "out", num_frames=8, **DIRECT)
    values = np.array(item["map"]["values"]).reshape(item["map"]["grid"])
    sheet = np.asarray(Image.open(tmp_path / "out" / item["image"]))
    assert (sheet.shape, item["size"], item["times"]) == ((64, 256, 3), [256, 64], [0, 0.5, 1, 1.5])
    third = sheet[:, 130:190]
    assert third.mean() == pytest.approx(120, abs=8), "frame 4, in the third temporal patch"
    assert item["boxes"] == [[128, 0, 160, 64]]
    assert values.sum() == pytest.approx(item["grounding"]["visual_share"], rel=1e-3)
    width = values.shape[1] // 4
    left = values[:, 2 * width : 2 * width + width // 2].sum()
    assert item["grounding"]["mass"] == pytest.approx(left / item["grounding"]["visual_share"], rel=1e-3)


def test_a_box_outside_its_image_is_an_error_that_names_the_record(decided: tuple, tmp_path: Path) -> None:
    record = replace(ring_records(1, 3)[0], boxes=(Box(640, 0, 700, 20),), origin="boxes.json: row 7")
    with pytest.raises(DataError, match=r"boxes\.json: row 7: box \(640"):
        run(decided, task_of(record), tmp_path, **DIRECT)


# ------------------------------------------------------------------------------------------------ resuming, refusing


@pytest.mark.parametrize("loss", ["nothing", "half a line", "half a batch"])
def test_an_evaluation_that_was_cut_off_ends_like_one_that_was_not(start: tuple, tmp_path: Path, loss: str) -> None:
    task = task_of(
        *(replace(r, problem=r.problem.replace("the ", "the " * (i % 5))) for i, r in enumerate(ring_records(20, 3)))
    )
    run(start, task, tmp_path / "whole", batch_size=3)
    with pytest.raises(KeyboardInterrupt):
        run(start, task, tmp_path / "parts", batch_size=3, progress=stop_after(9))
    file = tmp_path / "parts" / ITEMS
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    assert len(lines) == 9
    assert not (tmp_path / "parts" / SUMMARY).exists()
    kept = {"nothing": lines, "half a line": [*lines[:-1], lines[-1][:40]], "half a batch": lines[:-2]}[loss]
    file.write_text("".join(kept), encoding="utf-8")
    seen: list[int] = []
    run(start, task, tmp_path / "parts", batch_size=3, progress=lambda completed, total: seen.append(completed))
    assert seen[0] == sum(line.endswith("\n") for line in kept)  # what is there is not generated again
    for name in (ITEMS, SUMMARY, EVALUATION):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_killed_process_leaves_an_evaluation_that_can_be_continued(start: tuple, tmp_path: Path) -> None:
    words = [
        "eval",
        "start",
        "--tasks",
        "rings",
        "--n",
        "64",
        "--batch-size",
        "2",
        "--template",
        "plain",
        "--show",
        "4",
    ]
    words += ["--max-completion-length", "24", "--output", str(tmp_path / "parts")]
    process = subprocess.Popen([sys.executable, "-c", "from ral.cli import main; main()", *words])
    file = tmp_path / "parts" / "rings" / ITEMS
    while not (file.exists() and file.stat().st_size):
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not (file.parent / SUMMARY).exists()
    run(start, rings_task(64), file.parent, batch_size=2)
    run(start, rings_task(64), tmp_path / "whole", batch_size=2)
    assert file.read_bytes() == (tmp_path / "whole" / ITEMS).read_bytes()


def test_a_complete_evaluation_generates_nothing(start: tuple, tmp_path: Path) -> None:
    first, _ = run(start, rings_task(4), tmp_path)
    seen: list[int] = []
    again, _ = run(start, rings_task(4), tmp_path, progress=lambda completed, total: seen.append(completed))
    assert seen == [4]
    assert again == first


@pytest.mark.parametrize(
    ("change", "said"), [({"think": False}, "think was True, now False"), ({"max_pixels": 2048}, "max_pixels was None")]
)
def test_other_settings_are_refused(start: tuple, tmp_path: Path, change: dict, said: str) -> None:
    run(start, rings_task(2), tmp_path)
    before = (tmp_path / ITEMS).read_bytes()
    with pytest.raises(DataError, match=said):
        run(start, rings_task(2), tmp_path, **change)
    assert (tmp_path / ITEMS).read_bytes() == before
    run(start, rings_task(2), tmp_path, overwrite=True, **change)


def test_other_data_and_other_weights_are_refused(start: tuple, tmp_path: Path) -> None:
    run(start, rings_task(2), tmp_path)
    with pytest.raises(DataError, match="data was"):
        run(start, rings_task(3), tmp_path)
    trained = copy.deepcopy(start[0])
    with torch.no_grad():
        trained.get_output_embeddings().weight.mul_(1.01)
    with pytest.raises(DataError, match="weights was"):
        run((trained, start[1]), rings_task(2), tmp_path)
    (tmp_path / EVALUATION).unlink()
    with pytest.raises(DataError, match="holds items but no settings"):
        run(start, rings_task(2), tmp_path)


def test_two_records_with_one_id_are_refused(start: tuple, tmp_path: Path) -> None:
    record = ring_records(1, 3)[0]
    with pytest.raises(DataError, match="ids must differ"):
        run(start, task_of(record, record), tmp_path)


# --------------------------------------------------------------------------------------------------------- batching


def test_a_batch_says_what_its_items_say_alone(start: tuple, tmp_path: Path) -> None:
    small, large = ring_records(6, 3), ring_records(6, 4, image_size=128)
    task = task_of(*(record for pair in zip(small, large, strict=True) for record in pair))
    _, alone = run(start, task, tmp_path / "1", batch_size=1, think=False)
    _, together = run(start, task, tmp_path / "12", batch_size=12, think=False)
    assert [item["completion"] for item in alone] == [item["completion"] for item in together]
    layers = [(a["layers"], b["layers"]) for a, b in zip(alone, together, strict=True) if a["layers"]]
    assert len(layers) >= 4
    for a, b in layers:
        assert a == [pytest.approx(layer, abs=1e-4) for layer in b]


# ------------------------------------------------------------------------------------------------ tasks and settings


def test_held_out_rings_are_none_of_the_training_images() -> None:
    found = list(rings_task().records())
    assert len(found) == 512
    training = {record.images[0].tobytes() for seed in (0, 1, 2) for record in ring_records(64, seed)}
    assert not training & {record.images[0].tobytes() for record in found}
    assert [r.id for r in rings_task(3, seed=1).records()] != [r.id for r in found[:3]]


def test_questions_about_one_easy_vqa_image_are_one_cluster(start: tuple, tmp_path: Path) -> None:
    pytest.importorskip("easy_vqa")
    task = find_task("easy-vqa", n=12, seed=1)
    _, items = run(start, task, tmp_path, think=False, max_completion_length=2)
    images = [Path(str(record.images[0])).stem for record in task.records()]
    assert [item["cluster"] for item in items] == images
    assert items[0]["grounding"] is None


def test_scores_in_clusters_have_the_wider_interval(start: tuple, tmp_path: Path) -> None:
    def right_by_group(answer: str, record: Record, mode: Mode) -> float:
        return record.extra["right"]

    def source(table: Any = None, media: Any = None) -> Iterator[Record]:
        for i, record in enumerate(ring_records(12, 3)):
            yield replace(record, boxes=(), extra={"right": float(i % 4 == 0), "group": str(i % 4)})

    alone, _ = run(start, Task("t", source, right_by_group), tmp_path / "a")
    grouped, _ = run(start, Task("t", source, right_by_group, cluster="group"), tmp_path / "b")
    assert alone.accuracy == grouped.accuracy == 0.25
    assert grouped.ci[1] - grouped.ci[0] > 1.3 * (alone.ci[1] - alone.ci[0])


def test_a_task_is_found_by_name_with_a_part_of_its_items() -> None:
    assert len(list(find_task("rings", n=5).records())) == 5
    with pytest.raises(DataError, match="did you mean 'rings'"):
        find_task("ring")
    with pytest.raises(DataError, match="n=0"):
        find_task("rings", n=0)
    with pytest.raises(DataError, match="without data"):
        find_task("rings", data="table.json")


def test_a_drawn_part_of_a_benchmark_keeps_its_order(tmp_path: Path) -> None:
    image = tmp_path / "a.png"
    Image.new("RGB", (8, 8)).save(image)
    rows = [
        {"question_id": i, "category": "c", "text": "What? (A) red (B) blue", "label": "A", "image": "a.png"}
        for i in range(30)
    ]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    drawn = [r.id for r in find_task("vstar", n=10, seed=3, data=tmp_path / "test.jsonl").records()]
    every = [r.id for r in find_task("vstar", data=tmp_path / "test.jsonl").records()]
    assert len(every) == 30
    assert drawn == [id for id in every if id in drawn] != every[:10]


def test_settings_are_those_of_the_run_unless_said_otherwise(tmp_path: Path) -> None:
    config = {
        "think": False,
        "template": "plain",
        "max_pixels": 4096,
        "attention_layers": [0, 1],
        "learning_rate": 1e-5,
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    for model in (tmp_path, tmp_path / "final", tmp_path / "checkpoint-20"):
        found = EvalSettings.of_model(model, max_completion_length=7, max_pixels=None)
        assert found == EvalSettings(think=False, template="plain", max_pixels=4096, layer=1, max_completion_length=7)
    assert EvalSettings.of_model("owner/model") == EvalSettings()
    with pytest.raises(ConfigError, match="template='poem'"):
        EvalSettings.of_model(tmp_path, template="poem")
    (tmp_path / "config.yaml").write_text("- a\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"config\.yaml: expected a flat mapping"):
        EvalSettings.of_model(tmp_path)


def test_an_adapter_is_evaluated_on_its_base_model(start: tuple, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(start_checkpoint(), base)
    adapted = get_peft_model(
        load_for_answering(base)[0], LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    )
    adapted.save_pretrained(tmp_path / "run" / "final")
    start[1].save_pretrained(tmp_path / "run" / "final")
    loaded, processor = load_for_answering(tmp_path / "run")
    inputs = encode_prompt(processor, ring_records(1, 3)[0], think=True, template="plain")
    with torch.no_grad():
        expected, plain = adapted.eval()(**inputs).logits, start[0](**inputs).logits
        torch.testing.assert_close(loaded(**inputs).logits, expected)
    assert not torch.allclose(expected, plain)
    run((loaded, processor), rings_task(2), tmp_path / "eval")


# ----------------------------------------------------------------------------------------------------- command line


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "mine"
    shutil.copytree(start_checkpoint(), folder / "final")
    config = {"template": "plain", "max_completion_length": 24, "attention_layers": [0]}
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    return folder


def test_ral_eval_asks_as_the_run_did_and_writes_into_it(run_folder: Path) -> None:
    found = CliRunner().invoke(app, ["eval", str(run_folder / "final"), "--tasks", "rings", "--n", "8"])
    assert found.exit_code == 0, found.output
    summary = json.loads((run_folder / "eval" / "rings" / SUMMARY).read_text(encoding="utf-8"))
    assert summary["model"] == str(run_folder / "final")
    assert (summary["n"], summary["unparsed"]) == (8, 0)
    assert summary["settings"] | {"template": "plain", "max_completion_length": 24, "layer": 0} == summary["settings"]
    assert summary["grounding"] == summary["layers"][0]
    assert f"rings: {summary['accuracy']:.1%} of 8 items right" in found.stdout


def test_ral_eval_outside_of_a_run_wants_an_output(tmp_path: Path) -> None:
    found = CliRunner().invoke(app, ["eval", "start", "--tasks", "rings"])
    assert found.exit_code == 2
    assert "give --output" in found.stderr


@pytest.mark.parametrize("suffix", [".png", ".html"])
def test_ral_look_draws(run_folder: Path, tmp_path: Path, suffix: str) -> None:
    record, file = ring_records(1, 3)[0], tmp_path / "ring.png"
    record.images[0].save(file)
    output = tmp_path / f"look{suffix}"
    words = ["look", str(run_folder), "--image", str(file), "--question", record.problem, "--output", str(output)]
    found = CliRunner().invoke(app, [*words, "--layer", "1", "--heads", "[0, 3]"])
    assert found.exit_code == 0, found.output
    if suffix == ".png":
        assert Image.open(output).size[0] > 600
    else:
        page = output.read_text(encoding="utf-8")
        assert "1 of 0 to 1" in page
        assert "0, 3" in page
        assert "predicts the answer" in page
    assert "has 2 decoder layers" in CliRunner().invoke(app, [*words, "--layer", "7"]).stderr
    assert "heads contains 4, but layer 0" in CliRunner().invoke(app, [*words, "--heads", "4"]).stderr


def test_ral_look_wants_a_picture_or_a_page(tmp_path: Path) -> None:
    words = ["look", "start", "--image", "a.png", "--question", "?", "--output", str(tmp_path / "look.gif")]
    found = CliRunner().invoke(app, words)
    assert found.exit_code == 2
    assert "ends in .png or .html" in found.stderr
