"""What a run needs, by its settings."""

from __future__ import annotations

from dataclasses import fields
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest

from ral.objective.anchors import ANCHORS, Anchor, to_target
from ral.objective.needs import Needs

#: Plain GRPO without a KL needs nothing.
NOTHING = {
    "attention_coef": 0.0, "attention_anchor": "old", "beta": 0.0, "explore_ratio": "policy", "distill_coef": 0.0,
    "attention_distill_coef": 0.0, "evidence_from": "data", "perception": "none",
}  # fmt: skip


def needs(**changes: Any) -> dict[str, Any]:
    """Those that are not empty."""
    found = Needs.of(SimpleNamespace(**NOTHING | changes))
    values = {item.name: getattr(found, item.name) for item in fields(found)}
    return {name: value for name, value in values.items() if value}


def of(anchor: str, **changes: Any) -> dict[str, Any]:
    return needs(attention_anchor=anchor, **{"attention_coef": 1.0} | changes)


def test_plain_grpo_needs_nothing_and_its_kl_the_reference() -> None:
    assert needs() == {}
    assert needs(beta=0.1) == {"targets": ("ref",), "reference": True}


@pytest.mark.parametrize("anchor", ["old", "group", "credit"])
def test_anchors_on_the_old_rows_need_them_alone(anchor: str) -> None:
    assert of(anchor) == {"rows": True}


def test_each_target_brings_its_sources() -> None:
    rows = {"rows": True}
    assert of("ref") == rows | {"anchor_target": "ref", "targets": ("ref",), "reference": True}
    assert of("teacher") == rows | {"anchor_target": "teacher", "targets": ("teacher",), "teacher": True}
    assert of("evidence") == rows | {"anchor_target": "evidence", "targets": ("evidence",), "evidence": True}
    assert of("explore") == rows | {
        "anchor_target": "explore", "targets": ("explore",), "look_bias": True, "policy_pass": True
    }  # fmt: skip


def test_without_the_term_an_anchor_needs_nothing_but_its_rollouts() -> None:
    for anchor in ("ref", "teacher", "evidence"):
        assert of(anchor, attention_coef=0.0) == {}
    assert of("explore", attention_coef=0.0) == {"look_bias": True}
    assert of("explore", attention_coef=0.0, explore_ratio="behaviour") == {
        "look_bias": True, "targets": ("explore",), "policy_pass": True
    }  # fmt: skip


def test_distillation_needs_a_teacher_and_rows_for_attention_alone() -> None:
    assert needs(distill_coef=0.1) == {"targets": ("teacher",), "teacher": True}
    assert needs(attention_distill_coef=0.1) == {"targets": ("teacher",), "teacher": True, "rows": True}


def test_what_looks_at_pictures_needs_some() -> None:
    """The evidence of records may be a passage of a text; what a rollout states or needs is in a picture."""
    for source in ("completion", "masking"):
        assert of("evidence", evidence_from=source)["media"] == ("evidence_from",)
        assert "media" not in of("evidence", evidence_from=source, attention_coef=0.0)
    assert "media" not in of("evidence", evidence_from="data")
    for rival in ("papo", "vppo", "at_rl"):
        assert needs(perception=rival)["media"] == ("perception",)
    assert of("evidence", evidence_from="masking", perception="papo")["media"] == ("evidence_from", "perception")


def test_targets_come_once_and_an_anchors_own_last() -> None:
    own = Anchor(to_target, target="own", needs=("ref", "teacher"), policy_pass=True)
    with patch.dict(ANCHORS, own=own):
        assert of("own", beta=0.1, distill_coef=0.1) == {
            "anchor_target": "own", "targets": ("ref", "teacher", "own"), "rows": True, "reference": True, "teacher": True,
            "policy_pass": True,
        }  # fmt: skip
        # It has the models without passes of theirs, which would compute what nobody asks for.
        assert of("own")["targets"] == ("own",)
        assert of("own")["reference"]
        assert of("own")["teacher"]
    assert of("ref", beta=0.1)["targets"] == ("ref",)
