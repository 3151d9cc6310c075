"""Ten rows of every kind of data file, with real media: read, checked, shown, trained on for three steps and evaluated.

Nothing is dropped on the way: every stage counts ten.
"""

from __future__ import annotations

import base64
import copy
import csv
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ral import RALConfig, RALTrainer
from ral.data.check import check_records
from ral.data.readers import read_records
from ral.data.settings import PromptSettings
from ral.evaluate.runner import evaluate
from ral.evaluate.settings import EvalSettings
from ral.evaluate.tasks.selection import find_task
from ral.testbed import load_start

MODEL, PROCESSOR = load_start()
ROWS = 10
COLOURS = ("red", "green", "blue", "purple", "orange")
PROMPT = PromptSettings(template="plain", num_frames=2)

Writer = Callable[[Path], Path]


def picture(number: int) -> bytes:
    """A picture of its own for every row."""
    pixels = np.random.default_rng(number).integers(0, 255, (2, 3, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((84, 56), Image.Resampling.NEAREST).save(buffer, "PNG")
    return buffer.getvalue()


def uri(number: int) -> str:
    return "data:image/png;base64," + base64.b64encode(picture(number)).decode()


def clip(path: Path, number: int) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=4)
        stream.width, stream.height, stream.pix_fmt = 56, 56, "yuv420p"
        for frame in range(4):
            pixels = np.full((56, 56, 3), (number * 20 + frame * 9) % 255, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels)))
        container.mux(stream.encode())


def files(folder: Path) -> list[str]:
    for number in range(ROWS):
        (folder / f"{number}.png").write_bytes(picture(number))
    return [f"{number}.png" for number in range(ROWS)]


def lines(row: Callable[[int, str], dict[str, Any]]) -> Writer:
    """JSON lines of rows made from the number and the file of a picture."""

    def write(folder: Path) -> Path:
        rows = [row(number, name) for number, name in enumerate(files(folder))]
        path = folder / "data.jsonl"
        path.write_text("".join(json.dumps(one) + "\n" for one in rows))
        return path

    return write


def answer(number: int) -> str:
    return COLOURS[number % 5]


def table(delimiter: str) -> Writer:
    def write(folder: Path) -> Path:
        path = folder / ("data.csv" if delimiter == "," else "data.tsv")
        with path.open("w", newline="") as stream:
            out = csv.writer(stream, delimiter=delimiter)
            out.writerow(["question", "answer", "image", "options"])
            out.writerows([f"Colour {n}?", answer(n), name, str(list(COLOURS))] for n, name in enumerate(files(folder)))
        return path

    return write


def parquet(folder: Path) -> Path:
    """EasyR1: images embedded as bytes."""
    rows = [
        {"problem": f"<image>Colour {n}?", "answer": answer(n), "images": [{"bytes": picture(n), "path": None}]}
        for n in range(ROWS)
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "data.parquet")
    return folder / "data.parquet"


def shard(folder: Path) -> Path:
    with tarfile.open(folder / "data.tar", "w") as archive:
        for number in range(ROWS):
            about = json.dumps({"problem": f"Colour {number}?", "solution": answer(number)}).encode()
            for name, content in ((f"{number:03}.png", picture(number)), (f"{number:03}.json", about)):
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    return folder / "data.tar"


def image_folder(folder: Path) -> Path:
    rows = [{"file_name": name, "query": f"Colour {n}?", "response": answer(n)} for n, name in enumerate(files(folder))]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def video_r1(folder: Path) -> Path:
    rows = []
    for number in range(ROWS):
        clip(folder / f"{number}.mp4", number)
        rows.append(
            {"problem_id": number, "problem": f"Colour {number}?", "data_type": "video", "problem_type": "free-form",
             "solution": f"<answer>{answer(number)}</answer>", "path": f"./{number}.mp4"}
        )  # fmt: skip
    (folder / "data.json").write_text(json.dumps(rows))
    return folder / "data.json"


KINDS: dict[str, Writer] = {
    "OpenAI messages with data URIs": lines(lambda n, name: {
        "messages": [{"role": "system", "content": "Look."}, {"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": uri(n)}}, {"type": "text", "text": f"Colour {n}?"}]}],
        "solution": answer(n),
    }),
    "ms-swift messages with two images": lines(lambda n, name: {
        "messages": [{"role": "user", "content": f"<image><image>Which {n}?"}, {"role": "assistant", "content": answer(n)}],
        "images": [name, f"{(n + 1) % ROWS}.png"],
    }),
    "sharegpt with system": lines(lambda n, name: {
        "conversations": [{"from": "human", "value": f"<image>Colour {n}?"}, {"from": "gpt", "value": answer(n)}],
        "system": "Look.", "image": name,
    }),
    "base64, options as an object, several answers": lines(lambda n, name: {
        "question": f"Colour {n}?", "answers": [answer(n), answer(n).upper()], "image": base64.b64encode(picture(n)).decode(),
        "options": {"A": "red", "B": "green"}, "problem_type": "free-form",
    }),
    "verl": lines(lambda n, name: {
        "prompt": [{"role": "user", "content": f"<image>Colour {n}?"}], "images": [{"path": name}],
        "reward_model": {"ground_truth": answer(n)}, "data_source": "x",
    }),
    "TRL": lines(lambda n, name: {"prompt": f"Colour {n}?", "image": name, "solution": answer(n), "boxes": [[0, 0, 20, 20]]}),
    "CSV": table(","),
    "TSV": table("\t"),
    "parquet": parquet,
    "webdataset": shard,
    "image folder": image_folder,
    "Video-R1": video_r1,
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_ten_rows_go_all_the_way(kind: str, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    source = KINDS[kind](tmp_path / "data")
    records = list(read_records(source))
    assert [record.solution.lower() for record in records] == [answer(number) for number in range(ROWS)]
    assert all(record.images or record.videos for record in records)

    report = check_records(
        lambda on_error: read_records(source, on_error=on_error), processor=PROCESSOR, prompt=PROMPT, show=ROWS
    )
    assert (report.rows, report.images + report.videos, len(report.shown)) == (
        ROWS, sum(len(one.images) + len(one.videos) for one in records), ROWS,
    )  # fmt: skip
    assert not report.errors
    assert all("_pad|>×" in prompt for _, prompt in report.shown), "every prompt has its visual tokens"

    args = RALConfig(
        str(tmp_path / "run"), use_cpu=True, template="plain", num_frames=2, num_generations=2, max_steps=3, num_iterations=1,
        per_device_train_batch_size=6, max_completion_length=2, attention_anchor="group", beta=0.0, save_strategy="no",
        samples_per_step=3, gradient_norm_steps=0,
    )  # fmt: skip
    RALTrainer(copy.deepcopy(MODEL), args, str(source), processing_class=PROCESSOR).train()
    samples = [json.loads(line) for line in (tmp_path / "run/samples.jsonl").read_text().splitlines()]
    assert len({row["id"] for row in samples}) == 9, "three steps of three prompts each, none twice"

    settings = EvalSettings(template="plain", num_frames=2, max_completion_length=2)
    summary = evaluate(MODEL, PROCESSOR, find_task(str(source)), tmp_path / "out", settings=settings)
    assert summary.n == ROWS
