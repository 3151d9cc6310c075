from __future__ import annotations

import io
import json

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from ral.data.prompt import build_messages
from ral.data.record import Record
from ral.errors import DataError
from ral.evaluate.tasks import BENCHMARKS, Scored
from ral.evaluate.tasks.image import cv_bench_score, mme_score
from ral.evaluate.tasks.video import mvbench_answered


def png(color: str = "red") -> dict:
    file = io.BytesIO()
    Image.new("RGB", (6, 4), color).save(file, "png")
    return {"bytes": file.getvalue(), "path": None}


# One row of each benchmark with the columns of its table on the hub; `config` stands for the sub-table.
ROWS: dict[str, list[dict]] = {
    "vstar": [
        {
            "image": png(),
            "text": "What is the glove made of?\n(A) rubber\n(B) cotton (raw)\nAnswer with the option's letter from "
            "the given choices directly.",
            "category": "direct_attributes",
            "label": "B",
            "question_id": "0",
        }
    ],
    "mmmu-pro": [
        {
            "id": "test_Art_1",
            "question": "Which is older, <image 2> or <image 1>?",
            "options": "['one', 'the other']",
            "answer": "B",
            "subject": "Art",
            "image_1": png("red"),
            "image_2": png("blue"),
        },
        {"id": "test_Art_1", "options": "['x', 'y']", "answer": "A", "subject": "Art", "image": png()},
    ],
    "mme": [
        {
            "question_id": "OCR/1.png",
            "image": png(),
            "question": "Is it red? Please answer yes or no.",
            "answer": "Yes",
            "category": "OCR",
        }
    ],
    "muirbench": [
        {
            "idx": 3,
            "task": "Counting",
            "image_relation": "Partial",
            "image_type": "photo",
            "question": "How many in <image> and <image>?",
            "options": ["1", "2"],
            "answer": "A",
            "image_list": [png(), png()],
        }
    ],
    "chartqa": [{"image": png(), "question": "How much?", "answer": "14", "type": "human_test"}],
    "vizwiz": [
        {
            "question_id": "VizWiz_val_0.jpg",
            "image": png(),
            "question": "what is this?",
            "answers": ["cola", "cola", "can"],
            "category": "other",
        }
    ],
    "blink": [
        {
            "idx": "val_Counting_1",
            "sub_task": "Counting",
            "prompt": "How many?\nSelect from the following choices.\n(A) 1\n(B) 2",
            "image_1": png(),
            "image_2": None,
            "answer": "(B)",
            "choices": ["1", "2"],
        }
    ],
    "cv-bench": [
        {
            "idx": 0,
            "type": "2D",
            "task": "Count",
            "source": "COCO",
            "prompt": "How many?\nSelect from the following choices.\n(A) 1\n(B) 2",
            "image": png(),
            "answer": "(B)",
            "choices": ["1", "2"],
        }
    ],
    "longvideobench": [
        {
            "id": "v_0",
            "video_path": "v.mp4",
            "question": "Which?",
            **{f"option{i}": text for i, text in enumerate(["x", "y", "z", "N/A", "N/A"])},
            "correct_choice": 2,
            "duration_group": 15,
            "question_category": "S2E",
        }
    ],
    "nextqa": [
        {
            "video": "v",
            "qid": 6,
            "type": "CW",
            "question": "why?",
            "answer": 4,
            **{f"a{i}": text for i, text in enumerate("pqrst")},
        }
    ],
    "videomme": [
        {
            "question_id": "001-1",
            "videoID": "v",
            "duration": "short",
            "domain": "Knowledge",
            "sub_category": "Law",
            "task_type": "OCR",
            "question": "Which?",
            "options": ["A. x", "B. y", "C. z", "D. w"],
            "answer": "C",
        }
    ],
    "videommmu": [
        {
            "config": "Adaptation",
            "id": "v",
            "question": "How much?",
            "options": [],
            "answer": "3.14",
            "question_type": "open",
        },
        {
            "config": "Perception",
            "id": "v",
            "question": "Which?",
            "options": ["A. x", "B. y"],
            "answer": "B",
            "question_type": "multiple-choice",
        },
    ],
    "lvbench": [
        {
            "uid": "7",
            "video_path": "v.mp4",
            "question": "What year?\n(A) 1636\n(B) 1366",
            "answer": "B",
            "question_type": ["entity", "key information"],
        }
    ],
    "mvbench": [
        {
            "config": "state_change",
            "video": "v.mp4",
            "question": "What?",
            "candidates": ["up", "down"],
            "answer": "down",
        }
    ],
    "tempcompass": [
        {
            "config": "multi-choice",
            "video_id": "v",
            "question": "What?\nA. up\nB. down",
            "answer": "B. down",
            "dim": "direction",
        },
        {"config": "yes_no", "video_id": "v", "question": "Is it up?", "answer": "no", "dim": "direction"},
    ],
}


