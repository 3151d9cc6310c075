from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ral.models.lora import lora_config
from tests.tiny import tiny_model


@dataclass(frozen=True)
class Task:
    peft: dict[str, Any] | None


def test_a_frozen_vision_tower_is_left_out_unless_the_task_says_where() -> None:
    seeing, reading = tiny_model("qwen2_5_vl"), tiny_model("qwen2")
    settings = {"r": 4, "target_modules": "all-linear"}
    assert lora_config(Task(None), seeing, True) is None

    def excluded(model: Any, freeze_vision: bool, **more: Any) -> Any:
        found = lora_config(Task(settings | more), model, freeze_vision)
        assert found is not None
        assert found.r == 4
        return found.exclude_modules

    assert excluded(seeing, True) == r".*\bvisual\b.*"
    assert excluded(seeing, True, exclude_modules="lm_head") == "lm_head"
    assert excluded(seeing, False) is None
    assert excluded(reading, True) is None
