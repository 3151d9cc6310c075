"""Rows of every format: what they say reaches the record, or is refused with the field and the reason."""

from __future__ import annotations

import base64
import io
import math
import re
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote_from_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ral.data.box_fields import media_size
from ral.data.media import IMAGE_FORMATS, image_from_bytes, load_image
from ral.data.readers import as_records, detect_format, guess_type
from ral.data.record import Box, DataError, Record, Turn
from ral.data.values import reply_parts, untagged, written_out
from tests.data.conftest import picture, write_video
from tests.data.test_readers import png

JPEG = base64.b64encode(png(1)).decode()
URI = f"data:image/png;base64,{JPEG}"
ROW = {"problem": "what?", "solution": "x"}


def only(row: dict[str, Any], **reading: Any) -> Record:
    (record,) = as_records([row], **reading)
    return record


def refused(row: dict[str, Any], **reading: Any) -> str:
    with pytest.raises(DataError) as caught:
        as_records([row], **reading)
    return str(caught.value)


def same(image: Any, seed: int = 1) -> bool:
    return load_image(image).tobytes() == picture(seed).tobytes()


# --- dialogues


def chat(*turns: str, role: str = "role", content: str = "content", names: str = "system user assistant") -> list[Any]:
    """Turns "s: …", "u: …", "a: …"."""
    by = dict(zip("sua", names.split(), strict=True))
    return [{role: by[turn[0]], content: turn[3:]} for turn in turns]


DIALECTS: dict[str, Any] = {
    "messages": lambda *turns: {"messages": chat(*turns)},
    "prompt": lambda *turns: {"prompt": chat(*turns)},
    "conversations": lambda *turns: {
        "conversations": chat(*turns, role="from", content="value", names="system human gpt")
    },
    "developer": lambda *turns: {"messages": chat(*turns, names="developer user assistant")},
    "written out": lambda *turns: {"messages": str(chat(*turns))},
}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_system_and_earlier_turns_reach_the_record(dialect: str) -> None:
    write = DIALECTS[dialect]
    turns = ("s: Be brief.", "u: <image>A dog?", "a: yes", "u: Its colour?")
    record = only(write(*turns) | {"images": [picture(1)], "solution": "red"})
    assert (record.system, record.problem, record.solution) == ("Be brief.", "Its colour?", "red")
    assert record.history == (Turn("user", "<image>A dog?"), Turn("assistant", "yes"))
    assert (record.trace, record.extra, len(record.images)) == (None, {}, 1)


@pytest.mark.parametrize("dialect", ["messages", "conversations"])
def test_the_last_reply_is_the_answer_unless_a_column_has_it(dialect: str) -> None:
    write = DIALECTS[dialect]
    worked = "a: <think>I see.</think> <answer> 3 </answer>"
    record = only(write("u: how many?", worked))
    assert (record.solution, record.trace, record.problem_type) == ("3", "I see.", "numerical")
    stated = only(write("u: how many?", worked) | {"solution": "4"})
    assert (stated.solution, stated.trace) == ("4", "I see.")
    assert only(write("u: how many?", "a: three")).solution == "three"
    assert "a last reply, found nothing" in refused(write("u: how many?"))
    thought = {
        "messages": [{"role": "user", "content": "2?"}, {"role": "assistant", "content": "2", "reasoning_content": "r"}]
    }
    assert (only(thought).solution, only(thought).trace) == ("2", "r")


def test_sharegpt_has_its_system_turn_in_a_column_and_ms_swift_its_history() -> None:
    turns = chat("u: colour?", "a: red", role="from", content="value", names="system human gpt")
    record = only({"conversations": turns, "system": "Answer in a word."})
    assert (record.system, record.solution) == ("Answer in a word.", "red")
    record = only(
        {"query": "And now?", "response": "blue", "history": [["First?", "red"], ["Then?", "green"]], "system": ""}
    )
    assert [turn.content for turn in record.history] == ["First?", "red", "Then?", "green"]
    assert (record.problem, record.solution, record.system) == ("And now?", "blue", None)
    assert only(ROW | {"history": "of art"}).extra == {"history": "of art"}
    twice = {"messages": chat("s: a", "u: b"), "system": "c", "solution": "d"}
    assert "field 'system': expected one system turn" in refused(twice)