@pytest.fixture
def media(tmp_path):
    folder = tmp_path / "media" / "some" / "folder"
    folder.mkdir(parents=True)
    (folder / "v.mp4").write_bytes(b"video")
    return tmp_path / "media"


def write(path, rows):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def records(name, media) -> list[Record]:
    """Each row in a file of its own, as the columns of sub-tables differ."""
    return [
        record
        for number, row in enumerate(ROWS[name])
        for record in BENCHMARKS[name].records(write(media / f"{name}-{number}.parquet", [row]), media)
    ]


def test_the_fifteen_benchmarks_are_there():
    assert list(BENCHMARKS) == list(ROWS)
    assert len(BENCHMARKS) == 15


@pytest.mark.parametrize("name", ROWS)
def test_rows_become_records_that_score_themselves(name, media):
    task = BENCHMARKS[name]
    items = []
    for record in records(name, media):
        assert record.origin.endswith("row 1")
        assert len(record.images) + len(record.videos) >= 1
        assert all(path.name == "v.mp4" and path.is_file() for path in record.videos)
        assert build_messages(record, think=True)
        right = 4 / 9 if name == "vizwiz" else 1.0  # two of three annotators: (1/3 + 1/3 + 2/3) / 3
        for completion in (record.solution, f"<think>Not Z.</think><answer> {record.solution} </answer>"):
            for mode in ("compat", "strict"):
                assert task.score(record, completion, mode=mode) == pytest.approx(right)
        assert task.score(record, "<think>still thinking", mode="strict") is None
        assert task.score(record, record.solution, think=True) is None
        items.append(task.judge(record, record.solution))
        assert task.majority([record]) == (record.solution, pytest.approx(right))
        # Every kind of heading the task reports by is in its table.
        assert all(items[-1].groups[group] for group in task.groups)
    figures = task.aggregate([*items, *(Scored(i.id + "x", None, None, "x", i.groups) for i in items)])
    assert figures["accuracy"] == pytest.approx(right / 2)
    assert figures["n"] == 2 * len(items)
    assert figures["unparsed"] == len(items)
    assert task.main in figures or not task.figures(items)  # some need rows of every source


# Of each row: id, problem type, solution, and what is reported by and kept for the scorer.
READ = [
    ("vstar", "direct_attributes-0", "multiple choice", "B", {"category": "direct_attributes"}),
    (
        "mmmu-pro",
        "standard-test_Art_1",
        "multiple choice",
        "B",
        {"subject": "Art", "track": "standard", "choices": ("A. one", "B. the other")},
    ),
    (
        "mmmu-pro",
        "vision-test_Art_1",
        "multiple choice",
        "A",
        {"subject": "Art", "track": "vision", "choices": ("A. x", "B. y")},
    ),
    ("mme", "1", "free-form", "Yes", {"category": "OCR", "pair": "OCR/OCR/1.png"}),
    (
        "muirbench",
        "3",
        "multiple choice",
        "A",
        {"task": "Counting", "image_relation": "Partial", "image_type": "photo"},
    ),
    ("chartqa", "1", "free-form", "14", {"type": "human_test"}),
    ("vizwiz", "VizWiz_val_0.jpg", "free-form", "cola", {"category": "other", "answers": ("cola", "cola", "can")}),
    ("blink", "val_Counting_1", "multiple choice", "B", {"sub_task": "Counting", "choices": ("A. 1", "B. 2")}),
    (
        "cv-bench",
        "0",
        "multiple choice",
        "B",
        {"type": "2D", "task": "Count", "source": "COCO", "choices": ("A. 1", "B. 2")},
    ),
    (
        "longvideobench",
        "v_0",
        "multiple choice",
        "C",
        {"duration_group": 15, "question_category": "S2E", "video": "v.mp4"},
    ),
    ("nextqa", "v_6", "multiple choice", "E", {"type": "CW", "video": "v"}),
    (
        "videomme",
        "001-1",
        "multiple choice",
        "C",
        {"duration": "short", "domain": "Knowledge", "sub_category": "Law", "task_type": "OCR", "video": "v"},
    ),
    ("videommmu", "adaptation-v", "free-form", "3.14", {"track": "adaptation", "video": "v"}),
    ("videommmu", "perception-v", "multiple choice", "B", {"track": "perception", "video": "v"}),
    (
        "lvbench",
        "7",
        "multiple choice",
        "B",
        {"question_type": ["entity", "key information"], "video": "v.mp4", "choices": ("(A) 1636", "(B) 1366")},
    ),
    (
        "mvbench",
        "state_change-1",
        "multiple choice",
        "B",
        {"sub_task": "state_change", "video": "perception/videos/v.mp4"},
    ),
    (
        "tempcompass",
        "multi-choice-1",
        "free-form",
        "B. down",
        {"dim": "direction", "track": "multi-choice", "video": "v", "choices": ("A. up", "B. down")},
    ),
    (
        "tempcompass",
        "yes_no-1",
        "free-form",
        "no",
        {"dim": "direction", "track": "yes_no", "video": "v", "choices": ()},
    ),
]


