"""The run folder: the right to write into it, the record of its origin, and its metrics.

`ral.runs.names` lists its files. A folder may also hold checkpoint-N/ (`ral.runs.checkpoints`), and the dumps nonfinite-N/ and
failed-reward-N/ of a stopped run (`ral.training.dumps`).
"""

from __future__ import annotations

import json
import logging
import os
import platform
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

import ral
from ral.errors import RunError
from ral.files import atomic_write_text, json_line, read_jsonl, read_yaml, remove_parts
from ral.runs.checkpoints import checkpoints, last_checkpoint
from ral.runs.names import ARTEFACTS, CONFIG, ENVIRONMENT, METRICS, RECORDS, SAMPLES
from ral.runs.redaction import without_credentials
from ral.runs.resume import refuse_changes

logger = logging.getLogger(__name__)

_PACKAGES = ("torch", "transformers", "accelerate", "peft", "datasets", "trl")


def refuse_occupied(output_dir: Path | str, *, resume: bool = False, overwrite: bool = False) -> None:
    """Raise ValueError, saying what to do, unless a run may be written to `output_dir`.

    A folder that holds a run needs exactly one of `resume` and `overwrite`; `resume` needs a finished checkpoint:
    starting again silently would lose what the user meant to keep.
    """
    folder = Path(output_dir)
    if resume and overwrite:
        raise RunError(f"{folder}: resume and overwrite exclude each other; give one of them.")
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder}: the output folder is a file; choose another output_dir.")
    if resume and last_checkpoint(folder) is None:
        raise RunError(
            f"{folder}: no finished checkpoint to resume from; start the run again, with --overwrite in place of --resume."
        )
    held = _run_artefacts(folder)
    if held and not (resume or overwrite):
        raise RunError(
            f"{folder}: already holds a run ({_names(held)}); choose another output_dir, "
            "continue it with --resume, or replace it with --overwrite."
        )


def prepare_run(
    output_dir: Path | str,
    config: Mapping[str, Any],
    *,
    data: str | None = None,
    processes: int = 1,
    resume: bool = False,
    overwrite: bool = False,
    defaults: Mapping[str, Any] | None = None,
) -> None:
    """Claim `output_dir` for one run and write its `config.yaml` and `environment.json`.

    With several processes call it on the main one only. `overwrite` removes the earlier run's own files and nothing else in
    the folder.

    Args:
        config: plain YAML values; credentials in them are left out.
        data: fingerprint of the training data. processes: how many train.
        defaults: of settings that the run on a resume may not know, as a later version brought them.

    Raises:
        RunError: as `refuse_occupied` does; on `resume` for settings or data that are not the run's (`refuse_changes`).
    """
    folder = Path(output_dir)
    refuse_occupied(folder, resume=resume, overwrite=overwrite)
    public, facts = _public(config), _facts(data, processes)
    if resume:
        _check_resumed(folder, yaml.safe_load(public), facts, defaults or {})
    if overwrite:
        for path in _run_artefacts(folder):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    remove_parts(folder)
    _write_origin(folder, public, facts)


def claim(
    output_dir: Path | str,
    config: Mapping[str, Any],
    *,
    data: str | None = None,
    processes: int = 1,
    resumed: bool = False,
) -> None:
    """Claim `output_dir` for a run that Python starts; the other arguments are those of `prepare_run`.

    A `resumed` run keeps the `config.yaml` and `environment.json` that it was started with, if they are there. A run that left
    records alone (no weights, evaluations or looks) is replaced, with a warning: a script that saves nothing can be run again.

    Raises RunError for a folder that holds any other run, and on a resume for settings or data that are not the run's; a setting
    that only one of both names is not compared, as Python's objects have no names.
    """
    folder = Path(output_dir)
    public, facts = _public(config), _facts(data, processes)
    held = [path for path in _run_artefacts(folder) if path.name != SAMPLES]  # rollouts alone make no run
    if not resumed and all(path.name in RECORDS for path in held):
        _replace(held)
    elif not resumed:
        raise RunError(
            f"{folder}: already holds a run ({_names(held)}); choose another output_dir, continue it with "
            "train(resume_from_checkpoint=True), or remove the folder."
        )
    if resumed and (folder / CONFIG).is_file():
        old, settings = read_yaml(folder / CONFIG, "the settings of the run"), yaml.safe_load(public)
        _check_resumed(folder, old | {key: settings[key] for key in old.keys() & settings.keys()}, facts, {})
    else:
        _write_origin(folder, public, facts)