def test_trl_has_its_worked_reply_in_completion() -> None:
    for completion in ("<think>t</think><answer>red</answer>", chat("a: <think>t</think><answer>red</answer>")):
        record = only({"prompt": chat("u: colour?"), "completion": completion})
        assert (record.solution, record.trace, record.extra) == ("red", "t", {})


PARTS: list[Any] = [
    {"type": "image_url", "image_url": {"url": URI, "detail": "high"}},
    {"type": "image_url", "image_url": URI},
    {"type": "input_image", "image_url": URI},
    {"type": "image", "image": URI},
    {"type": "image", "image": png(1)},
    {"type": "image", "image": picture(1)},
    {"type": "image", "image": {"bytes": png(1), "path": "a.png"}},
    {"type": "image", "bytes": png(1), "path": "a.png"},
    {"type": "image", "base64": JPEG},
    {"type": "image", "url": URI},
    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": JPEG}},
    {"type": "image", "image": URI, "text": None, "video": None},
    {"image": URI},
]


@pytest.mark.parametrize("part", PARTS, ids=range(len(PARTS)))
def test_media_in_parts_stand_where_they_are(part: dict[str, Any]) -> None:
    content = [{"type": "text", "text": "Here "}, part, {"type": "input_text", "text": " and <image>: same?"}]
    turns = [{"role": "user", "content": content}]
    record = only({"messages": turns, "images": [picture(2)], "answer": "no"})
    assert record.problem == "Here <image> and <image>: same?"
    assert same(record.images[0])
    assert same(record.images[1], seed=2)
    assert "field 'images': expected 1 media for the marks" in refused({"messages": turns, "answer": "no"})


def test_videos_in_parts_and_as_bytes_are_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAL_CACHE", str(tmp_path / "cache"))
    clip = write_video(tmp_path / "c.mp4", frames=4)
    uri = "data:video/mp4;base64," + base64.b64encode(clip.read_bytes()).decode()
    for part in ({"type": "video_url", "video_url": {"url": uri}}, {"type": "video", "video": str(clip)}):
        record = only(
            {"messages": [{"role": "user", "content": [part, {"type": "text", "text": "What?"}]}], "answer": "a"}
        )
        assert record.problem == "<video>What?"
        assert record.videos[0].read_bytes() == clip.read_bytes()
    for value in (clip.read_bytes(), {"bytes": clip.read_bytes(), "path": None}, uri):
        assert only(ROW | {"video": value}).videos == (next((tmp_path / "cache" / "media").iterdir()),)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([{"type": "input_audio", "input_audio": {"data": "x"}}], "parts of type text, .*found 'input_audio'"),
        ([{"type": "file", "file": {"file_id": "f"}}], "found 'file'"),
        ([{"type": "input_image", "file_id": "f"}], "one image in a part"),
        ([{"type": "image", "image": "a.png", "url": "b.png"}], "one image in a part"),
        ([{"type": "text"}], "a part of type 'text' with its text"),
        ([{"type": "text", "text": "x", "image": "a.png"}], "found both in"),
        ([{"text": "x"}, 3], "message content as text or parts"),
        ([{"type": "image", "image": "https://example.org/x.png"}], "a local file"),
        ([{"type": "image", "image": "data:image/png;base64,%%%"}], "field 'image': .*base64 that is broken"),
        ([{"type": "image", "image": "data:image/png"}], "a data URI without a comma"),
        (None, "message content as text or parts"),
        ("", "a question in the last user turn"),
    ],
)  # fmt: skip
def test_parts_that_are_not_read_are_refused(content: Any, said: str) -> None:
    assert re.search(said, refused({"messages": [{"role": "user", "content": content}], "solution": "x"}))


@pytest.mark.parametrize(
    ("turns", "said"),
    [
        ([{"role": "tool", "content": "x"}], "found 'tool'"),
        ([{"role": "assistant", "content": "x"}], "a user's first"),
        (chat("u: a", "s: b", "u: c"), "take turns"),
        ([{"role": "user", "content": "a", "images": ["b.png"]}], "found 'images' in a turn"),
        ([*chat("u: a"), {"role": "assistant", "content": "", "tool_calls": [{"id": 1}]}], "found 'tool_calls'"),
        (chat("s: <image>", "u: a"), "a system turn of text alone"),
        (chat("u: a", "a: <image>"), "a last reply of text alone"),
        ([], "a text or a list of messages"),
        ({"a": 1}, "a text or a list of messages"),
    ],
)
def test_turns_that_are_not_read_are_refused(turns: Any, said: str) -> None:
    assert said in refused({"messages": turns, "solution": "x"})


