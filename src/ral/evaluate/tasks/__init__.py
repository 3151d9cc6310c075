"""The evaluation tasks by name. A task that is added to `BENCHMARKS` is found like the others."""

from __future__ import annotations

from ral.evaluate.tasks.image import IMAGE_TASKS
from ral.evaluate.tasks.task import HubTable, Scored, Task
from ral.evaluate.tasks.video import VIDEO_TASKS

BENCHMARKS: dict[str, Task] = {task.name: task for task in (*IMAGE_TASKS, *VIDEO_TASKS)}

__all__ = ["BENCHMARKS", "HubTable", "Scored", "Task"]
