"""Rows out of files: nothing that stands in a file is lost without a word."""

from __future__ import annotations

import base64
import csv
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ral.data import shards, sources
from ral.data.media import load_image, load_video
from ral.data.readers import read_records
from ral.data.record import DataError
from ral.data.sources import rows
from tests.data.conftest import picture
from tests.data.test_readers import png

ROW = {"problem": "what?", "solution": "x"}


def told(path: Path) -> list[str]:
    """What is said of each row: the question of one that is read, else the error without its file."""
    found: list[str] = []

    def failed(error: DataError) -> None:
        found.append(str(error).removeprefix(f"{path}: "))

    for record in read_records(path, on_error=failed):
        found.append(record.problem)
    return found


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("behind", ["]", "{}", '\n{"problem": "more", "solution": "y"}', " x", "\n" * 3000 + "[]"])
@pytest.mark.parametrize("chunk", [16, 1 << 20])
def test_what_follows_an_array_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, behind: str, chunk: int
) -> None:
    monkeypatch.setattr(sources, "_CHUNK", chunk)
    path = written(tmp_path / "a.json", json.dumps([ROW]) + behind)
    assert told(path) == ["what?", "row 2: more follows the end of the array; join it into one array"]
    assert told(written(path, json.dumps([ROW]) + " \n\t" * 99)) == ["what?"]


@pytest.mark.parametrize("chunk", [7, 1 << 20])
def test_a_key_that_stands_twice_costs_its_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(sources, "_CHUNK", chunk)
    good = json.dumps(ROW)
    outer = '{"problem": "a", "solution": "1", "solution": "2"}'
    inner = '{"problem": "a", "solution": "1", "meta": [{"k": 1, "j": 2, "k": 1}]}'
    said = [f"the key '{key}' stands twice in one object; rename or drop one" for key in ("solution", "k")]
    lines = written(tmp_path / "a.jsonl", "\n".join([good, outer, inner, good]))
    assert told(lines) == ["what?", f"line 2: {said[0]}", f"line 3: {said[1]}", "what?"]
    array = written(tmp_path / "a.json", f"[{good}, {outer}, {inner}, {good}]")
    assert told(array) == ["what?", f"row 2: {said[0]}", f"row 3: {said[1]}", "what?"]


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.lists(st.dictionaries(st.text(), _VALUES, max_size=4), max_size=6),
    st.integers(1, 40),
    st.sampled_from([None, 1]),
)
def test_any_array_is_read_as_json_reads_it(tmp_path_factory: Any, table: Any, chunk: int, indent: int | None) -> None:
    path = tmp_path_factory.mktemp("arrays") / "a.json"
    path.write_text(json.dumps(table, indent=indent), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "_CHUNK", chunk)
        assert [row for _, row in rows(path)] == table


# --- tables


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_tables_of_text_with_options_lists_and_images_in_base64(tmp_path: Path, suffix: str) -> None:
    image = base64.b64encode(png(3)).decode()
    with (tmp_path / f"t{suffix}").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, delimiter="\t" if suffix == ".tsv" else ",")
        table.writerow(["", "question", "A", "B", "C", "answer", "image", "boxes", "split"])
        table.writerow(["0", 'Which, "said"\nhe?', "red", "blue", "", "B", image, "[[1, 2, 30, 40]]", "dev"])
        table.writerow(["1", "Why?", "", "", "", "so", "", "", "dev"])
    choice, free = read_records(tmp_path / f"t{suffix}")
    assert (choice.problem, choice.solution, choice.options) == ('Which, "said"\nhe?', "B", ("A. red", "B. blue"))
    assert load_image(choice.images[0]).tobytes() == picture(3).tobytes()
    assert [(box.x0, box.y1) for box in choice.boxes] == [(1, 40)]
    assert (free.problem, free.options, free.images, free.problem_type) == ("Why?", (), (), "free-form")
    assert free.extra["split"] == "dev"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("problem,solution\na,1\nb,2,3\nc,4\n", ["a", "line 3: has 3 cells under 2 names; write it again", "c"]),
        ("problem,solution\na\n", ["line 2: has 1 cells under 2 names; write it again"]),
        ("problem,problem\na,b\n", ["line 1: expected a name for every column, each once, found problem, problem; rename them"]),
        ("problem,,solution\na,b,c\n", ["line 1: expected a name for every column, each once, found problem, , solution; rename them"]),
        ('problem,solution\na,"1"2\n', ["line 2: is no table (',' expected after '\"'); write it again; the rest of the file was not read"]),
        ("problem,solution\n\na,1\n", ["a"]),
    ],
)  # fmt: skip
def test_broken_tables_of_text_say_where(tmp_path: Path, text: str, said: list[str]) -> None:
    assert told(written(tmp_path / "t.csv", text)) == said