@given(st.lists(st.text(max_size=8).filter(lambda s: s.strip() and s.strip()[0] not in "[{"), min_size=1, max_size=7))
def test_any_dialogue_gives_back_its_turns(texts: list[str]) -> None:
    texts = texts if len(texts) % 2 else texts[1:] or texts
    turns = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]
    record = only({"messages": turns, "solution": "x"})
    assert [*(turn.content for turn in record.history), record.problem] == texts
    assert [turn.role for turn in record.history] == ["user", "assistant"] * (len(texts) // 2)


# --- answers, options, ids, text


@pytest.mark.parametrize(
    ("answer", "solutions", "kind"),
    [
        (["cat", "kitten", "cat"], ("cat", "kitten"), "free-form"),
        (["<answer>12</answer>", "a dozen"], ("12", "a dozen"), "numerical"),
        ([7], ("7",), "numerical"),
        ([10, 20, 30.5, 40], ("[10, 20, 30.5, 40]",), "box"),
        ([[1, 2, 3, 4]], ("[1, 2, 3, 4]",), "box"),
        (0, ("0",), "numerical"),
        (True, None, None),
        ([1, 2], None, None),
        (math.inf, None, None),
        ([1, 2, 3, math.nan], None, None),
        ({"a": 1}, None, None),
        ([], None, None),
    ],
)
def test_answers_are_one_or_several(answer: Any, solutions: tuple[str, ...] | None, kind: str | None) -> None:
    row = {"question": "?", "answers": answer}
    if solutions is None:
        assert "data: row 1: field 'solution'" in refused(row)
        return
    record = only(row)
    assert (record.solutions, record.solution, record.problem_type) == (solutions, solutions[0], kind)
    assert record.columns()["solutions"] == solutions


@pytest.mark.parametrize(
    ("options", "read"),
    [
        ({"B": "blue", "A": "red"}, ("A. red", "B. blue")),
        ({"A": "red", "B": "blue", "C": None}, ("A. red", "B. blue")),
        ("{'A': 'red', 'B': 'it\\'s'}", ("A. red", "B. it's")),
        ("['red', 'blue']", ("red", "blue")),
        ('["red", 2]', ("red", "2")),
        (("red", 2.5), ("red", "2.5")),
        ({"A": "red", "C": "blue"}, None),
        ({"1": "red", "2": "blue"}, None),
        (["red", ""], None),
        (["red", None], None),
        ([math.nan, "red"], None),
        ("red, blue", None),
    ],
)
def test_options_are_a_list_or_an_object_by_letters(options: Any, read: tuple[str, ...] | None) -> None:
    row = {"question": "?", "answer": "A", "options": options}
    if read is None:
        assert "field 'options'" in refused(row)
    else:
        assert only(row).options == read


def test_ids_that_are_none_are_the_row_s_number() -> None:
    rows = [ROW | {"id": value} for value in (None, "", 0, "a", 2.5)]
    assert [record.id for record in as_records(rows)] == ["1", "2", "0", "a", "2.5"]
    for value in (math.nan, True, [1], {"a": 1}):
        assert "field 'id': expected a text or a number" in refused(ROW | {"id": value})


@pytest.mark.parametrize(
    "row",
    [
        {"problem": "a\ud800b", "solution": "x"},
        {"problem": "a", "solution": "\udfff"},
        {"problem": "a", "solution": "x", "meta": [{"note": "\udc00"}]},
        {"problem": "a", "solution": "x", "\ud83d": "no pair"},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "é\ud800"}]}], "solution": "x"},
    ],
)
def test_text_that_is_no_unicode_is_refused(row: dict[str, Any]) -> None:
    said = refused(row)
    assert "found half of a surrogate pair" in said
    said.encode()
    assert only(ROW | {"problem": "\U0001f600 é \0"}).problem == "\U0001f600 é \0"


@pytest.mark.parametrize(
    ("name", "value", "field"), [("trace", 3, "process"), ("process", ["a"], "process"), ("system", {"a": 1}, "system")]
)
def test_texts_that_are_none_are_refused(name: str, value: Any, field: str) -> None:
    assert f"field {field!r}: expected a text" in refused(ROW | {name: value})


