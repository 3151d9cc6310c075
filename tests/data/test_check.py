from __future__ import annotations

import io
import os
import random
import resource
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw, ImageEnhance, ImageFont

from ral.data.check import CheckReport, LookIndex, check_records, image_look
from ral.data.lookalikes import Appearance
from ral.data.readers import read_records
from ral.data.record import Record
from ral.data.settings import PromptSettings
from ral.rewards.answers import unscorable
from tests.data.conftest import picture, write_video
from tests.data.test_readers import write_lines


def check(source: Path, **settings: Any) -> CheckReport:
    def scorer(record: Record) -> str:
        return unscorable(record.solution, record.problem_type, record.options)

    return check_records(lambda on_error: read_records(source, on_error=on_error), unscorable=scorer, **settings)


def kinds(report: CheckReport) -> list[str]:
    return [finding.kind for finding in report.findings]


def test_good_data_is_ready(media: Path, processor: Any) -> None:
    rows = [
        {"problem": "Which?", "solution": "B", "options": ["red", "blue"], "image": "a.png"},
        {"problem": "How many?", "solution": "3", "video": "clip.mp4"},
    ]
    steps: list[int] = []
    report = check(
        write_lines(media / "good.jsonl", rows),
        processor=processor,
        max_prompt_tokens=2000,
        prompt=PromptSettings(max_pixels=28 * 28 * 8, num_frames=4),
        progress=steps.append,
    )
    assert (report.rows, report.images, report.videos, report.exit_code) == (2, 1, 1, 0)
    assert dict(report.types) == {"multiple choice": 1, "numerical": 1}
    assert len(report.tokens) == 2
    assert steps == [1, 2]
    assert report.to_text().endswith("ready to train")


def test_prompts_above_the_budget_are_errors(media: Path, processor: Any) -> None:
    path = write_lines(media / "long.jsonl", [{"problem": "x" * 500, "solution": "B"}])
    report = check(path, processor=processor, max_prompt_tokens=400)
    assert kinds(report) == ["tokens"]
    assert report.exit_code == 1
    assert "lower max_pixels" in report.to_text()


def test_solutions_are_read_with_the_scorer_of_training(media: Path) -> None:
    rows = [
        {"problem": "1", "solution": "C", "options": ["x", "y"]},
        {"problem": "2", "solution": "many", "problem_type": "numerical"},
        {"problem": "3", "solution": "[5, 5, 1, 1]", "problem_type": "box"},
        {"problem": "4", "solution": "y", "options": ["x", "y"]},
        {"problem": "5", "solution": "1,000", "problem_type": "regression"},
    ]
    report = check(write_lines(media / "solutions.jsonl", rows))
    assert kinds(report) == ["solution"] * 3
    assert [finding.origin[-1] for finding in report.findings] == ["1", "2", "3"]


def test_duplicates_are_found_by_bytes_and_by_looks(tmp_path: Path) -> None:
    original = picture(8, (200, 150))
    original.save(tmp_path / "a.png")
    original.resize((180, 135)).save(tmp_path / "small.jpg", quality=80)
    picture(9, (200, 150)).save(tmp_path / "other.png")
    rows = [
        {"problem": "What?", "solution": "x", "image": name} for name in ("a.png", "a.png", "small.jpg", "other.png")
    ]
    rows.append({"problem": "Another question?", "solution": "x", "image": "a.png"})
    report = check(write_lines(tmp_path / "d.jsonl", rows))
    assert [(f.kind, f.origin[-1]) for f in report.findings] == [("duplicate", "2"), ("duplicate", "3")]
    assert "the same as" in report.findings[0].message
    assert "looks the same" in report.findings[1].message
    assert report.exit_code == 0


