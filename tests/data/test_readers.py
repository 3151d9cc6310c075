from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ral.data import sources
from ral.data.media import load_image
from ral.data.prompt import build_messages
from ral.data.readers import as_records, detect_format, guess_type, read_records
from ral.data.record import Box, Record
from ral.errors import DataError
from tests.data.conftest import picture


def write_lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    picture(seed).save(buffer, "PNG")
    return buffer.getvalue()


VIDEO_R1 = {
    "problem_id": 7,
    "problem": "Which colour?",
    "data_type": "video",
    "problem_type": "multiple choice",
    "options": ["A. red", "B. blue"],
    "solution": "<answer>B</answer>",
    "path": "./clip.mp4",
    "data_source": "X",
}


def only(source: Path, **settings: Any) -> Record:
    [record] = read_records(source, **settings)
    return record


def test_video_r1_with_and_without_thinking(media: Path) -> None:
    image = {**VIDEO_R1, "data_type": "image", "path": "a.png", "options": [], "problem_type": "free-form"}
    rows = [VIDEO_R1, {**VIDEO_R1, "process": "<think>It is blue.</think>"}, image]
    (media / "video_r1.json").write_text(json.dumps(rows, indent=1))
    plain, traced, pictured = read_records(media / "video_r1.json")
    assert plain.videos == (media / "clip.mp4",)
    assert (plain.id, plain.solution, plain.problem_type) == ("7", "B", "multiple choice")
    assert plain.options == ("A. red", "B. blue")
    assert plain.extra == {"data_source": "X"}
    assert (plain.trace, traced.trace) == (None, "It is blue.")
    assert pictured.images == (media / "a.png",)
    assert pictured.videos == ()
    assert plain.origin.endswith("video_r1.json: row 1")
    assert traced.origin.endswith("row 2")


def test_easyr1_parquet_with_bytes_and_json_with_paths(media: Path) -> None:
    rows = [{"images": [{"bytes": png(4), "path": None}], "problem": "<image>How many?", "answer": "3"}]
    pq.write_table(pa.Table.from_pylist(rows), media / "easyr1.parquet")
    record = only(media / "easyr1.parquet")
    assert load_image(record.images[0]).tobytes() == picture(4).tobytes()
    assert (record.problem_type, record.solution) == ("numerical", "3")
    (media / "easyr1.json").write_text(
        json.dumps([{"images": [], "videos": ["clip.mp4"], "problem": "<video>What?", "answer": "a dog"}])
    )
    record = only(media / "easyr1.json")
    assert record.videos == (media / "clip.mp4",)  # an empty `images` column hides nothing
    assert [part["type"] for part in build_messages(record)[0]["content"]] == ["video", "text"]


def test_vlm_r1_lines(media: Path) -> None:
    turns = [{"from": "human", "value": "<image><image>Same?"}, {"from": "gpt", "value": "<answer>(A)</answer>"}]
    row = {"id": "q", "image": ["a.png", "b.jpg"], "conversations": turns, "accu_reward_method": "mcq"}
    record = only(write_lines(media / "vlm_r1.jsonl", [row]))
    assert record.images == (media / "a.png", media / "b.jpg")
    assert (record.id, record.solution, record.problem_type) == ("q", "(A)", "multiple choice")
    assert record.extra == {"accu_reward_method": "mcq"}


def test_r1_v_columns_of_a_dataset_saved_to_disk(tmp_path: Path) -> None:
    data = datasets.Dataset.from_dict({"image": [picture(5)], "problem": ["2?"], "solution": ["<answer>2</answer>"]})
    data.cast_column("image", datasets.Image()).save_to_disk(tmp_path / "r1v")
    record = only(tmp_path / "r1v")
    assert load_image(record.images[0]).tobytes() == picture(5).tobytes()
    assert record.solution == "2"


def test_verl_parquet(media: Path) -> None:
    row = {
        "data_source": "geo3k",
        "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "<image>Angle?"}],
        "images": [{"bytes": None, "image": "a.png"}],
        "reward_model": {"ground_truth": "\\frac{1}{2}", "style": "rule"},
    }
    pq.write_table(pa.Table.from_pylist([row]), media / "verl.parquet")
    record = only(media / "verl.parquet")
    assert (record.problem, record.solution, record.problem_type) == ("<image>Angle?", "\\frac{1}{2}", "math")
    assert record.images == (media / "a.png",)
    assert record.system == "Be brief."
    assert record.extra["data_source"] == "geo3k"