# --- media in columns


@pytest.mark.parametrize("kind", IMAGE_FORMATS)
def test_every_format_is_read_from_a_file_and_from_bytes(tmp_path: Path, kind: str) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 24), (10, 200, 30)).save(buffer, kind)
    (tmp_path / "image").write_bytes(buffer.getvalue())
    uri = f"data:image/x;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    for value in (
        tmp_path / "image",
        buffer.getvalue(),
        {"bytes": buffer.getvalue()},
        uri,
        bytearray(buffer.getvalue()),
    ):
        image = load_image(only(ROW | {"image": value}).images[0])
        assert image.size == (40, 24)
        assert all(abs(a - b) <= 8 for a, b in zip(image.getpixel((20, 12)), (10, 200, 30), strict=True))  # type: ignore[arg-type]


def test_base64_and_lists_that_are_written_out_are_images(tmp_path: Path) -> None:
    percent = "data:image/png," + quote_from_bytes(png(1))
    assert all(same(only(ROW | {"image": value}).images[0]) for value in (JPEG, JPEG + "\n", URI, percent))
    picture(1).save(tmp_path / "a.png")
    picture(2).save(tmp_path / "[b].png")
    record = only(ROW | {"images": "['a.png', \"[b].png\"]"}, root=tmp_path)
    assert same(record.images[1], seed=2)
    assert only(ROW | {"image": "[b].png"}, root=tmp_path).images == (tmp_path / "[b].png",)


UNREAD: list[Any] = [
    "picture.png", "a/b/clip.MP4", URI, JPEG, png(1), picture(1), {"bytes": png(1), "path": None}, {"path": "a.jpg"},
    ["text", "frame.webp"], Path("x.gif"), "sound.wav", [[{"bytes": png(1)}]],
]  # fmt: skip


@pytest.mark.parametrize("value", UNREAD, ids=range(len(UNREAD)))
def test_a_medium_in_a_column_that_nothing_reads_is_refused(value: Any) -> None:
    said = refused(ROW | {"picture": value})
    assert said.startswith("data: row 1: field 'picture': expected media in images or videos")
    assert "columns: {images: picture}" in said
    kept = only(ROW | {"picture": value}, columns={"extra": ["picture"]})
    assert kept.extra == {"picture": value}


def test_a_path_beside_media_that_were_read_is_a_note(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        picture(1).save(tmp_path / name)
    row = ROW | {"image": "a.png", "source": "coco/a.png", "url": "https://example.org/z.jpg", "original": "gone.jpg"}
    assert only(row, root=tmp_path).extra.keys() == {"source", "url", "original"}
    assert "field 'second'" in refused(row | {"second": "b.png"}, root=tmp_path)
    assert "field 'second'" in refused(row | {"second": png(2)}, root=tmp_path)


def test_columns_give_fields_our_names() -> None:
    row = {"caption": "what?", "label": {"text": ["cat", "kitten"]}, "pic": png(1), "problem": "an id", "note": "n"}
    record = only(row, columns={"problem": "caption", "solution": "label.text", "images": "pic", "extra": ["note"]})
    assert (record.problem, record.solutions) == ("what?", ("cat", "kitten"))
    assert same(record.images[0])
    assert record.extra == {"problem": "an id", "note": "n", "label": {"text": ["cat", "kitten"]}}
    listed = only({"q": "?", "a": "x", "o": "['x', 'y']"}, columns={"problem": "q", "solution": "a", "options": "o"})
    assert listed.options == ("x", "y")


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"problm": "q"}, "columns: 'problm' is no field of a record"),
        ({"problem": 3}, "columns: 'problem': expected the name of a column"),
        ({"problem": "text"}, "field 'text': expected a column, as `columns` names it"),
        ({"problem": "q.inner"}, "field 'q.inner': expected a column"),
        ({"extra": ["text"]}, "field 'text': expected a column"),
    ],
)
def test_columns_that_are_not_there_are_refused(columns: dict[str, Any], said: str) -> None:
    assert said in refused({"q": "?", "solution": "x"}, columns=columns)


# --- boxes and their scales

