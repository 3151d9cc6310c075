"""`ral.read_run`: a run folder with its metrics, samples and evaluations, which a notebook shows as tables."""

from __future__ import annotations

from pathlib import Path

from ral.errors import RunError
from ral.report.artefacts import Evaluation, Run, read_evaluation
from ral.report.artefacts import read_run as read_folder
from ral.runs.names import ITEMS


def read_run(folder: str | Path) -> Run:
    """The run in `folder`. Raises RunError for a folder without one, and for files that cannot be read."""
    if not Path(folder).is_dir():
        raise RunError(f"{folder}: there is no such folder")
    notices: list[str] = []
    run = read_folder(Path(folder), notices)
    if notices or not (run.trained or run.evaluations):
        raise RunError(f"{folder}: {' '.join(notices) or 'holds no run; expected config.yaml, metrics.jsonl or eval/'}")
    return run


def read_task(folder: str | Path) -> Evaluation:
    """The evaluation in `folder`, such as `runs/mine/eval/rings`. Raises RunError for a folder without one."""
    found, notices = read_evaluation(Path(folder))
    if notices or not found.items:
        raise RunError(f"{folder}: {' '.join(notices) or f'holds no evaluation; expected {ITEMS}'}")
    return found