@pytest.mark.parametrize(
    "prompt",
    [
        "<image>Colour?",
        [{"role": "user", "content": "<image>Colour?"}],
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Colour?"}]}],
    ],
)
def test_trl_columns_keep_the_rest_for_reward_functions(media: Path, prompt: Any) -> None:
    row = {"prompt": prompt, "image": "a.png", "solution": "red", "difficulty": 3}
    record = only(write_lines(media / "trl.jsonl", [row]))
    assert record.problem == "<image>Colour?"
    assert record.columns()["difficulty"] == 3
    assert record.columns()["solution"] == "red"


def test_our_own_columns_hold_everything(media: Path) -> None:
    row = {
        "problem": "Where?", "solution": "[1, 2, 3, 4]", "problem_type": "box", "images": ["a.png"],
        "boxes": [[1, 2, 3, 4], {"x0": 0, "y0": 0, "x1": 9, "y1": 9, "medium": 0, "frame": None}], "trace": "t",
    }  # fmt: skip
    record = only(write_lines(media / "own.jsonl", [row]))
    assert record.boxes == (Box(1, 2, 3, 4), Box(0, 0, 9, 9))
    assert (record.problem_type, record.trace, record.extra) == ("box", "t", {})


def test_the_type_is_each_record_s_own(media: Path) -> None:
    kinds = ["multiple choice", "numerical", "ocr", "Free-Form", "regression", "math", "box"]
    rows = [{"problem": "?", "solution": "1", "problem_type": kind} for kind in kinds]
    read = [record.problem_type for record in read_records(write_lines(media / "kinds.jsonl", rows))]
    assert read == ["multiple choice", "numerical", "OCR", "free-form", "regression", "math", "box"]


@pytest.mark.parametrize(
    ("solution", "kind"),
    [("B", "multiple choice"), ("(B).", "multiple choice"), ("1,000", "numerical"), ("-3.5", "numerical"),
     ("14%", "numerical"), ("[1, 2, 3, 4]", "box"), ("$x^2$", "math"), ("\\pi", "math"), ("a dog", "free-form")],
)  # fmt: skip
def test_the_type_is_guessed_from_the_solution(solution: str, kind: str) -> None:
    assert guess_type(solution) == kind


def test_detection_needs_known_fields() -> None:
    assert detect_format({"problem": "", "path": "", "data_type": ""}) == "video-r1"
    assert detect_format({"problem": "", "path": ""}) == "columns"
    assert detect_format({"text": ""}) is None


def test_a_folder_gives_the_files_of_the_split(tmp_path: Path) -> None:
    for name in ("train-00001", "train-00000", "test-00000"):
        write_lines(tmp_path / f"{name}.jsonl", [{"problem": name, "solution": "x"}])
    assert [r.problem for r in read_records(tmp_path)] == ["train-00000", "train-00001"]
    assert [r.problem for r in read_records(tmp_path, split="test")] == ["test-00000"]
    for n in range(2, 6):
        write_lines(tmp_path / f"train-0000{n}.jsonl", [{"problem": "?", "solution": "x"}])
    with pytest.raises(DataError, match=r"no file of the split 'validation' among test-00000.*train-00003") as caught:
        list(read_records(tmp_path, split="validation"))
    assert str(caught.value).count(".jsonl") == 5, "not all of thousands"


def test_an_image_folder_is_read_through_datasets(tmp_path: Path, media: Path) -> None:
    shutil.copy(media / "a.png", tmp_path / "a.png")
    (tmp_path / "metadata.csv").write_text("file_name,problem,solution\na.png,What?,dots\n")
    record = only(tmp_path)
    assert (record.problem, record.solution) == ("What?", "dots")
    assert load_image(record.images[0]).size == (64, 48)


def test_media_are_found_under_the_root_and_nowhere_else(tmp_path: Path, media: Path) -> None:
    data = write_lines(tmp_path / "d.jsonl", [{"problem": "?", "solution": "x", "image": "a.png"}])
    assert only(data, root=media).images == (media / "a.png",)
    for path in ("../a.png", "x/../../a.png", "/etc/hostname", str(media / "a.png"), "http://x.org/a.png", "a\0.png"):
        outside = write_lines(tmp_path / "o.jsonl", [{"problem": "?", "solution": "x", "image": path}])
        with pytest.raises(DataError, match="line 1: field 'image'"):
            only(outside, root=tmp_path / "pictures")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "link").symlink_to(media)
    linked = write_lines(tmp_path / "o.jsonl", [{"problem": "?", "solution": "x", "image": "link/a.png"}])
    with pytest.raises(DataError, match="line 1: field 'image': expected a path inside"):
        only(linked, root=tmp_path / "pictures")
    assert only(linked, root=tmp_path / "pictures", allow_outside=True).images == (tmp_path / "pictures/link/a.png",)
    # A root that is itself a link is where its link leads.
    assert only(data, root=tmp_path / "pictures" / "link").images == (tmp_path / "pictures" / "link" / "a.png",)
    absolute = write_lines(tmp_path / "o.jsonl", [{"problem": "?", "solution": "x", "image": str(media / "a.png")}])
    assert only(absolute, root=media).images == only(absolute, allow_outside=True).images == (media / "a.png",)