SIZE = (200, 100)
IMAGE = Image.new("RGB", SIZE)
BOXED: dict[str, dict[str, Any]] = {
    "saliency-r1": {"problem": "?", "solution": "x", "image": IMAGE, "dataset": "d", "bbox": "[0.1, 0.2, 0.5, 1.0]"},
    "visual-cot": {"question": "?", "answer": "x", "image": IMAGE, "dataset": "d", "width": 200, "height": 100, "bboxs": [[20, 20, 100, 100]]},
}  # fmt: skip
NAMED: dict[str, dict[str, Any]] = {
    "EASE": {"question": "?", "answer": "x", "image_path": IMAGE, "evidence_bboxes": [[0.1, 0.2, 0.5, 1]]},
    "ZwZ": {"problem": "?", "answer": "x", "images": [IMAGE], "bbox": [0.1, 0.2, 0.5, 1]},
    "TreeBench": {"question": "?", "answer": "A", "A": "x", "B": "y", "image": IMAGE, "target_instances": "[{'bbox': [0.1, 0.2, 0.5, 1.0], 'name': 'x'}]"},
    "own": {"problem": "?", "solution": "x", "image": IMAGE, "boxes": [{"x0": 0.1, "y0": 0.2, "x1": 0.5, "y1": 1, "medium": 0}]},
}  # fmt: skip


@pytest.mark.parametrize("name", BOXED)
def test_a_format_names_the_scale_of_its_boxes(name: str) -> None:
    assert detect_format(BOXED[name]) == name
    assert only(BOXED[name]).boxes == (Box(20, 20, 100, 100),)


@pytest.mark.parametrize("name", NAMED)
def test_other_boxes_need_their_scale_named(name: str) -> None:
    assert "box_scale" in refused(NAMED[name])
    assert only(NAMED[name], box_scale="unit").boxes == (Box(20, 20, 100, 100),)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_the_size_of_an_image_is_the_size_it_is_shown_in(tmp_path: Path, kind: str) -> None:
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = tmp_path / f"{orientation}"
        Image.new("RGB", (40, 20)).save(path, kind, exif=exif)
        shown = load_image(path).size
        assert shown == media_size(path) == media_size(image_from_bytes(path.read_bytes()))


