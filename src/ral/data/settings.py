"""`PromptSettings`: the settings that a prompt depends on, declared once.

The settings of training, fine-tuning and evaluation inherit `PromptFields`, so a recipe names them flat. Code that makes a prompt
takes a `PromptSettings`. To add a setting, add a field here and read it in `ral.data.prompt`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import FrozenInstanceError, dataclass, field, fields
from typing import Any, get_args

from ral.data.field_types import check_values
from ral.data.wording import Template, read_template, refuse_marks
from ral.errors import ConfigError


def setting(default: Any, text: str) -> Any:
    """A dataclass field with its explanation, which the reference and `ral --help` show."""
    return field(default=default, metadata={"help": text})


@dataclass
class PromptFields:
    """The settings that a prompt depends on, as a base class of larger settings."""

    think: bool = setting(True, "Ask for <think>…</think><answer>…</answer>; False is RAL-zero, a direct answer.")
    template: Template = setting(
        "paper",
        "Prompt wording: paper (instructions), plain (a one-word marker, testbed) or raw (the data's text alone).",
    )
    prompt_template: str | None = setting(
        None,
        "Your own wording, or the path of its text file: {problem} once; {options} and {hint} (the answer's form) are optional.",
    )
    system_prompt: str | None = setting(None, "System turn for records without one.")
    min_pixels: int | None = setting(
        None, "Smallest image or frame after resizing, in pixels; the processor's if not given."
    )
    max_pixels: int | None = setting(
        None, "Largest image or frame after resizing, in pixels; the processor's if not given."
    )
    video_pixels: int | None = setting(None, "Largest sum of all frames of a video after resizing, in pixels.")
    num_frames: int | None = setting(None, "Maximum number of frames per video.")
    fps: float | None = setting(None, "Sampling rate of videos, in frames per second.")
    max_prompt_length: int | None = setting(
        None,
        "Longest prompt in tokens, media included; a longer one is an error that names its record. Nothing is cut.",
    )

    @property
    def prompt(self) -> PromptSettings:
        """The prompt settings alone."""
        return PromptSettings(**{item.name: getattr(self, item.name) for item in fields(PromptFields)})

    def frame_pixels(self, frames: int) -> int | None:
        """Largest number of pixels of one frame of a video with `frames` frames; None without any bound."""
        bounds = (self.max_pixels, self.video_pixels and self.video_pixels // frames)
        return min((bound for bound in bounds if bound), default=None)

    def check_prompt(self) -> None:
        """Put the text of `prompt_template` in the place of its file's name.

        Raises ConfigError for an unknown template or two, for texts that cannot be used, and for sizes or frames below 1.
        """
        if self.template not in get_args(Template):
            known = ", ".join(get_args(Template))
            raise ConfigError(f"template={self.template!r} is not known; choose one of {known}")
        if self.prompt_template is not None:
            if self.template != "paper":
                raise ConfigError(
                    f"template={self.template!r} and prompt_template exclude each other; leave one of them out"
                )
            object.__setattr__(self, "prompt_template", read_template(self.prompt_template))
        if self.system_prompt is not None:
            refuse_marks(self.system_prompt, "system_prompt")
        for name in ("min_pixels", "max_pixels", "video_pixels", "num_frames", "fps", "max_prompt_length"):
            if (value := getattr(self, name)) is not None and value <= 0:
                raise ConfigError(f"{name} must be positive, got {value}; leave it out for the default")
        if self.min_pixels and self.max_pixels and self.min_pixels > self.max_pixels:
            raise ConfigError(f"min_pixels={self.min_pixels} is above max_pixels={self.max_pixels}; lower one of them")


@dataclass
class PromptSettings(PromptFields):
    """`PromptFields` as an immutable record. (`frozen=True` cannot inherit from mutable settings.)

    Raises ConfigError as `check_values` and `check_prompt` do.
    """

    def __post_init__(self) -> None:
        check_values(self, type(self))
        self.check_prompt()

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.__dict__:
            raise FrozenInstanceError(f"cannot assign to field {name!r}; make another with dataclasses.replace")
        super().__setattr__(name, value)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> PromptSettings:
        """The prompt settings among `values`; missing ones get their defaults."""
        return cls(**{item.name: values[item.name] for item in fields(PromptFields) if item.name in values})