def test_a_table_that_is_no_text_says_so(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"problem,solution\na,1\nb,\xff\n")
    assert "is not UTF-8" in told(tmp_path / "t.csv")[-1]


# --- image folders


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_an_image_folder_has_its_images_wherever_its_metadata_stands(tmp_path: Path, media: Path, suffix: str) -> None:
    folder = tmp_path / "train"
    (folder / "sub").mkdir(parents=True)
    table = [{"file_name": f"sub/{n}.png", "problem": f"{n}?", "solution": "x"} for n in (4, 5)]
    for n in (4, 5):
        picture(n).save(folder / "sub" / f"{n}.png")
    if suffix == "jsonl":
        written(folder / "metadata.jsonl", "".join(json.dumps(row) + "\n" for row in table))
    elif suffix == "csv":
        lines = ["file_name,problem,solution", *(",".join(row.values()) for row in table)]
        written(folder / "metadata.csv", "\n".join(lines))
    else:
        pq.write_table(pa.Table.from_pylist(table), folder / "metadata.parquet")
    for source in (tmp_path, folder, folder / f"metadata.{suffix}"):
        found = list(read_records(source))
        assert [load_image(record.images[0]).tobytes() for record in found] == [picture(n).tobytes() for n in (4, 5)]
        assert all(record.extra == {} for record in found)


def test_a_folder_of_videos_and_one_of_several_files_a_row(tmp_path: Path) -> None:
    table = [
        {"file_name": "a.mp4", **ROW},
        {"file_names": ["a.png", "b.jpg"], **ROW},
        {"image_file_name": "c.png", **ROW},
        {"file_name": "a.png", "image": "b.png", **ROW},
    ]
    written(tmp_path / "metadata.jsonl", "".join(json.dumps(row) + "\n" for row in table))
    found = list(read_records(tmp_path, on_error=lambda error: None))
    assert [(r.images, r.videos) for r in found[:3]] == [
        ((), (tmp_path / "a.mp4",)),
        ((tmp_path / "a.png", tmp_path / "b.jpg"), ()),
        ((tmp_path / "c.png",), ()),
    ]
    picture(1).save(tmp_path / "a.png")
    assert told(tmp_path)[3].endswith("(columns: {extra: [file_name]})")  # it is there and would not be read


def test_a_row_of_an_image_folder_that_names_no_file_is_an_error(tmp_path: Path) -> None:
    table = [{"file_name": name, **ROW} for name in ("a.png", None, "")] + [ROW, {"file_names": [], **ROW}]
    path = written(tmp_path / "metadata.jsonl", "".join(json.dumps(row) + "\n" for row in table))
    missing = "field 'file_name': expected the file of the row, found nothing; name it"
    assert told(path) == ["what?", *(f"line {n}: {missing}" for n in (2, 3, 4)), "what?"]  # no files is said by []
    assert told(written(path, json.dumps(ROW))) == ["what?"]  # no image folder


