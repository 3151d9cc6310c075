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
        ({"evidence_control": "centre"}, "evidence_control='centre' changes nothing with attention_anchor='old'"),
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
        ({"evidence_box_space": "unit", **EVIDENCE}, "evidence_from='data' reads none; set evidence_from='completion'"),
        ({"evidence_box_space": "unit"}, "evidence_box_space='unit' changes nothing with attention_anchor='old'"),
        ({"evidence_sigma": 0.0, **EVIDENCE}, "evidence_sigma must be positive"),
        ({"evidence_background": 1.0, **EVIDENCE}, "evidence_background must be below 1"),
        ({"evidence_first": 0, **EVIDENCE}, "evidence_first must be at least 1"),
        (
            {"perception_mask": 0.5},
            "perception_mask=0.5 does nothing with perception='none'; set perception to papo or vppo",
        ),
        ({"perception": "papo", "perception_top": 0.2}, "set perception to vppo or at_rl"),
        ({"perception": "vppo", "perception_mask": 0.0}, "perception_mask must be above 0"),
        ({"perception": "glance"}, "perception='glance' is not known; choose one of none, papo, vppo, at_rl"),
    ],
)
def test_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        config(tmp_path, per_device_train_batch_size=8, **changes)


def test_ease_as_published_is_accepted_and_so_is_its_arm_without_the_term(tmp_path: Path) -> None:
    ease = EVIDENCE | {"attention_keys": "visual", "evidence_target": "mixture", "evidence_divergence": "kl"}
    ease |= {"evidence_rows": "first", "evidence_reward": 0.5, "attention_coef": 0.001}
    assert config(tmp_path, **ease).evidence_first == 64
    config(tmp_path, **ease | {"attention_coef": 0.0})
