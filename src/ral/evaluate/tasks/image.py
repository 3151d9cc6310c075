"""The eight image benchmarks of the paper, as lmms-eval 0.7.3 defines them.

Every record carries the benchmark's question and options; how to answer (option letter, short text, thinking or not)
is asked for by the prompt of training, so that both are the same.
"""

from __future__ import annotations

import re
import string
from collections import Counter, defaultdict
from collections.abc import Sequence

from ral.data.record import Record
from ral.evaluate import metrics
from ral.evaluate.tasks.rows import TableRow
from ral.evaluate.tasks.task import HubTable, Scored, Task, accuracy_by


def lettered(options: Sequence[str]) -> tuple[str, ...]:
    """Options as "A. red", "B. blue", ..."""
    return tuple(f"{letter}. {text}" for letter, text in zip(string.ascii_uppercase, options, strict=False))


def columns(row: TableRow, *names: str, **more: object) -> dict[str, object]:
    """The existing ones of these columns, for `Record.extra`."""
    return {name: row.values[name] for name in names if row.values.get(name) is not None} | more


# ------------------------------------------------------------------------------------------------------- V*

_INLINE_OPTION = re.compile(r"\(([A-Z])\)\s*(.*?)\s*(?=\([A-Z]\)|$)", re.DOTALL)


def _vstar(row: TableRow) -> Record:
    text = row.text("text").removesuffix("Answer with the option's letter from the given choices directly.")
    question, mark, rest = text.partition("(A)")
    options = [option for _, option in _INLINE_OPTION.findall(mark + rest)]
    if len(options) < 2:
        raise row.fail("text", "a question with the options (A), (B), ... in it")
    return Record(
        id=f"{row.text('category')}-{row.text('question_id')}",
        problem=question.strip(),
        solution=row.letter("label", len(options)),
        problem_type="multiple choice",
        options=lettered(options),
        images=(row.image("image"),),
        origin=row.origin,
        extra=columns(row, "category"),
    )


# ------------------------------------------------------------------------------------------------- MMMU-Pro


def _mmmu_pro(row: TableRow) -> Record:
    options = row.texts("options")
    if "question" in row.values:
        track, problem, shown = "standard", row.text("question"), lettered(options)
        # As in the reference, images come first, and the text refers to them as "<image 1>".
        referred = sorted(set(re.findall(r"<image (\d+)>", "\n".join((problem, *shown)))), key=int)
        images = tuple(row.image(f"image_{number}") for number in referred)
    else:
        track, problem, shown = "vision", "Answer the multiple-choice question in the image.", ()
        images = (row.image("image"),)
    return Record(
        id=f"{track}-{row.text('id')}",
        problem=problem,
        solution=row.letter("answer", len(options)),
        problem_type="multiple choice",
        options=shown,
        images=images,
        origin=row.origin,
        extra=columns(row, "subject", track=track, choices=lettered(options)),
    )


# ------------------------------------------------------------------------------------------------------ MME

PERCEPTION = frozenset(
    ["existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR"]
)


def _mme(row: TableRow) -> Record:
    if row.text("answer").lower().rstrip(".") not in ("yes", "no"):
        raise row.fail("answer", "Yes or No")
    return Record(
        id=str(row.number),
        problem=row.text("question"),
        solution=row.text("answer").rstrip("."),
        images=(row.image("image"),),
        origin=row.origin,
        extra=columns(row, "category", pair=f"{row.text('category')}/{row.text('question_id')}"),
    )


def mme_score(items: Sequence[Scored]) -> dict[str, float]:
    """`score`, out of 2800: the sum over categories of acc + acc⁺, in per cent; also by perception and cognition.

    acc is over questions, acc⁺ over images: both questions about one right. Images of which a question is missing (a
    run on part of the data) are left out and counted in `unpaired`.
    """
    images = defaultdict(list)
    for item in items:
        images[item.groups["category"][0], item.cluster].append(item.correct)
    points = defaultdict(list)
    for (category, _), scores in images.items():
        if len(scores) == 2:
            points[category].append(50 * sum(scores) + 100 * (sum(scores) == 2))
    totals = {category: sum(values) / len(values) for category, values in points.items()}
    perception = sum(total for category, total in totals.items() if category in PERCEPTION)
    cognition = sum(total for category, total in totals.items() if category not in PERCEPTION)
    return {
        "score": perception + cognition,
        "perception": perception,
        "cognition": cognition,
        "unpaired": sum(len(scores) != 2 for scores in images.values()),
        **{f"score/{category}": total for category, total in sorted(totals.items())},
    }


# ------------------------------------------------------------------------------------------- ChartQA, VizWiz


def _chartqa(row: TableRow) -> Record:
    return Record(
        id=str(row.number),
        problem=row.text("question"),
        solution=row.text("answer"),
        images=(row.image("image"),),
        origin=row.origin,
        extra=columns(row, "type"),
    )