def test_scales_are_of_the_upright_medium(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # lying down: 100 wide and 200 high when shown
    IMAGE.save(tmp_path / "turned.jpg", exif=exif)
    clip = write_video(tmp_path / "c.mp4", frames=3, size=(64, 32))
    row = ROW | {
        "images": ["turned.jpg", "turned.jpg"],
        "video": str(clip),
        "boxes": [[500, 500, 1000, 1000], {"x0": 0, "y0": 250, "x1": 500, "y1": 500, "medium": 2, "frame": 1}],
    }
    assert only(row, root=tmp_path, box_scale="thousand").boxes == (Box(50, 100, 100, 200), Box(0, 8, 32, 16, 2, 1))


@pytest.mark.parametrize(
    ("boxes", "scale", "said"),
    [
        ([["1", "1", "9", "9"]], None, "four finite numbers"),
        ([[0, 0, math.inf, 9]], None, "four finite numbers"),
        ([[0, 0, math.nan, 9]], None, "four finite numbers"),
        ([[0, 0, True, 9]], None, "four finite numbers"),
        ([[9, 0, 1, 9]], None, "x0 < x1"),
        ([[1, 5, 9, 5]], None, "y0 < y1"),
        ([[1, 2, 3]], None, "four finite numbers"),
        ([[1, 2, 3, 4, 5]], None, "four finite numbers"),
        ([{"x1": 1, "y1": 2, "x2": 3, "y2": 4}], None, "four finite numbers"),
        ([{"x0": 1, "y0": 1, "x1": 9, "y1": 9, "medium": 3}], None, "one of the row's 1 images and videos"),
        ([{"x0": 1, "y0": 1, "x1": 9, "y1": 9, "medium": -1}], None, "one of the row's 1"),
        ([{"x0": 1, "y0": 1, "x1": 9, "y1": 9, "medium": 0.5}], None, "one of the row's 1"),
        ([{"x0": 1, "y0": 1, "x1": 9, "y1": 9, "frame": 0}], None, "a frame of a video"),
        ([[0.1, 0.1, 0.9, 0.9]], None, "name the scale"),
        ([[0.1, 0.1, 0.9, 0.9]], "pixels", "name the scale"),
        ([[0.1, 0.1, 0.9, 0.9]], "thousand", "name the scale"),
        ([[0.1, 0.1, 0.9, 1.2]], "unit", "from 0 to 1"),
        ([[0.1, 0.1, 0.9, 0.9], [10, 10, 20, 20]], "unit", "from 0 to 1"),
        ([[-0.1, 0.1, 0.9, 0.9]], "unit", "from 0 to 1"),
        ([[10, 10, 1001, 20]], "thousand", "from 0 to 1000"),
        ("somewhere", None, "four finite numbers"),
        (7, None, "four finite numbers"),
    ],
)
def test_boxes_that_training_would_refuse_are_refused(boxes: Any, scale: Any, said: str) -> None:
    message = refused(ROW | {"image": IMAGE, "boxes": boxes}, box_scale=scale)
    assert message.startswith("data: row 1: field 'boxes': expected")
    assert said in message


def test_boxes_without_a_medium_are_refused() -> None:
    assert "one of the row's 0 images and videos" in refused(ROW | {"boxes": [[1, 2, 3, 4]]})
    assert only(ROW | {"boxes": []}).boxes == ()
    assert "box_scale 'percent' is unknown; known are pixels, unit, thousand" in refused(ROW, box_scale="percent")


@given(
    st.tuples(st.integers(2, 500), st.integers(2, 500)),
    st.tuples(*[st.floats(0, 1)] * 4).filter(lambda c: c[0] < c[2] and c[1] < c[3]),
)
def test_scales_agree(size: tuple[int, int], corners: tuple[float, float, float, float]) -> None:
    """The same place, written in shares and in thousandths, is the same pixels."""
    row = ROW | {"image": Image.new("L", size)}
    unit = only(row | {"boxes": [list(corners)]}, box_scale="unit").boxes[0]
    if max(corners) * 1000 > 1:
        (thousand,) = only(row | {"boxes": [[1000 * c for c in corners]]}, box_scale="thousand").boxes
        assert (unit.x0, unit.y0, unit.x1, unit.y1) == pytest.approx(
            (thousand.x0, thousand.y0, thousand.x1, thousand.y1)
        )
    assert unit.x1 == pytest.approx(corners[2] * size[0])
    assert unit.y1 == pytest.approx(corners[3] * size[1])


# --- time


@pytest.mark.parametrize(
    "text",
    ["<answer>" + " " * 60_000 + "x", "1" * 60_000 + "x", "1," * 30_000 + "x", "[" + "1, " * 30_000, "<think>" + "\n" * 60_000,
     " " * 60_000 + "<image>", "<answer>" * 20_000, "/9j/" + "A" * 60_000 + "!", "data:" + "," * 60_000, "\\" * 60_000],
)  # fmt: skip
def test_reading_a_row_takes_time_in_proportion_to_its_length(text: str) -> None:
    """Patterns that try every split of a run cost its square: minutes, here."""
    start = time.process_time()
    record = only(
        {"problem": "q" + text.replace("<image>", ""), "solution": text, "trace": text, "options": ["a", text]}
    )
    assert isinstance(record.question, str)
    guess_type(text)
    reply_parts(text)
    untagged(text, "answer")
    written_out(text)
    only({"messages": chat("u: ?" + text.replace("<image>", ""), "a: !" + text.replace("<image>", ""))})
    assert time.process_time() - start < 1


@given(st.text(alphabet="<>/answerthik \n1", max_size=60))
def test_tags_around_the_whole_are_taken_off_and_nothing_else(text: str) -> None:
    for tag in ("answer", "think"):
        assert untagged(f" <{tag}>\n{text} </{tag}> ", tag) == text.strip()
    bare = untagged(text, "answer")
    assert bare in text
    if "<answer>" not in text:
        assert bare == text.strip()


@given(st.from_regex(r"[-+]?[\d,]*\.?\d+\s*%?", fullmatch=True) | st.text(alphabet="0123456789,.%- +", max_size=12))
def test_numbers_are_those_that_the_plain_pattern_knows(text: str) -> None:
    plain = re.compile(r"[-+]?[\d,]*\.?\d+\s*%?")
    assert (guess_type(text) == "numerical") == (plain.fullmatch(text.strip()) is not None)
