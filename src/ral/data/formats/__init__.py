"""Data formats of other packages, read into `Record`s without changes to the data.

The fields of a row decide its format; the first format that knows them reads the row:

| format      | fields that tell it apart              | answer                            | media                              |
|-------------|----------------------------------------|-----------------------------------|------------------------------------|
| video-r1    | `problem`, `path`, `data_type`         | `solution`                        | `path`                             |
| verl        | `prompt`, `reward_model`               | `reward_model.ground_truth`       | `images`, `videos`                 |
| visual-cot  | `bboxs`, `width`, `height`             | `answer`, `possible_answers`      | `image`; boxes in pixels           |
| vlm-r1      | `conversations` (sharegpt, LLaVA, too) | `solution`, or the last gpt turn  | `image` (one or a list), `videos`  |
| saliency-r1 | `problem`, `dataset`, `bbox` as a text | `solution`                        | `image`; boxes as shares           |
| columns     | `problem` (EasyR1, R1-V, our own)      | `solution` or `answer`            | `image(s)`, `video(s)`             |
| trl         | `prompt` (text or messages)            | `solution` or `answer`            | `image(s)`, `video(s)`             |
| messages    | `messages` (OpenAI, ms-swift, LLaMA-Factory) | `solution`, or the last reply | in the messages, or as `columns` |
| columns     | `question` or `query` (EASE, CSV)      | `answer` or `response`            | `image(s)`, `image_path`, `video(s)` |

All other fields go to `Record.extra`, from where reward functions get them.
"""

from __future__ import annotations

from ral.data.formats.chat import MESSAGES, TRL, VERL, VLM_R1
from ral.data.formats.flat import COLUMNS, SALIENCY_R1, VIDEO_R1, VISUAL_COT
from ral.data.formats.format import Format, Row

__all__ = ["FORMATS", "Format", "detect_format"]

#: Formats by name, in the order in which they are asked.
FORMATS: dict[str, Format] = {
    form.name: form for form in (VIDEO_R1, VERL, VISUAL_COT, VLM_R1, SALIENCY_R1, COLUMNS, TRL, MESSAGES)
}


def detect_format(row: Row) -> str | None:
    """Name of the format that the fields of `row` tell of; None if they tell of none."""
    return next((name for name, form in FORMATS.items() if form.tells(row)), None)
