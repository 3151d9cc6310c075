"""The settings of a prompt: declared once, taken whole, never changed."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields, replace
from pathlib import Path

import pytest

from ral import RALConfig
from ral.data.prompt import encode_completion, encode_prompt
from ral.data.record import Record
from ral.data.settings import PromptFields, PromptSettings
from ral.errors import ConfigError
from ral.evaluate.settings import EvalSettings
from ral.testbed import load_start
from ral.testbed.rings import ring_records
from ral.training.sft import SFTSettings

VALUES = {
    "think": False, "template": "plain", "min_pixels": 784, "max_pixels": 3136, "video_pixels": 9408, "num_frames": 3, "fps": 2.5,
    "prompt_template": None, "system_prompt": "Be brief.", "max_prompt_length": 99,
}  # fmt: skip


def test_every_stage_holds_all_of_them(tmp_path: Path) -> None:
    assert {item.name for item in fields(PromptSettings)} == {*VALUES}
    expected = PromptSettings(**VALUES)  # type: ignore[arg-type]
    where = {"output_dir": str(tmp_path), "use_cpu": True}
    holders: list[PromptFields] = [RALConfig(**where, **VALUES), SFTSettings(**where, **VALUES), EvalSettings(**VALUES)]  # type: ignore[arg-type]
    assert [holder.prompt for holder in holders] == [expected] * 3
    assert [replace(expected, think=True)] != [expected]
    assert PromptSettings.of({**VALUES, "beta": 0.1}) == expected
    assert PromptSettings.of({}) == PromptSettings()


def test_they_are_never_changed() -> None:
    for settings in (PromptSettings(), EvalSettings()):
        with pytest.raises(FrozenInstanceError, match="max_pixels"):
            settings.max_pixels = 5
        assert settings.max_pixels is None


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"template": "papper"}, r"template='papper' is not known; choose one of paper, plain, raw"),
        ({"num_frames": 0}, r"num_frames must be positive, got 0"),
        ({"fps": -1.0}, r"fps must be positive, got -1.0"),
        ({"max_pixels": 0}, r"max_pixels must be positive"),
        ({"template": "raw", "prompt_template": "{problem}"}, r"template='raw' and prompt_template exclude each other"),
        (
            {"prompt_template": "Q: {problem} {image}"},
            r"\{image\} is not known; there are \{problem\}, \{options\}, \{hint\}",
        ),
        ({"prompt_template": "{problem:>9}"}, r"\{problem:>9\} is not known"),
        ({"prompt_template": "{problem} in \\boxed{}"}, r"\{\} is not known.*twice"),
        ({"prompt_template": "{problem} {"}, r"prompt_template: .*twice"),
        ({"prompt_template": "{hint}"}, r"expected \{problem\} once.*0 times"),
        ({"prompt_template": "{problem} or {problem}"}, r"2 times"),
        ({"prompt_template": "<image>{problem}"}, r"prompt_template holds <image>"),
        ({"system_prompt": "See <video>"}, r"system_prompt holds <video>"),
        ({"prompt_template": "answer in short"}, r"holds no \{problem\}, and there is no file of this name"),
        ({"prompt_template": "many words " * 400}, r"holds no \{problem\}"),
        ({"min_pixels": 900, "max_pixels": 800}, r"min_pixels=900 is above max_pixels=800"),
    ],
)
@pytest.mark.parametrize("kind", [PromptSettings, EvalSettings, RALConfig, SFTSettings])
def test_what_makes_no_prompt_is_refused(kind: type, wrong: dict[str, object], said: str) -> None:
    where = {"output_dir": "nowhere", "use_cpu": True} if kind in (RALConfig, SFTSettings) else {}
    with pytest.raises(ConfigError, match=said):
        kind(**where, **wrong)


def test_a_frame_is_bounded_by_itself_and_by_its_share_of_the_video() -> None:
    assert PromptSettings(max_pixels=500, video_pixels=6000).frame_pixels(10) == 500
    assert PromptSettings(max_pixels=500, video_pixels=6000).frame_pixels(20) == 300
    assert PromptSettings(video_pixels=6000).frame_pixels(7) == 857
    assert PromptSettings().frame_pixels(7) is None


def test_whole_and_by_name_are_the_same_prompt() -> None:
    _, processor = load_start()
    (record,) = ring_records(1, seed=3)
    settings = PromptSettings(think=False, template="plain", max_pixels=3136)
    whole = encode_prompt(processor, record, settings)
    by_name = encode_prompt(processor, record, think=False, template="plain", max_pixels=3136)
    assert whole.keys() == by_name.keys()
    assert all((whole[key] == by_name[key]).all() for key in whole)
    other = encode_prompt(processor, record, settings, think=True)
    assert (
        other["input_ids"].tolist()
        == encode_prompt(processor, record, replace(settings, think=True))["input_ids"].tolist()
    )
    assert other["input_ids"].tolist() != whole["input_ids"].tolist()
    example = Record(id="1", problem="which?", solution="red", trace="a b")
    taught = [encode_completion(processor, example, replace(settings, think=think)) for think in (True, False)]
    assert taught[0].tolist() == encode_completion(processor, example, think=True).tolist()
    assert len(taught[1]) < len(taught[0])
