"""How a model is asked and scored: as in the run it comes from, unless said otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from ral.config import CHOICES
from ral.data.prompt import Template
from ral.errors import DataError
from ral.rewards.answers import Mode
from ral.runs.folder import CONFIG

#: Measures of looking that can be asked for, see `ral.evaluate.probes`.
PROBES = ("heads", "relative", "sinks", "masking", "masking-text")


@dataclass(frozen=True)
class EvalSettings:
    """Everything that can change what an evaluation finds; the names are those of `RALConfig`.

    Attributes:
        think, template: the wording of the prompt. scorer: how answers are read.
        max_completion_length: tokens after which an answer is cut and counted as truncated.
        min_pixels, max_pixels, video_pixels, num_frames, fps: size of images and videos; the processor's own where None.
        layer: the decoder layer whose attention is reported as *the* grounding; the trained one.
        probes: further measures of where it looked, see `ral.evaluate.probes`: names separated by commas.
        show: items, spread evenly over the task, of which the image and the attention map are kept.
    """

    think: bool = True
    template: Template = "paper"
    scorer: Mode = "strict"
    max_completion_length: int = 1024
    min_pixels: int | None = None
    max_pixels: int | None = None
    video_pixels: int | None = None
    num_frames: int | None = None
    fps: float | None = None
    layer: int = -1
    probes: str = ""
    show: int = 12

    def __post_init__(self) -> None:
        for name in ("template", "scorer"):
            if (value := getattr(self, name)) not in CHOICES[name]:
                raise DataError(f"{name}={value!r} is not known; choose one of {', '.join(CHOICES[name])}")
        object.__setattr__(self, "probes", ",".join(parse_probes(self.probes)))
        if self.max_completion_length < 1 or self.show < 0:
            raise DataError(
                f"max_completion_length={self.max_completion_length}, show={self.show}: "
                "expected at least one token, and no less than 0 items to show"
            )

    @classmethod
    def of_model(cls, model: str | Path, **changes: Any) -> EvalSettings:
        """The settings of the run whose folder `model` is or lies in, if it lies in one; `changes` that are not None win."""
        run = run_folder(model)
        return cls.of_config({} if run is None else _read_config(run / CONFIG), **changes)

    @classmethod
    def of_config(cls, config: Mapping[str, Any], **changes: Any) -> EvalSettings:
        """What a run's settings say of asking and scoring; the layer is the last that is trained."""
        values = {field.name: config[field.name] for field in fields(cls) if field.name in config}
        if config.get("attention_layers"):
            values["layer"] = config["attention_layers"][-1]
        return cls(**values | {name: value for name, value in changes.items() if value is not None})


def parse_probes(text: str) -> tuple[str, ...]:
    """Names separated by commas, in a fixed order; "all" for every one. Raises `DataError` for an unknown one."""
    names = {name.strip() for name in text.split(",") if name.strip()}
    if unknown := sorted(names - {*PROBES, "all"}):
        raise DataError(f"no probe is called {unknown[0]!r}; known are all, {', '.join(PROBES)}")
    return PROBES if "all" in names else tuple(name for name in PROBES if name in names)


def run_folder(model: str | Path) -> Path | None:
    """The run folder that `model` is or lies in (`run`, `run/final`, `run/checkpoint-20`); None outside of any run."""
    return next((folder for folder in (Path(model), Path(model).parent) if (folder / CONFIG).is_file()), None)


def _read_config(file: Path) -> Mapping[str, Any]:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise DataError(f"{file}: not valid YAML ({error}); restore it, or copy the model elsewhere") from error
    if not isinstance(content, dict):
        raise DataError(f"{file}: expected the `key: value` lines of a run, found {type(content).__name__}")
    return content