def _vizwiz(row: TableRow) -> Record:
    answers = row.texts("answers")
    hint = "When the provided information is insufficient, respond with 'Unanswerable'."
    return Record(
        id=row.text("question_id"),
        problem=f"{row.text('question').capitalize()}\n{hint}",
        solution=Counter(answers).most_common(1)[0][0],
        images=(row.image("image"),),
        origin=row.origin,
        extra=columns(row, "category", answers=answers),
    )


# ------------------------------------------------------------------------------- MuirBench, BLINK, CV-Bench


def _muirbench(row: TableRow) -> Record:
    options = row.texts("options")
    return Record(
        id=row.text("idx"),
        problem=row.text("question"),
        solution=row.letter("answer", len(options)),
        problem_type="multiple choice",
        options=lettered(options),
        images=row.images("image_list"),
        origin=row.origin,
        extra=columns(row, "task", "image_relation", "image_type"),
    )


def _in_prompt(row: TableRow, images: tuple, *groups: str) -> Record:
    """BLINK and CV-Bench write their options into the column `prompt`."""
    options = row.texts("choices")
    return Record(
        id=row.text("idx"),
        problem=row.text("prompt"),
        solution=row.letter("answer", len(options)),
        problem_type="multiple choice",
        images=images,
        origin=row.origin,
        extra=columns(row, *groups, choices=lettered(options)),
    )


def _blink(row: TableRow) -> Record:
    names = [name for name in (f"image_{i}" for i in range(1, 9)) if row.values.get(name) is not None]
    return _in_prompt(row, tuple(row.image(name) for name in names), "sub_task")


def _cv_bench(row: TableRow) -> Record:
    return _in_prompt(row, (row.image("image"),), "type", "task", "source")


def cv_bench_score(items: Sequence[Scored]) -> dict[str, float]:
    """`score`, the benchmark's own average: half for 2D, the mean of ADE20K and COCO, and half for 3D (Omni3D)."""
    by_source = accuracy_by(items, "source")
    if not {"ADE20K", "COCO", "Omni3D"} <= by_source.keys():
        return {}
    return {"score": ((by_source["ADE20K"] + by_source["COCO"]) / 2 + by_source["Omni3D"]) / 2}


BLINK_CONFIGS = (
    "Art_Style",
    "Counting",
    "Forensic_Detection",
    "Functional_Correspondence",
    "IQ_Test",
    "Jigsaw",
    "Multi-view_Reasoning",
    "Object_Localization",
    "Relative_Depth",
    "Relative_Reflectance",
    "Semantic_Correspondence",
    "Spatial_Relation",
    "Visual_Correspondence",
    "Visual_Similarity",
)

IMAGE_TASKS = (
    Task(
        "vstar",
        HubTable("lmms-lab-encoder/vstar-bench", "test", _vstar),
        metrics.choice(metrics.searched_letter),
        groups=("category",),
    ),
    Task(
        "mmmu-pro",
        HubTable("MMMU/MMMU_Pro", "test", _mmmu_pro, ("standard (10 options)", "vision")),
        metrics.mmmu_pro,
        groups=("track", "subject"),
        main="track/mean",
        note="Answers without a letter are unparsed, not guessed at random; the vision track takes the letter alone.",
    ),
    Task(
        "mme",
        HubTable("lmms-lab-encoder/MME", "test", _mme),
        metrics.yes_no,
        groups=("category",),
        cluster="pair",
        figures=mme_score,
        main="score",
        highest=2800.0,
        note="The score is the sum over categories of acc + acc⁺ in per cent.",
    ),
    Task(
        "muirbench",
        HubTable("MUIRBENCH/MUIRBENCH", "test", _muirbench),
        metrics.choice(metrics.letter_with_period),
        groups=("task", "image_relation", "image_type"),
    ),
    Task("chartqa", HubTable("lmms-lab-encoder/ChartQA", "test", _chartqa), metrics.relaxed, groups=("type",)),
    Task(
        "vizwiz",
        HubTable("lmms-lab-encoder/VizWiz-VQA", "val", _vizwiz),
        metrics.vqa_accuracy,
        groups=("category",),
        note="The validation split: the answers of the test split are not public.",
    ),
    Task(
        "blink",
        HubTable("BLINK-Benchmark/BLINK", "val", _blink, BLINK_CONFIGS),
        metrics.choice(metrics.announced_letter),
        groups=("sub_task",),
        note="The validation split: the answers of the test split are not public.",
    ),
    Task(
        "cv-bench",
        HubTable("nyu-visionx/CV-Bench", "test", _cv_bench),
        metrics.choice(metrics.leading_letter),
        groups=("type", "task", "source"),
        figures=cv_bench_score,
        main="score",
        note="The score counts 2D and 3D alike.",
    ),
)
