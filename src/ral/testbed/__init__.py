"""The testbed: a real, small vision-language model and tasks with known boxes, all inside the package."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor


def start_checkpoint() -> Path:
    """The folder of the shipped start checkpoint (model and processor), made by `experiments/testbed/pretrain.py`."""
    return Path(__file__).parent / "assets" / "start"


def teacher_checkpoint() -> Path:
    """The folder of the shipped teacher of the ring search, made by `recipes/testbed/teacher.yaml`."""
    return Path(__file__).parent / "assets" / "rings-teacher"


#: The shipped checkpoints, by the names that recipes and commands give them.
SHIPPED = {"start": start_checkpoint(), "rings-teacher": teacher_checkpoint()}


def model_name(name: str) -> str:
    """A folder or hub id, as it is; the names in `SHIPPED` are the shipped checkpoints."""
    return str(SHIPPED.get(name, name))


def load_start() -> tuple[Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor]:
    """The shipped start model, in evaluation mode and float32, and its processor; needs no network."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder = start_checkpoint()
    model = AutoModelForImageTextToText.from_pretrained(folder, local_files_only=True)
    return model.eval(), AutoProcessor.from_pretrained(folder, local_files_only=True)
