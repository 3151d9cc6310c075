"""Settings of an evaluation. The default is to ask as in the checkpoint's own run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_args

from ral.data.settings import PromptSettings, setting
from ral.errors import ConfigError, DataError
from ral.files import read_yaml
from ral.rewards.answers import Mode
from ral.runs.chosen_heads import read_chosen_heads
from ral.runs.names import CONFIG, HEADS, TRAINING_ARGS

#: Measures of looking that can be asked for, see `ral.evaluate.probes`.
PROBES = ("heads", "relative", "sinks", "masking", "masking-text")


@dataclass
class EvalSettings(PromptSettings):
    """All settings that can change the result of an evaluation, with the names of `RALConfig`. Immutable."""

    scorer: Mode = setting("strict", "Scorer of answers: strict or compat.")
    max_completion_length: int = setting(1024, "Tokens per answer; longer ones are cut, and counted as truncated.")
    layer: int = setting(-1, "Decoder layer whose attention is reported as the grounding; the trained one.")
    heads: list[int] | None = setting(
        None, "Heads of that layer whose mean is reported; the trained ones. None: all heads."
    )
    probes: str = setting("", f"Further measures of looking, separated by commas: {', '.join(PROBES)}; or all.")
    text_from: str = setting(
        "",
        "Folder of another evaluation of the same items, whose completions are looked at instead of the model's own.",
    )
    show: int = setting(12, "Items, spread evenly over the task, to keep image and attention map of.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scorer not in get_args(Mode):
            raise ConfigError(f"scorer={self.scorer!r} is not known; choose one of {', '.join(get_args(Mode))}")
        object.__setattr__(self, "probes", ",".join(parse_probes(self.probes)))
        if self.max_completion_length < 1 or self.show < 0:
            raise ConfigError(
                f"max_completion_length={self.max_completion_length}, show={self.show}: "
                "expected at least one token, and no less than 0 items to show"
            )

    @property
    def chosen(self) -> dict[int, list[int]] | None:
        """The heads of the layer, as `looking.look` takes them."""
        return None if self.heads is None else {self.layer: self.heads}

    @classmethod
    def of_model(cls, model: str | Path, **changes: Any) -> EvalSettings:
        """The settings that `model` was trained with, as `saved_settings` finds them; `changes` that are not None win.

        Raises DataError where the heads are measured ones that are not there.
        """
        config = saved_settings(model)
        if isinstance(config.get("attention_heads"), dict):
            run = run_folder(model) or Path(model)
            measured = read_chosen_heads(run)
            if measured is None and changes.get("heads") is None and changes.get("layer") is None:
                raise DataError(
                    f"{run}: {HEADS} is missing, which holds the heads that the run chose; name heads, or a layer"
                )
            config["attention_heads"] = measured and measured.heads
        return cls.of_config(config, **changes)

    @classmethod
    def of_config(cls, config: Mapping[str, Any], **changes: Any) -> EvalSettings:
        """The settings of asking and scoring in a run's `config`; the layer is the last trained one, with its trained heads."""
        values = {field.name: config[field.name] for field in fields(cls) if field.name in config}
        if config.get("attention_layers"):
            values["layer"] = config["attention_layers"][-1]
        if config.get("attention_heads") and changes.get("layer") is None:
            last = config["attention_heads"][-1]
            values["heads"] = last if isinstance(last, list) else config["attention_heads"]
        return cls(**values | {name: value for name, value in changes.items() if value is not None})


def parse_probes(text: str) -> tuple[str, ...]:
    """Names separated by commas, in a fixed order; "all" for every one. Raises `DataError` for an unknown one."""
    names = {name.strip() for name in text.split(",") if name.strip()}
    if unknown := sorted(names - {*PROBES, "all"}):
        raise DataError(f"no probe is called {unknown[0]!r}; known are all, {', '.join(PROBES)}")
    return PROBES if "all" in names else tuple(name for name in PROBES if name in names)


def saved_settings(model: str | Path) -> dict[str, Any]:
    """The settings of the run whose folder `model` is or lies in; what is saved beside the weights wins over the folder's.

    Empty for a model that says nothing of a run.
    """
    run, beside = run_folder(model), Path(model) / TRAINING_ARGS
    files = [] if run is None else [run / CONFIG]
    if run != Path(model) and beside.is_file():
        files.append(beside)  # JSON is YAML
    return {key: value for file in files for key, value in read_yaml(file, "the settings of the run").items()}


def run_folder(model: str | Path) -> Path | None:
    """The run folder that `model` is or lies in (`run`, `run/final`, `run/checkpoint-20`); None outside of any run."""
    return next((folder for folder in (Path(model), Path(model).parent) if (folder / CONFIG).is_file()), None)
