"""Formats with messages: earlier turns are context, and the last reply is the worked example."""

from __future__ import annotations

from dataclasses import replace

from ral.data.dialogue import Dialogue
from ral.data.fields import Fields
from ral.data.formats.format import Format
from ral.data.record import ProblemType, Record
from ral.data.values import short

_ANSWER = ("solution", "solutions", "answer", "answers", "ground_truth")
#: VLM-R1's `accu_reward_method`, where it says what kind of answer is meant.
_METHODS: dict[str, ProblemType] = {"mcq": "multiple choice", "math": "math", "numeric": "numerical", "iou": "box"}


def _verl(row: Fields) -> Record:
    dialogue = replace(row.dialogue("prompt"), conversational=False)  # verl's rewards get texts
    reward_model = row.row.get("reward_model")
    if not isinstance(reward_model, dict):
        raise row.fail("reward_model", f"an object with `ground_truth`, found {short(reward_model)}")
    row.row["reward_model.ground_truth"] = reward_model.get("ground_truth")
    return row.asked(dialogue, row.answers("reward_model.ground_truth"))


def _vlm_r1(row: Fields) -> Record:
    kind = _METHODS.get(str(row.row.get("accu_reward_method")))
    return row.asked(row.dialogue("conversations"), _stated(row), kind)


def _messages(row: Fields) -> Record:
    return row.asked(row.dialogue("messages"), _stated(row))


def _trl(row: Fields) -> Record:
    dialogue = row.dialogue("prompt")
    if row.has("completion"):
        dialogue = _completed(row, dialogue)
    # TRL leaves the answer to the reward functions, so there may be none under a name that we know.
    return row.asked(dialogue, _stated(row) or (None if dialogue.reply else [""]))


def _completed(row: Fields, prompt: Dialogue) -> Dialogue:
    """A prompt with the worked reply of TRL's prompt-completion data."""
    given = row.take("completion")
    turns = [{"role": "assistant", "content": given}] if isinstance(given, str) else given
    row.row["completion"] = [{"role": "user", "content": "?"}, *turns] if isinstance(turns, list) else given
    worked = row.dialogue("completion")
    return replace(prompt, trace=worked.trace, reply=worked.reply)


def _stated(row: Fields) -> tuple[str, ...] | None:
    """The answers in a column of their own, if there is one."""
    return row.answers(*_ANSWER) if row.has(*_ANSWER) else None


VERL = Format("verl", lambda row: {"prompt", "reward_model"} <= row.keys(), _verl)
VLM_R1 = Format("vlm-r1", lambda row: "conversations" in row, _vlm_r1)
TRL = Format("trl", lambda row: "prompt" in row, _trl)
MESSAGES = Format("messages", lambda row: "messages" in row, _messages)
