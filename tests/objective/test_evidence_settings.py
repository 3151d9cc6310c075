"""Settings of evidence and of the rivals: what would do nothing, or something else, is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ral.config import RALConfig
from ral.errors import ConfigError

EVIDENCE = {"attention_anchor": "evidence"}


def config(folder: Path, **changes: Any) -> RALConfig:
    return RALConfig(output_dir=str(folder), use_cpu=True, **changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"evidence_control": "centre"}, "evidence_control='centre' does nothing with attention_anchor='old'"),
        ({"evidence_target": "mixture", "evidence_from": "masking", **EVIDENCE}, "evidence_from='masking' finds none"),
        ({"evidence_target": "mixture", "evidence_divergence": "kl", **EVIDENCE}, "set attention_keys='visual'"),
        ({"evidence_control": "rolled", "evidence_from": "masking", **EVIDENCE}, "has none of this kind"),
        ({"evidence_control": "shuffled", "evidence_from": "completion", **EVIDENCE}, "has none of this kind"),
        ({"evidence_control": "shuffled", **EVIDENCE}, "at least twice num_generations"),
        ({"evidence_rows": "last", **EVIDENCE}, "evidence_rows='last' is not known; choose one of answer, all, first"),
        (
            {"evidence_box_space": "percent", "evidence_from": "completion", **EVIDENCE},
            "evidence_box_space='percent' is not known; choose one of image, resized, thousandths, thousandths_yx, unit, loc",
        ),
        (
            {"evidence_box_space": "unit", **EVIDENCE},
            "evidence_box_space='unit' does nothing with evidence_from='data'; set evidence_from to completion",
        ),
        ({"evidence_box_space": "unit"}, "evidence_box_space='unit' does nothing with attention_anchor='old'"),
        ({"evidence_sigma": 0.0, "evidence_target": "mixture", **EVIDENCE}, "evidence_sigma must be positive"),
        ({"evidence_background": 1.0, "evidence_target": "mixture", **EVIDENCE}, "evidence_background must be below 1"),
        ({"evidence_first": 0, "evidence_rows": "first", **EVIDENCE}, "evidence_first must be at least 1"),
        (
            {"perception_mask": 0.5},
            "perception_mask=0.5 does nothing with perception='none'; set perception to papo or vppo",
        ),
        ({"perception": "papo", "perception_top": 0.2}, "set perception to vppo or at_rl"),
        ({"perception": "vppo", "perception_mask": 0.0}, "perception_mask must be above 0"),
        (
            {"perception": "papo", "perception_coef": 0.0, "perception_entropy_coef": 0.0},
            "perception='papo' changes nothing with perception_coef=0.0 and perception_entropy_coef=0.0; choose another value",
        ),
        ({"perception": "vppo", "perception_top": 1.0, "perception_floor": 1.0}, "perception='vppo' changes nothing"),
        (
            {"perception": "at_rl", "perception_floor": 1.0, "perception_top": 0.3},
            "'at_rl' changes nothing with perception_floor=1",
        ),
        ({"perception": "glance"}, "perception='glance' is not known; choose one of none, papo, vppo, at_rl"),
    ],
)
def test_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        config(tmp_path, per_device_train_batch_size=8, **changes)


def test_ease_as_published_is_accepted_and_is_its_own_baseline_at_zero(tmp_path: Path) -> None:
    ease = EVIDENCE | {"attention_keys": "visual", "evidence_target": "mixture", "evidence_divergence": "kl"}
    ease |= {"evidence_rows": "first", "evidence_reward": 0.5, "attention_coef": 0.001}
    assert config(tmp_path, **ease).evidence_first == 64
    assert config(tmp_path, **ease | {"attention_coef": 0.0}).evidence_target == "mixture"
    with pytest.raises(
        ConfigError, match=r"evidence_target='mixture' does nothing with attention_anchor='old'; set .* to evidence, or"
    ):
        config(tmp_path, **ease | {"attention_anchor": "old"})


def test_one_of_a_rivals_parts_is_enough(tmp_path: Path) -> None:
    config(tmp_path, perception="papo", perception_coef=0.0)
    config(tmp_path, perception="papo", perception_entropy_coef=0.0)
    config(tmp_path, perception="vppo", perception_top=1.0)
    config(tmp_path, perception="vppo", perception_floor=1.0)