@pytest.mark.parametrize("chunk", [7, 64, 1 << 20])
def test_a_json_array_is_read_an_element_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    rows = [{"problem": 'é]}{[,"' * n, "solution": str(n), "n": [{}, [n]]} for n in range(1, 20)]
    (tmp_path / "a.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    monkeypatch.setattr(sources, "_CHUNK", chunk)
    assert [record.problem for record in read_records(tmp_path / "a.json")] == [row["problem"] for row in rows]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"text": "x"}, "of no known format"),
        ({"problem": "x"}, "field 'solution'.*found nothing"),
        ({"problem": "", "solution": "x"}, "field 'problem'.*a text"),
        ({"problem": "x", "solution": ["a", 2]}, "field 'solution'.*a list of texts each of which is right"),
        ({"problem": "x", "solution": ["a", ""]}, "field 'solution'"),
        ({"problem": "x", "solution": " <answer> </answer>"}, "field 'solution'"),
        ({"problem": "x", "solution": float("nan")}, "field 'solution'"),
        ({"problem": "x", "solution": "y", "problem_type": "essay"}, "field 'problem_type'.*multiple choice"),
        ({"problem": "x", "solution": "y", "options": 3}, "field 'options'"),
        ({"problem": "x", "solution": "y", "boxes": [[3, 0, 1, 1]]}, "field 'boxes'"),
        ({"problem": "x", "solution": "y", "image": "a.png", "images": ["b.png"]}, "one column of images"),
        ({**VIDEO_R1, "data_type": "audio"}, "field 'data_type'.*'image' or 'video'"),
        ({"conversations": [{"from": "human", "value": "x"}]}, "field 'solution'.*a last reply, found nothing"),
        ({"prompt": [{"role": "user", "content": "x"}] * 2, "solution": "y"}, "field 'prompt'.*take turns"),
        ({"prompt": "x", "reward_model": {}}, "field 'reward_model.ground_truth'"),
        ([1], "is a list; expected an object"),
    ],
)
def test_errors_name_file_row_field_and_remedy(tmp_path: Path, row: Any, said: str) -> None:
    path = write_lines(tmp_path / "d.jsonl", [{"problem": "fine", "solution": "x"}, row])
    with pytest.raises(DataError, match=rf"d\.jsonl: line 2: .*{said}.*"):
        list(read_records(path))
    errors: list[DataError] = []
    assert [record.problem for record in read_records(path, on_error=errors.append)] == ["fine"]
    assert len(errors) == 1


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", b'{"problem": "\xff"}', "line 1: is not UTF-8"),
        ("a.jsonl", b'{"problem": ', "line 1: is not JSON"),
        ("a.jsonl", b"[" * 10**6, "line 1: is not JSON"),
        ("a.json", b'[{"problem": "x", "solution": "y"}, {"prob', "row 2: is not JSON"),
        ("a.json", "[]".encode("utf-16"), "is UTF-16"),
        ("a.json", b"", "the file is empty"),
        ("a.parquet", b"PAR1 nothing of the kind", "parquet file is damaged"),
        ("a.parquet", b"{}", "is not parquet"),
        ("a.txt", b"hello", "is no data file"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"{name}: .*{said}|{name}: {said}"):
        list(read_records(tmp_path / name))


def test_a_byte_order_mark_and_a_wrong_suffix_do_no_harm(tmp_path: Path) -> None:
    line = json.dumps({"problem": "x", "solution": "y"})
    (tmp_path / "lines.json").write_text("\ufeff" + line + "\n" + line, encoding="utf-8")
    assert len(list(read_records(tmp_path / "lines.json"))) == 2
    (tmp_path / "bom.json").write_text(f"\ufeff[{line}]", encoding="utf-8")
    assert len(list(read_records(tmp_path / "bom.json"))) == 1


def test_an_endless_line_is_refused_and_the_next_one_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MAX_ROW", 1000)
    path = write_lines(
        tmp_path / "d.jsonl", [{"problem": "x" * 5000, "solution": "y"}, {"problem": "z", "solution": "y"}]
    )
    errors: list[DataError] = []
    assert [record.problem for record in read_records(path, on_error=errors.append)] == ["z"]
    assert "longer than" in str(errors[0])


