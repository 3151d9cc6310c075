"""The seven video benchmarks of the paper, as lmms-eval 0.7.3 defines them.

Their tables are on the hub, their videos in archives beside them: unpack these and name the folder. A video is looked
for where lmms-eval unpacks it, then by its name alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean

from ral.data.record import Record
from ral.evaluate import metrics
from ral.evaluate.tasks.image import columns, lettered
from ral.evaluate.tasks.rows import TableRow
from ral.evaluate.tasks.task import HubTable, Scored, Task

# ------------------------------------------------------------------------------------------- LongVideoBench


def _longvideobench(row: TableRow) -> Record:
    options = [row.text(f"option{i}") for i in range(5) if row.values.get(f"option{i}") not in (None, "N/A")]
    path = row.text("video_path")
    return Record(
        id=row.text("id"),
        problem=row.text("question"),
        solution="ABCDE"[row.index("correct_choice", len(options))],
        problem_type="multiple choice",
        options=lettered(options),
        videos=(row.file("video_path", f"videos/{path}", path),),
        origin=row.origin,
        extra=columns(row, "duration_group", "question_category", video=path),
    )


# -------------------------------------------------------------------------------------------------- NExT-QA


def _nextqa(row: TableRow) -> Record:
    video = row.text("video")
    return Record(
        id=f"{video}_{row.text('qid')}",
        problem=row.text("question"),
        solution="ABCDE"[row.index("answer", 5)],
        problem_type="multiple choice",
        options=lettered([row.text(f"a{i}") for i in range(5)]),
        videos=(row.file("video", f"NExTVideo/{video}.mp4", f"{video}.mp4"),),
        origin=row.origin,
        extra=columns(row, "type", video=video),
    )


# -------------------------------------------------------------------------------------- VideoMME, VideoMMMU


def _videomme(row: TableRow) -> Record:
    options, video = row.texts("options"), row.text("videoID")
    return Record(
        id=row.text("question_id"),
        problem=row.text("question"),
        solution=row.letter("answer", len(options)),
        problem_type="multiple choice",
        options=options,  # lettered in the table
        videos=(row.file("videoID", f"data/{video}.mp4", f"{video}.mp4"),),
        origin=row.origin,
        extra=columns(row, "duration", "domain", "sub_category", "task_type", video=video),
    )


_IGNORE_QUIZ = "Please ignore the Quiz question in last frame of the video."
_APPLY = (
    "You should watch and learn the video content. Then apply what you learned to answer the following {} question. "
)
_IMAGE_AT_END = "The image for this question is at the end of the video."


def _videommmu(row: TableRow) -> Record:
    video, problem, track = row.text("id"), row.text("question"), row.config.lower()
    if track not in ("perception", "comprehension", "adaptation"):
        raise row.fail("config", f"a track of VideoMMMU, not {row.config!r}")
    open_ended = row.values.get("question_type") == "open" or not row.values.get("options")
    options = () if open_ended else row.texts("options")
    if not all(option.startswith(f"{letter}.") for letter, option in zip("ABCDEFGHIJ", options, strict=False)):
        options = lettered(options)
    if track == "adaptation":
        problem = _APPLY.format("open-ended" if open_ended else "multi-choice") + f"{_IMAGE_AT_END}\n{problem}"
    else:
        problem = f"{problem}\n{_IGNORE_QUIZ}"
    return Record(
        id=f"{track}-{video}",
        problem=problem,
        solution=row.text("answer") if open_ended else row.letter("answer", len(options)),
        problem_type="free-form" if open_ended else "multiple choice",
        options=options,
        videos=(row.file("id", f"{video}.mp4"),),
        origin=row.origin,
        extra={"track": track, "video": video},
    )


# -------------------------------------------------------------------------------------------------- LVBench


def _lvbench(row: TableRow) -> Record:
    path = row.text("video_path")
    # Where the table has no options of its own, they are the lines after the question: "(A) ...".
    lines = row.text("question").split("\n")[1:]
    options = lettered(row.texts("options")) if row.values.get("options") else ()
    choices = options or tuple(line for line in lines if line.startswith("("))
    return Record(
        id=str(row.values.get("uid", row.number)),
        problem=row.text("question"),
        solution=row.letter("answer", len(choices) or 4),
        problem_type="multiple choice",
        options=options,
        videos=(row.file("video_path", path),),
        origin=row.origin,
        extra=columns(row, "question_type", video=path, choices=choices or tuple("ABCD")),
    )


# -------------------------------------------------------------------------------------------------- MVBench

#: Sub-task → the folder of its videos, as the archives unpack.
MVBENCH_FOLDERS = {
    "action_antonym": "ssv2_video_mp4",
    "action_count": "perception/videos",
    "action_localization": "sta/sta_video_segment",
    "action_prediction": "star/Charades_segment",
    "action_sequence": "star/Charades_segment",
    "character_order": "perception/videos",
    "counterfactual_inference": "clevrer/video_validation",
    "egocentric_navigation": "vlnqa",
    "episodic_reasoning": "tvqa/video_fps3_hq_segment",
    "fine_grained_action": "Moments_in_Time_Raw/videos",
    "fine_grained_pose": "nturgbd_convert",
    "moving_attribute": "clevrer/video_validation",
    "moving_count": "clevrer/video_validation",
    "moving_direction": "clevrer/video_validation",
    "object_existence": "clevrer/video_validation",
    "object_interaction": "star/Charades_segment",
    "object_shuffle": "perception/videos",
    "scene_transition": "scene_qa/video",
    "state_change": "perception/videos",
    "unexpected_action": "FunQA_test/test",
}


def _mvbench(row: TableRow) -> Record:
    options, video = row.texts("candidates"), row.text("video")
    folder = MVBENCH_FOLDERS.get(row.config)
    if folder is None:
        raise row.fail("config", f"a sub-task of MVBench, not {row.config!r}")
    if row.text("answer") not in options:
        raise row.fail("answer", f"one of the candidates {options}")
    return Record(
        id=f"{row.config}-{row.number}",
        problem=row.text("question"),
        solution="ABCDEFGHIJ"[options.index(row.text("answer"))],
        problem_type="multiple choice",
        options=lettered(options),
        videos=(row.file("video", f"{folder}/{video}", f"data0613/{folder}/{video}", f"video/{folder}/{video}"),),
        origin=row.origin,
        extra={"sub_task": row.config, "video": f"{folder}/{video}"},
    )


def mvbench_answered(items: Sequence[Scored]) -> dict[str, float]:
    """`accuracy_answered`: the reference's accuracy, whose denominator leaves out empty predictions."""
    answered = [item.correct for item in items if item.prediction is not None]
    return {"accuracy_answered": mean(answered) if answered else 0.0, "empty": len(items) - len(answered)}