def test_rows_are_read_with_all_that_is_reported_by(media):
    found = [
        (name, record.id, record.problem_type, record.solution, record.extra)
        for name in ROWS
        for record in records(name, media)
    ]
    assert found == READ
    clusters = {name: BENCHMARKS[name].cluster for name in ROWS}
    images = {name: "pair" if name == "mme" else "" for name in list(ROWS)[:8]}
    assert clusters == images | dict.fromkeys(list(ROWS)[8:], "video")


def test_what_the_model_is_shown(media):
    [vstar] = records("vstar", media)
    assert (vstar.problem, vstar.options) == ("What is the glove made of?", ("A. rubber", "B. cotton (raw)"))
    standard, vision = records("mmmu-pro", media)
    assert [image.convert("RGB").getpixel((0, 0)) for image in standard.images] == [(255, 0, 0), (0, 0, 255)]
    assert (standard.id, vision.id, vision.options) == ("standard-test_Art_1", "vision-test_Art_1", ())
    [muir] = records("muirbench", media)
    assert [part["type"] for part in build_messages(muir, think=False)[0]["content"]].count("image") == 2
    [vizwiz] = records("vizwiz", media)
    assert vizwiz.problem.startswith("What is this?\nWhen the provided information is insufficient")
    [blink] = records("blink", media)
    assert (blink.options, len(blink.images)) == ((), 1)
    [long] = records("longvideobench", media)
    assert (long.options, long.solution) == (("A. x", "B. y", "C. z"), "C")
    open_, perception = records("videommmu", media)
    assert open_.problem.startswith("You should watch and learn the video content.")
    assert open_.problem.endswith("at the end of the video.\nHow much?")
    assert perception.problem == "Which?\nPlease ignore the Quiz question in last frame of the video."
    assert perception.options == ("A. x", "B. y")
    [lvbench] = records("lvbench", media)
    assert BENCHMARKS["lvbench"].judge(lvbench, "1366", mode="strict").groups["question_type"] == (
        "entity",
        "key information",
    )
    assert BENCHMARKS["lvbench"].score(lvbench, "1366", mode="strict") == 1.0


def mme_item(category, image, score):
    return Scored(f"{category}{image}{score}", score, "x", f"{category}/{image}", {"category": (category,)})


def test_mme_adds_accuracy_per_question_and_per_image():
    items = [
        *[mme_item("count", 1, s) for s in (1.0, 1.0)],  # 100 + 100
        *[mme_item("count", 2, s) for s in (1.0, 0.0)],  # 50 + 0
        *[mme_item("code_reasoning", 1, s) for s in (0.0, None)],  # an unparsed answer is wrong
        *[mme_item("code_reasoning", 2, s) for s in (1.0, 1.0)],
        mme_item("count", 3, 1.0),  # its second question was not asked
    ]
    assert mme_score(items) == {
        "score": 225.0,
        "perception": 125.0,
        "cognition": 100.0,
        "unpaired": 1,
        "score/code_reasoning": 100.0,
        "score/count": 125.0,
    }
    categories = ["existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork"]
    categories += ["OCR", "commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning"]
    best = mme_score([mme_item(category, 1, 1.0) for category in categories for _ in range(2)])
    assert (best["score"], best["perception"], best["cognition"]) == (2800, 2000, 800)


def test_mvbench_has_both_denominators():
    def item(score, prediction):
        return Scored("1", score, prediction, groups={"sub_task": ("state_change",)})

    items = [item(1.0, "A"), item(0.0, "B"), item(None, None), item(None, "no letter")]
    assert mvbench_answered(items) == {"accuracy_answered": pytest.approx(1 / 3), "empty": 1}
    figures = BENCHMARKS["mvbench"].aggregate(items)
    assert (figures["accuracy"], figures["unparsed"]) == (0.25, 2)
    assert mvbench_answered([item(None, None)]) == {"accuracy_answered": 0.0, "empty": 1}