def test_media_shared_with_the_evaluation_are_leaks(tmp_path: Path) -> None:
    picture(8, (200, 150)).save(tmp_path / "a.png")
    ImageEnhance.Brightness(picture(8, (200, 150))).enhance(1.01).save(tmp_path / "copy.jpg")
    write_video(tmp_path / "v.mp4")
    held_out = write_lines(
        tmp_path / "test.jsonl",
        [{"problem": "T", "solution": "x", "image": "a.png"}, {"problem": "T", "solution": "x", "video": "v.mp4"}],
    )
    rows = [
        {"problem": "1", "solution": "x", "image": "a.png"},
        {"problem": "2", "solution": "x", "image": "copy.jpg"},
        {"problem": "3", "solution": "x", "video": "v.mp4"},
        {"problem": "4", "solution": "x"},
    ]
    report = check(write_lines(tmp_path / "train.jsonl", rows), evaluation=read_records(held_out))
    assert [(f.kind, f.origin[-1]) for f in report.findings] == [("leak", "1"), ("leak", "2"), ("leak", "3")]


def test_different_pictures_do_not_look_alike() -> None:
    index = LookIndex()
    for seed in range(200):
        assert index.find(image_look(picture(seed))) is None
        index.add(image_look(picture(seed)), str(seed))
    assert index.find(image_look(picture(77).resize((128, 96)))) is not None


def test_the_clean_copy_holds_the_good_rows_once_with_their_media(tmp_path: Path, media: Path) -> None:
    rows = [
        {"problem": "Q", "solution": "x", "image": "a.png", "boxes": [[1, 2, 3, 4]], "level": 2, "id": "one"},
        {"problem": "Q", "solution": "x", "image": "a.png"},
        {"problem": "Q", "solution": "x", "image": "none.png"},
        {"problem": "V", "solution": "x", "video": "clip.mp4"},
        {"problem": ""},
    ]
    report = check(write_lines(media / "mixed.jsonl", rows), clean=tmp_path / "clean")
    assert (report.rows, report.kept, report.exit_code) == (5, 2, 1)
    first, second = read_records(tmp_path / "clean" / "data.jsonl")
    original = next(iter(read_records(media / "mixed.jsonl")))
    assert (first.id, first.boxes, first.extra) == ("one", original.boxes, {"level": 2})
    assert isinstance(first.images[0], Path)
    assert first.images[0].read_bytes() == (media / "a.png").read_bytes()
    assert second.videos[0].read_bytes() == (media / "clip.mp4").read_bytes()
    assert check(tmp_path / "clean").findings == []


def test_nothing_to_read_fails(tmp_path: Path) -> None:
    assert check(tmp_path / "none.jsonl").exit_code == 1
    (tmp_path / "blank.jsonl").write_text("\n\n")
    assert check(tmp_path / "blank.jsonl").exit_code == 1


def test_terminal_escapes_in_data_are_shown_not_sent(tmp_path: Path) -> None:
    report = check(write_lines(tmp_path / "d.jsonl", [{"problem": "x\x1b[2J", "solution": "\x07"}]))
    assert kinds(report) == ["text"]
    assert "\x1b" not in report.to_text()


# --- forty broken inputs: media, rows, and whole files