# ---------------------------------------------------------------------------------------------- TempCompass

_TEMPCOMPASS_HINTS = {
    "multi-choice": "Please directly give the best option:",
    "yes_no": "Please answer yes or no:",
    "caption_matching": "Please directly give the best option:",
}


def _tempcompass(row: TableRow) -> Record:
    track, video, question = row.config, row.text("video_id"), row.text("question")
    if track not in _TEMPCOMPASS_HINTS:
        raise row.fail("config", f"one of {', '.join(_TEMPCOMPASS_HINTS)}, not {track!r}")
    return Record(
        id=f"{track}-{row.number}",
        problem=f"{question}\n{_TEMPCOMPASS_HINTS[track]}",
        solution=row.text("answer"),
        videos=(row.file("video_id", f"videos/{video}.mp4", f"{video}.mp4"),),
        origin=row.origin,
        extra=columns(row, "dim", track=track, video=video, choices=tuple(question.split("\n")[1:])),
    )


VIDEO_TASKS = (
    Task(
        "longvideobench",
        HubTable("longvideobench/LongVideoBench", "validation", _longvideobench),
        metrics.choice(metrics.first_capital),
        groups=("duration_group", "question_category"),
        cluster="video",
        note="Without subtitles. Answers without a letter are unparsed, not guessed at random.",
    ),
    Task(
        "nextqa",
        HubTable("lmms-eval/NExTQA", "test", _nextqa, ("MC",)),
        metrics.choice(metrics.mmmu_letter),
        groups=("type",),
        cluster="video",
        note="Multiple choice. Answers without a letter are unparsed, not guessed at random as in the reference.",
    ),
    Task(
        "videomme",
        HubTable("lmms-eval/Video-MME", "test", _videomme),
        metrics.choice(metrics.ranked_letter),
        groups=("duration", "domain", "sub_category", "task_type"),
        cluster="video",
        note="Without subtitles.",
    ),
    Task(
        "videommmu",
        HubTable("lmms-eval/VideoMMMU", "test", _videommmu, ("Perception", "Comprehension", "Adaptation")),
        metrics.choice_or_open(metrics.ranked_letter),
        groups=("track",),
        cluster="video",
    ),
    Task(
        "lvbench",
        HubTable("lmms-eval/LVBench", "train", _lvbench),
        metrics.choice(metrics.ranked_letter),
        groups=("question_type",),
        cluster="video",
    ),
    Task(
        "mvbench",
        HubTable("OpenGVLab/MVBench", "train", _mvbench, tuple(MVBENCH_FOLDERS)),
        metrics.choice(metrics.lone_letter),
        groups=("sub_task",),
        cluster="video",
        figures=mvbench_answered,
        note="accuracy counts empty predictions as wrong; accuracy_answered leaves them out, as the reference does.",
    ),
    Task(
        "tempcompass",
        HubTable("lmms-eval/TempCompass", "test", _tempcompass, tuple(_TEMPCOMPASS_HINTS)),
        metrics.tempcompass,
        groups=("track", "dim"),
        cluster="video",
        note="The three tracks with rules; answers that the reference hands to a judge model are unparsed.",
    ),
)