def test_cv_bench_weighs_2d_and_3d_alike():
    scores = {"ADE20K": [1, 0], "COCO": [1, 1], "Omni3D": [0, 0, 0, 1]}
    items = [
        Scored("1", float(s), "A", groups={"source": (source,)}) for source, values in scores.items() for s in values
    ]
    assert cv_bench_score(items) == {"score": (0.75 + 0.25) / 2}
    assert cv_bench_score(items[:4]) == {}


def test_nextqa_never_guesses(media):
    [record] = records("nextqa", media)
    assert [BENCHMARKS["nextqa"].score(record, "I do not know") for _ in range(50)] == [None] * 50


def test_means_over_groups_differ_from_the_mean_over_items():
    def item(score, group):
        return Scored("1", score, "A", groups={"sub_task": (group,)})

    figures = BENCHMARKS["blink"].aggregate([item(1.0, "Counting"), item(0.0, "Jigsaw"), item(0.0, "Jigsaw")])
    assert figures["accuracy"] == pytest.approx(1 / 3)
    assert figures["sub_task/mean"] == 0.5
    assert figures["sub_task/Jigsaw"] == 0.0
    with pytest.raises(DataError, match="blink: no items"):
        BENCHMARKS["blink"].aggregate([])


def test_local_copy_of_a_repository_with_sub_tables(media):
    folder = media / "MVBench"
    (folder / "json").mkdir(parents=True)
    task = BENCHMARKS["mvbench"]
    row = {key: value for key, value in ROWS["mvbench"][0].items() if key != "config"}
    for config in task.source.configs:
        (folder / "json" / f"{config}.json").write_text(json.dumps([row]), encoding="utf-8")
    with pytest.raises(DataError, match=r"'video': expected a file in .* 'ssv2_video_mp4/v.mp4' is not there"):
        list(task.records(folder))
    found = list(task.records(folder, media))
    assert len({record.id for record in found}) == 20
    assert {record.extra["sub_task"] for record in found} == set(task.source.configs)
    (folder / "json" / "action_count.json").unlink()
    with pytest.raises(DataError, match="no folder or file of the sub-table 'action_count'"):
        list(task.records(folder, media))


def test_videos_are_found_where_the_archives_put_them(media):
    path = write(media / "t.parquet", ROWS["mvbench"])
    other = media / "perception" / "videos"
    other.mkdir(parents=True)
    (other / "v.mp4").write_bytes(b"")
    [record] = BENCHMARKS["mvbench"].records(path)
    assert record.videos == (other.resolve() / "v.mp4",)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("vstar", {"label": "C"}, r"row 1: column 'label': expected a letter of 2 options, found 'C'"),
        ("vstar", {"text": "What?"}, r"column 'text': expected a question with the options"),
        ("vstar", {"image": None}, r"column 'image': expected an image, found None"),
        ("mme", {"answer": "maybe"}, r"column 'answer': expected Yes or No"),
        ("chartqa", {"answer": None}, r"column 'answer': expected a text"),
        ("blink", {"choices": None}, r"column 'choices': expected a list of texts"),
        ("mmmu-pro", {"options": "[one"}, r"column 'options': expected a list of texts"),
        ("longvideobench", {"correct_choice": 3}, r"expected a number from 0 to 2, found 3"),
        ("nextqa", {"answer": None}, r"expected a number from 0 to 4"),
        ("mvbench", {"answer": "left"}, r"expected one of the candidates"),
        ("mvbench", {"config": "juggling"}, r"a sub-task of MVBench, not 'juggling'"),
        ("tempcompass", {"config": "captioning"}, r"not 'captioning'"),
        ("videommmu", {"config": ""}, r"a track of VideoMMMU"),
        ("longvideobench", {"video_path": "../../outside.mp4"}, r"is not there"),
    ],
)
def test_rows_of_another_table_are_refused_by_row_and_column(name, change, message, media):
    (media.parent / "outside.mp4").write_bytes(b"")
    path = write(media / "t.parquet", [ROWS[name][0] | change])
    with pytest.raises(DataError, match=message):
        list(BENCHMARKS[name].records(path, media))


def test_videos_outside_the_table_need_a_folder(tmp_path, media):
    table = tmp_path / "alone"
    table.mkdir()
    path = write(table / "t.parquet", ROWS["nextqa"])
    with pytest.raises(DataError, match=r"a file in .*alone, but 'NExTVideo/v.mp4' is not there, .*; unpack"):
        list(BENCHMARKS["nextqa"].records(path))