def _bomb(side: int) -> bytes:
    """A PNG of a few bytes that promises side × side pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big")

    header = side.to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def _encoded(kind: str, size: tuple[int, int] = (64, 48)) -> bytes:
    buffer = io.BytesIO()
    picture(1, size).save(buffer, kind)
    return buffer.getvalue()


def broken_media(folder: Path) -> dict[str, bytes]:
    clip = write_video(folder / "whole.mp4").read_bytes()
    svg = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
    return {
        "cut.png": _encoded("PNG")[:200],
        "cut.jpg": _encoded("JPEG", (400, 300))[:1500],
        "cut.webp": _encoded("WEBP")[:60],
        "cut.gif": _encoded("GIF")[:40],
        "empty.png": b"",
        "zeros.png": bytes(5000),
        "text.jpg": b"this is no image",
        "html.png": b"<html><body>404 Not Found</body></html>",
        "bomb.png": _bomb(100_000),
        "bomb_small_header.png": _bomb(9_000),
        "vector.svg": svg,
        "script.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nquit\n",
        "video.png": clip,
        "pickle.png": b"\x80\x04\x95.",
        "cut.mp4": clip[: len(clip) // 2],
        "head.mp4": clip[:100],
        "empty.mp4": b"",
        "text.mp4": b"this is no video",
        "image.mp4": _encoded("PNG"),
        "playlist.mp4": b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n",
        "concat.mp4": b"ffconcat version 1.0\nfile /etc/passwd\n",
        "audio.mp4": b"RIFF\x24\x00\x00\x00WAVEfmt " + bytes(24),
    }


BROKEN_ROWS: list[Any] = [
    {"problem": "p", "solution": "x", "image": "../../etc/passwd"},
    {"problem": "p", "solution": "x", "image": "/etc/passwd"},
    {"problem": "p", "solution": "x", "image": "https://example.org/x.png"},
    {"problem": "p", "solution": "x", "image": "missing.png"},
    {"problem": "p", "solution": "x", "image": "."},
    {"problem": "p", "solution": "x", "image": "a\u0000b"},
    {"problem": "p", "solution": "x", "image": 17},
    {"problem": "p", "solution": "x", "image": "n" * 5000},
    {"problem": "p <image>", "solution": "x"},
    {"problem": "p"},
    {"solution": "x"},
    {"problem": {"a": 1}, "solution": "x"},
    {"problem": "p", "solution": "Z", "options": ["a", "b"]},
    {"problem": "p", "solution": "x", "problem_type": "numerical"},
    "a string",
    None,
    [],
    {},
]  # fmt: skip


def broken_files(folder: Path) -> list[Path]:
    """Data files, each with one thing wrong with it."""
    media = broken_media(folder)
    rows: list[Any] = []
    for name, content in media.items():
        (folder / name).write_bytes(content)
        column = "video" if name.endswith(".mp4") else "image"
        rows.append({"problem": "p", "solution": "x", column: name})
    files = [write_lines(folder / f"row{i}.jsonl", [row]) for i, row in enumerate(rows + BROKEN_ROWS)]
    for name, content in {
        "utf16.jsonl": '{"problem": "p", "solution": "x"}'.encode("utf-16"),
        "latin.jsonl": '{"problem": "é", "solution": "x"}'.encode("latin-1"),
        "deep.jsonl": b'{"a":' * 200_000,
        "huge.jsonl": b'{"problem": "' + b"x" * (65 << 20),
        "cut.json": b'[{"problem": "p", "solution": "x"}, {"pro',
        "cut.parquet": b"PAR1" + bytes(100),
        "empty.jsonl": b"",
    }.items():
        (folder / name).write_bytes(content)
        files.append(folder / name)
    os.mkfifo(folder / "pipe.png")
    files.append(write_lines(folder / "fifo.jsonl", [{"problem": "p", "solution": "x", "image": "pipe.png"}]))
    return files


def test_forty_broken_inputs_are_each_named(tmp_path: Path) -> None:
    files = broken_files(tmp_path)
    assert len(files) >= 40
    for file in files:
        report = check(file)
        assert report.exit_code == 1, file
        assert report.errors, file
        assert all(str(file) in finding.message for finding in report.errors), (file, report.errors)
        assert report.to_text()


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory as Linux counts it")
def test_broken_inputs_take_less_than_a_gibibyte(tmp_path: Path) -> None:
    files = broken_files(tmp_path)
    program = (
        "import sys, resource, torch\n"
        "from ral.data.check import check_records\n"
        "from ral.data.readers import read_records\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for file in sys.argv[1:]:\n"
        "    report = check_records(lambda on_error: read_records(file, on_error=on_error))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, files)], capture_output=True, text=True, timeout=120, check=True
    )
    assert int(done.stdout) < 1 << 20  # kibibytes


def test_one_large_image_after_another_stays_bounded(tmp_path: Path) -> None:
    for n in range(4):
        Image.new("RGB", (6000, 6000), (n, 0, 0)).save(tmp_path / f"{n}.png", compress_level=1)
    path = write_lines(
        tmp_path / "d.jsonl", [{"problem": str(n), "solution": "x", "image": f"{n}.png"} for n in range(4)]
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert check(path, workers=2).exit_code == 0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20


def test_rows_keep_their_order_whatever_finishes_first(tmp_path: Path) -> None:
    rows = [{"problem": str(n), "solution": "x", "image": f"{n % 3}.png"} for n in range(30)]
    seen: list[int] = []
    report = check(write_lines(tmp_path / "d.jsonl", rows), progress=seen.append)
    assert seen == list(range(1, 31))
    assert [f.origin for f in report.errors] == [f"{tmp_path / 'd.jsonl'}: line {n}" for n in range(1, 31)]


# --- look-alikes, and boxes


def written(text: str, size: tuple[int, int] = (160, 64)) -> Image.Image:
    image = Image.new("RGB", size, "white")
    ImageDraw.Draw(image).text((size[0] // 8, size[1] // 3), text, fill="black")
    return image


def bars(heights: tuple[int, ...]) -> Image.Image:
    image = Image.new("RGB", (200, 150), "white")
    for n, height in enumerate(heights):
        ImageDraw.Draw(image).rectangle((20 + 40 * n, 140 - height, 45 + 40 * n, 140), fill=(60, 90, 200))
    return image


def again(image: Image.Image, share: float = 1.0, quality: int = 80) -> Image.Image:
    """A copy of another size and compression."""
    buffer = io.BytesIO()
    image.resize((round(image.width * share), round(image.height * share))).save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


WORDS = [
    "invoice 1041",
    "invoice 1047",
    "paid",
    "unpaid",
    "total 12.50",
    "total 12.60",
    "Berlin",
    "Bern",
    "rain",
    "ruin",
]
ALIKE = [written(word) for word in WORDS] + [bars((h, 60, 90)) for h in (20, 30, 45, 70)]


def test_lines_of_text_and_charts_are_told_apart() -> None:
    index = LookIndex()
    for number, image in enumerate(ALIKE):
        assert index.find(image_look(image)) is None
        index.add(image_look(image), str(number))
    for number, image in enumerate(ALIKE):
        for copy in (again(image), again(image, 0.8), again(image, 1.5), again(image, quality=55)):
            found = index.find(image_look(copy))
            assert found is not None
            assert found[1] == str(number)


def text_page(seed: int) -> Image.Image:
    """A page of the layout that every other one has, too."""
    draw, image, font = random.Random(seed), Image.new("RGB", (1000, 1400), "white"), ImageFont.load_default(size=18)
    for y in range(70, 1330, 27):
        line = " ".join("".join(draw.choices("abcdefghinorstu", k=draw.randint(1, 9))) for _ in range(14))
        ImageDraw.Draw(image).text((70, y), line[:80], fill="black", font=font)
    return image


def test_a_page_is_told_from_many_of_its_layout_without_their_pictures() -> None:
    """To decode the nearest eight for each of some thousand pages took hours."""
    index, decoded = LookIndex(), []

    def look(number: int, image: Image.Image) -> Appearance:
        return replace(image_look(image), picture=lambda: decoded.append(number) or image)

    pages = [text_page(seed) for seed in range(10)]
    for number, image in enumerate(pages):
        assert index.find(look(number, image)) is None
        index.add(look(number, image), str(number))
    assert decoded == []
    for number in (0, 7):
        for copy in (again(pages[number], 0.5), again(pages[number], 1.4, quality=55)):
            found = index.find(look(100, copy))
            assert found is not None
            assert found[1] == str(number)
    assert set(decoded) == {100, 0, 7}


@pytest.mark.parametrize("solution", ["{}", "yes"])
def test_documents_with_other_words_are_no_duplicates(tmp_path: Path, solution: str) -> None:
    for number, image in enumerate(ALIKE):
        image.save(tmp_path / f"{number}.png")
    rows = [{"problem": "Read.", "solution": solution.format(f"s{n}"), "image": f"{n}.png"} for n in range(len(ALIKE))]
    report = check(write_lines(tmp_path / "d.jsonl", rows), clean=tmp_path / "clean")
    assert report.findings == []
    assert report.kept == len(ALIKE)


def test_the_solution_belongs_to_the_comparison(tmp_path: Path) -> None:
    picture(8, (200, 150)).save(tmp_path / "a.png")
    again(picture(8, (200, 150)), 0.9).save(tmp_path / "b.png")
    base = {"problem": "What?", "solution": "x"}
    rows = [
        base | {"image": "a.png"},
        base | {"image": "b.png", "solution": "y"},
        base | {"image": "a.png", "solution": "y"},
        base | {"image": "a.png", "system": "Answer in French."},
        base | {"image": "b.png", "solution": ["x", "z"]},
    ]
    report = check(write_lines(tmp_path / "d.jsonl", rows))
    assert [(f.kind, f.origin[-1]) for f in report.findings] == [("conflict", "3"), ("conflict", "5")]
    assert "asks what" in report.findings[0].message
    assert report.exit_code == 0


def test_evaluation_documents_that_only_look_alike_are_no_leaks(tmp_path: Path) -> None:
    for number, image in enumerate(ALIKE):
        image.save(tmp_path / f"{number}.png")
    again(ALIKE[3], 0.7).save(tmp_path / "copy.png")
    held_out = [{"problem": "R", "solution": "x", "image": f"{n}.png"} for n in (1, 3, 11)]
    rows = [{"problem": "R", "solution": "x", "image": f"{n}.png"} for n in (0, 2, 4, 10, "copy")]
    write_lines(tmp_path / "test.jsonl", held_out)
    report = check(write_lines(tmp_path / "d.jsonl", rows), evaluation=read_records(tmp_path / "test.jsonl"))
    assert [(f.kind, f.origin[-1]) for f in report.findings] == [("leak", "5")]


@pytest.mark.parametrize(
    ("boxes", "said"),
    [
        ([[64, 0, 90, 40]], "covers nothing of its 64x48 medium"),
        ([[0, 50, 64, 90]], "covers nothing of its 64x48 medium"),
        ([[-9, -9, 0, 0]], "covers nothing of its 64x48 medium"),
        ([[1, 1, 9, 9], {"x0": 120, "y0": 10, "x1": 130, "y1": 20, "medium": 1}], "covers nothing of its 100x50 medium"),
        ([{"x0": 1, "y0": 1, "x1": 9, "y1": 9, "medium": 2}], "field 'boxes': expected a box of one of the row's 2"),
        ([["1", "1", "9", "9"]], "field 'boxes': expected"),
        ([[1, 1, 1, 9]], "field 'boxes': expected"),
        ([[0, 0, 600, 500]], "box (0, 0, 600, 500) lies nearly all outside of its 64x48 medium"),  # thousandths, not pixels
        ([[10, 10, 1e300, 20]], "lies nearly all outside"),
        ([[0.2, 0.2, 0.4, 0.4]], "name the scale"),
    ],
)  # fmt: skip
def test_boxes_that_training_would_refuse_fail_the_check(media: Path, boxes: Any, said: str) -> None:
    row = {"problem": "?", "solution": "x", "images": ["a.png", "b.jpg"], "boxes": boxes}
    report = check(write_lines(media / "boxes.jsonl", [row]))
    assert report.exit_code == 1
    assert len(report.errors) == 1
    assert said in report.errors[0].message
    assert report.errors[0].message.startswith(f"{media / 'boxes.jsonl'}: line 1: ")
    good = row | {"boxes": [[-9, 40, 70, 99], {"x0": 90, "y0": 10, "x1": 130, "y1": 20, "medium": 1}]}
    assert check(write_lines(media / "boxes.jsonl", [good])).exit_code == 0  # what reaches beyond is cut off


def test_the_clean_copy_is_the_same_records_in_our_form(tmp_path: Path, media: Path) -> None:
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "<image>A dog?"},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "Which?"},
    ]
    rows = [
        {"messages": turns, "images": ["a.png"], "solution": ["a poodle", "poodle"], "bbox": [0.25, 0.5, 0.5, 1.0]},
        {"conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "<think>t</think>4"}], "n": 1},
    ]
    path = write_lines(media / "chat.jsonl", rows)
    report = check_records(
        lambda on_error: read_records(path, box_scale="unit", on_error=on_error), clean=tmp_path / "clean"
    )
    assert report.kept == 2
    original, copied = list(read_records(path, box_scale="unit")), list(read_records(tmp_path / "clean" / "data.jsonl"))
    for one, other in zip(original, copied, strict=True):
        assert one.extra == other.extra
        for name in ("problem", "solutions", "system", "history", "boxes", "trace", "problem_type", "options"):
            assert getattr(one, name) == getattr(other, name), name