def test_unknown_sources_and_formats_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="check the path"):
        list(read_records(tmp_path / "nowhere.json"))
    with pytest.raises(DataError, match="known are auto, video-r1"):
        list(read_records(tmp_path, format="alpaca"))


def test_embedded_images_stay_undecoded_until_they_are_needed(media: Path) -> None:
    pq.write_table(pa.Table.from_pylist([{"image": png(1), "problem": "?", "solution": "x"}]), media / "raw.parquet")
    image = only(media / "raw.parquet").images[0]
    assert isinstance(image, Image.Image)
    assert image.size == (64, 48)


def rows_in_memory(media: Path) -> list[dict[str, Any]]:
    return [
        {"problem": "Which?", "solution": "B", "options": ["A. red", "B. blue"], "image": picture(3)},
        {"prompt": "Who?", "images": [{"bytes": png(4), "path": None}], "answer": "a dog"},
        {**VIDEO_R1, "path": str(media / "clip.mp4")},
        {"problem": "Where?", "solution": "here", "image": media / "a.png"},
    ]


def test_rows_in_memory_are_records(media: Path) -> None:
    kept = Record(id="own", problem="?", solution="x")
    chosen, free, video, file, own = as_records([*rows_in_memory(media), kept])
    assert (chosen.id, chosen.origin, chosen.problem_type) == ("1", "data: row 1", "multiple choice")
    assert load_image(free.images[0]).tobytes() == picture(4).tobytes()
    assert video.videos == (media / "clip.mp4",)
    assert file.images == (media / "a.png",)
    assert own is kept
    assert as_records(iter([kept])) == [kept]


def test_a_path_is_read_as_by_read_records(media: Path) -> None:
    path = write_lines(media / "memory.jsonl", [{"problem": "?", "solution": "x", "image": "a.png"}])
    assert as_records(str(path)) == list(read_records(path))


@pytest.mark.parametrize("kind", ["map", "iterable", "formatted", "selected", "transformed", "untyped"])
def test_data_sets_of_images_stay_encoded(media: Path, kind: str) -> None:
    columns = {
        "image": [{"bytes": png(n)} for n in range(3)],
        "images": [[{"path": str(media / "a.png")}, {"bytes": png(n)}] for n in range(3)],
    }
    features = {"image": datasets.Image(), "images": datasets.List(datasets.Image())}
    for column in ("image", "images"):
        data: Any = datasets.Dataset.from_dict(
            {column: columns[column], "problem": ["?"] * 3, "solution": ["a", "b", "c"]},
            datasets.Features(
                {column: features[column], "problem": datasets.Value("string"), "solution": datasets.Value("string")}
            ),
        )
        if kind == "iterable":
            data = data.to_iterable_dataset()
        elif kind == "formatted":
            data = data.with_format("torch")
        elif kind == "selected":
            data = data.select([2, 1, 0]).select([2, 1, 0])  # with an index that is not the identity
        elif kind == "transformed":
            data = data.with_transform(lambda batch: batch)
        elif kind == "untyped":
            rows = list(data)
            data = datasets.IterableDataset.from_generator(lambda rows=rows: iter(rows))
        records = as_records(data, name="train_dataset")
        assert [record.origin for record in records] == [f"train_dataset: row {n}" for n in (1, 2, 3)]
        for n, record in enumerate(records):
            image = record.images[-1]
            assert load_image(image).tobytes() == picture(n).tobytes()
            if kind not in ("transformed", "untyped"):
                assert image.fp is not None, "decoding a record must not keep its pixels"  # type: ignore[union-attr]
            if column == "images" and kind != "transformed" and kind != "untyped":
                assert record.images[0] == media / "a.png"


def test_what_holds_no_rows_is_named(media: Path) -> None:
    good = {"problem": "?", "solution": "x"}
    for data, said in [
        ([good, {"problem": "?"}], "eval_dataset: row 2: field 'solution'"),
        ([good, 3], "eval_dataset: row 2: is 3; expected an object"),
        (datasets.DatasetDict({"train": datasets.Dataset.from_list([good])}), r"DatasetDict \(\['train'\]\); give"),
        (3, "eval_dataset: is 3; expected rows"),
        ([{"problem": "?", "solution": "x", "video": {"bytes": b"mp4"}}], "a video, found 3 bytes that are none"),
    ]:
        with pytest.raises(DataError, match=said):
            as_records(data, name="eval_dataset")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="a path inside"):
        as_records([{**good, "image": str(media / "a.png")}], root=media / "elsewhere")
