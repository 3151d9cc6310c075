"""Values of settings against the types of their fields, also of settings that are no `RALConfig`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from ral.data.field_types import check_values, spelled
from ral.data.settings import PromptSettings
from ral.errors import ConfigError
from ral.evaluate.settings import EvalSettings
from ral.training.sft import SFTSettings


@dataclass
class Foreign:
    loose: int = 3


@dataclass
class Own(Foreign):
    size: int | None = None
    share: float = 0.5
    kind: Literal["a", "b"] = "a"
    rows: list[list[float]] = field(default_factory=lambda: [[0.0]])
    late: bool = None  # type: ignore[assignment]


def test_fields_of_the_base_class_and_defaults_are_not_judged() -> None:
    check_values(Own(loose="three"), Own, Foreign)  # type: ignore[arg-type]
    with pytest.raises(
        ConfigError, match="loose='three': expected int; give one, or leave loose out for its default, 3"
    ):
        check_values(Own(loose="three"), Own)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("size", 2.0, "int or null"),
        ("size", True, "int or null"),
        ("share", float("nan"), "a finite number"),
        ("share", None, "float"),
        ("kind", 3, "text"),
        ("rows", [0.5], "list"),
        ("rows", [[0.5, float("inf")]], "list"),
        ("late", 0, "true or false"),
    ],
)
def test_a_value_of_another_type_is_refused(name: str, value: Any, expected: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}=.*: expected {expected}; give one"):
        check_values(Own(**{name: value}), Own, Foreign)


@pytest.mark.parametrize(
    ("name", "value"), [("size", 7), ("share", 1), ("kind", "c"), ("rows", ((1, 2),)), ("late", True)]
)
def test_a_value_of_the_type_is_taken(name: str, value: Any) -> None:
    check_values(Own(**{name: value}), Own, Foreign)


def test_a_type_is_named_once() -> None:
    assert spelled(list[int] | list[list[int]] | dict[str, Any] | None) == "list or mapping or null"


def test_prompts_evaluations_and_fine_tuning_judge_their_own_settings(tmp_path: Path) -> None:
    wrong: dict[str, Any] = {"fps": float("nan")}
    for make in (PromptSettings, EvalSettings, lambda **values: SFTSettings(str(tmp_path), use_cpu=True, **values)):
        with pytest.raises(ConfigError, match="fps=nan: expected a finite number"):
            make(**wrong)
    with pytest.raises(ConfigError, match=r"layer=1\.5: expected int"):
        EvalSettings(layer=1.5)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="max_length='long': expected int or null"):
        SFTSettings(str(tmp_path), use_cpu=True, max_length="long")  # type: ignore[arg-type]