def test_a_table_of_an_image_folder_lists_files_as_text(tmp_path: Path) -> None:
    with (tmp_path / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file_names", *ROW), ('["a.png", "b.jpg"]', *ROW.values())])
    (record,) = read_records(tmp_path)
    assert record.images == (tmp_path / "a.png", tmp_path / "b.jpg")


# --- shards of a webdataset


def shard(path: Path, files: dict[str, bytes | str], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            data = content.encode() if isinstance(content, str) else content
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RAL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_shards_are_samples_of_neighbouring_files(tmp_path: Path, media: Path, cache: Path, mode: str) -> None:
    path = shard(
        tmp_path / ("s.tar" if mode == "w" else "s.tar.gz"),
        {
            "d/0001.png": png(1),
            "d/0001.json": json.dumps(ROW),
            "d/0002.left.png": png(2),
            "d/0002.right.png": png(3),
            "d/0002.question.txt": "unread",
            "d/0002.json": json.dumps(ROW | {"id": "own"}),
            "0003.mp4": (media / "clip.mp4").read_bytes(),
            "0003.json": json.dumps(ROW | {"data_type": "video", "path": "./0003.mp4"}),
        },
        mode,
    )
    one, two, clip = read_records(path)
    assert (one.id, two.id, clip.id) == ("d/0001", "own", "0003")
    assert [load_image(image).tobytes() for image in two.images] == [picture(n).tobytes() for n in (2, 3)]
    assert two.extra == {"question.txt": "unread"}
    assert (len(one.images), one.origin) == (1, f"{path}: sample 'd/0001'")
    assert clip.videos[0].parent == cache / "media"
    assert load_video(clip.videos[0], num_frames=3).frames.shape[0] == 3
    assert list(read_records(path))[2].videos == clip.videos  # once on the disk


def test_texts_of_a_shard_are_columns(tmp_path: Path) -> None:
    path = shard(tmp_path / "s.tar", {"1.jpg": png(1), "1.question": "How many?", "1.answer": "3"})
    (record,) = read_records(path, columns={"problem": "question", "solution": "answer"})
    assert (record.problem, record.solution, record.problem_type, len(record.images)) == (
        "How many?",
        "3",
        "numerical",
        1,
    )


def test_a_folder_s_archives_are_shards_if_nothing_else_is_data(tmp_path: Path) -> None:
    shard(tmp_path / "train-0.tar", {"1.json": json.dumps(ROW)})
    shard(tmp_path / "test-0.tar", {"1.json": json.dumps(ROW | {"problem": "held out"})})
    assert [record.problem for record in read_records(tmp_path)] == ["what?"]
    written(tmp_path / "d.jsonl", json.dumps(ROW | {"problem": "line"}))
    assert [record.problem for record in read_records(tmp_path)] == ["line"]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"1.json": "{", "2.json": json.dumps(ROW)}, "sample '1': '1.json' cannot be read"),
        ({"1.json": '{"a": 1, "a": 2}', "2.json": json.dumps(ROW)}, "the key 'a' stands twice"),
        ({"1.npy": b"x", "1.json": json.dumps(ROW), "2.json": json.dumps(ROW)}, "'1.npy' is no JSON, text, image or video"),
        ({"1.problem": "a", "1.json": json.dumps(ROW), "2.json": json.dumps(ROW)}, "the field 'problem' stands in two"),
        ({"1.a.png": png(1), "1.b.png": png(2), "1.json": json.dumps(ROW | {"image": "1.a.png"}), "2.json": json.dumps(ROW)}, "names media but not '1.b.png'"),
        ({"1.a.png": png(1), "1.json": json.dumps(ROW | {"images": ["x.png"]}), "2.json": json.dumps(ROW)}, "names media that are not in the archive"),
    ],
)  # fmt: skip
def test_a_sample_that_cannot_be_read_costs_itself(tmp_path: Path, files: dict[str, Any], said: str) -> None:
    first, second = told(shard(tmp_path / "s.tar", files))
    assert said in first
    assert second == "what?"


def test_an_archive_is_read_to_its_end_or_refused(tmp_path: Path) -> None:
    path = shard(tmp_path / "s.tar", {f"{n}.json": json.dumps(ROW) for n in range(3)})
    whole = path.read_bytes()
    end = 3 * 1024  # a header and a block of content each; zeros follow
    for content, said in [
        (whole[:end], "is cut off behind its last sample"),
        (whole[: end - 500], "is damaged"),
        (whole[: end + 1024] + whole, "more follows the archive's end"),
        (whole[:1500], "is cut off behind its last sample"),
    ]:
        path.write_bytes(content)
        assert said in told(path)[-1]
    path.write_bytes(whole[: end + 1024])
    assert told(path) == ["what?"] * 3
    with tarfile.open(path, "w") as archive:
        link = tarfile.TarInfo("1.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    assert "'1.png' is a link" in told(path)[0]


def test_a_large_member_of_an_archive_costs_its_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not read into memory."""
    row = json.dumps(ROW)
    path = shard(tmp_path / "s.tar", {"1.json": row, "2.json": json.dumps(ROW | {"note": "n" * 50}), "3.json": row})
    monkeypatch.setattr(shards, "MAX_MEMBER", len(row))
    found = told(path)
    assert found[0] == "what?"
    assert f"'2.json' has {len(row) + 62:,} bytes, more than {len(row):,}; make it smaller" in found[1]
