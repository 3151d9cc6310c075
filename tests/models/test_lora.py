from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from experiments.families.zoo import VISION, tiny
from peft import get_peft_model

from ral.attention.models import decoder_layers, make_capturable, vision_tower
from ral.models.loading import refuse_adapter_of_frozen_vision
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

    assert excluded(seeing, True) == r"(model\.visual)(\..*)?"
    assert excluded(seeing, True, exclude_modules="lm_head") == "lm_head"
    assert excluded(seeing, False) is None
    assert excluded(reading, True) is None


@pytest.mark.parametrize("kind", VISION)
def test_the_tower_and_projector_of_every_family_are_left_out_and_the_decoder_is_not(kind: str) -> None:
    model = make_capturable(tiny(kind)[0])
    outside = {id(parameter) for parameter in vision_tower(model).parameters()}
    config = lora_config(Task({"r": 2, "target_modules": "all-linear"}), model, True)
    assert config is not None
    policy = get_peft_model(model, config)
    trained = {id(parameter) for parameter in policy.parameters() if parameter.requires_grad}
    assert outside == {id(parameter) for parameter in vision_tower(model).parameters()}, "nothing was added to it"
    assert trained <= {id(parameter) for parameter in model.get_decoder().parameters()}
    assert len(trained) >= 4 * len(decoder_layers(model)), "two matrices of every layer have an adapter at least"
    refuse_adapter_of_frozen_vision(model, True)