def _replace(records: list[Path]) -> None:
    if records:
        logger.warning("%s: replaces the records of a run that saved nothing (%s)", records[0].parent, _names(records))
    for path in records:
        path.unlink()


def _names(held: list[Path]) -> str:
    return ", ".join(path.name for path in held[:3])


def _public(config: Mapping[str, Any]) -> str:
    return yaml.safe_dump(without_credentials(config), sort_keys=False, allow_unicode=True)


def _facts(data: str | None, processes: int) -> dict[str, Any]:
    return {**environment(), "processes": processes, "data": data}


def _write_origin(folder: Path, public: str, facts: Mapping[str, Any]) -> None:
    atomic_write_text(folder / CONFIG, public)
    atomic_write_text(folder / ENVIRONMENT, json.dumps(facts, indent=2) + "\n")


def _check_resumed(
    folder: Path, settings: Mapping[str, Any], facts: Mapping[str, Any], defaults: Mapping[str, Any]
) -> None:
    try:
        old = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
        old_facts = json.loads((folder / ENVIRONMENT).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise RunError(
            f"{folder}: {CONFIG} and {ENVIRONMENT} say what the run was started with, and cannot be read ({error}); copy "
            "them back to go on with --resume."
        ) from error
    new = {key for key in settings.keys() - old.keys() if key in defaults and settings[key] == defaults[key]}
    try:
        refuse_changes(old, {key: settings[key] for key in settings.keys() - new}, old_facts, facts)
    except RunError as error:
        raise RunError(f"{folder}: {error}") from error
    if (before := old_facts["packages"]) != (now := facts["packages"]):
        changed = [f"{name} {before.get(name)} → {now.get(name)}" for name in now if before.get(name) != now[name]]
        logger.warning("other packages than before (%s): the run goes on, but not bit for bit", ", ".join(changed))


def environment() -> dict[str, Any]:
    """The facts that one needs to repeat a run: versions, commit, and the kind of machine.

    Holds no host or user name, no path and no environment variable.
    """
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "python": platform.python_version(),
        "packages": {
            "ral": ral.__version__,
            **{name: found for name in _PACKAGES if (found := _version(name)) is not None},
        },
        "commit": source_commit(),
        "machine": {
            "system": platform.system(),
            "architecture": platform.machine(),
            "cpu_count": os.cpu_count(),
            "memory_gib": _memory_gib(),
            "gpus": gpus,
        },
    }


def machine_class() -> str:
    """The kind of machine in words, without names, as printed beside every figure."""
    return f"{os.cpu_count()}-core {platform.machine()} CPU"


def source_commit() -> str | None:
    """The git commit of this package's source, with `-dirty` when files are changed; None when not in git.

    The package may be installed inside somebody else's repository, so only a tracked source counts.
    """
    here = Path(__file__).resolve()

    def git(*command: str) -> str:
        return subprocess.run(
            ["git", "-C", str(here.parent), *command], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


class MetricsWriter(TrainerCallback):
    """Appends what the trainer logs to `metrics.jsonl`, one flushed line per logged step.

    On a resumed run the lines after the checkpoint's step are dropped first, since those steps are run again.
    The summary that Trainer logs once at the end (`train_runtime` …) belongs to no step and is left out.
    """

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            truncate_after(_output(args) / METRICS, state.global_step)
            truncate_after(_output(args) / SAMPLES, state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if not state.is_world_process_zero or not logs or "train_runtime" in logs:
            return
        append_jsonl(_output(args) / METRICS, [{"step": state.global_step, **logs}])


def append_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append one flushed line per row. Raises OSError, which names the file."""
    try:
        with open(path, "a", encoding="utf-8") as stream:
            stream.writelines(map(json_line, rows))
    except OSError as error:
        error.filename = str(path)  # a failed write does not say where
        raise


def truncate_after(path: Path, step: int) -> None:
    """Drop the rows of a JSONL file whose `step` lies after `step`, and a last line that was cut off."""
    if path.exists():
        kept = [json_line(row) for row in read_jsonl(path) if row["step"] <= step]
        atomic_write_text(path, "".join(kept))


def _output(args: TrainingArguments) -> Path:
    assert args.output_dir is not None  # TrainingArguments fills in a default
    return Path(args.output_dir)


def _run_artefacts(folder: Path) -> list[Path]:
    named = [folder / name for name in ARTEFACTS if (folder / name).exists()]
    dumps = [*folder.glob("nonfinite-*"), *folder.glob("failed-reward-*")]
    return named + checkpoints(folder) + sorted(dumps)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
    except (AttributeError, ValueError, OSError):  # not a POSIX system
        return None
