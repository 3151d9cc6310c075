"""Shows a run in a notebook: a table of its steps that grows, and the looks of each step beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ral.evaluate.items import Item
from ral.files import read_jsonl
from ral.report.gallery import saved_image, saved_map
from ral.report.heatmap import under_heat
from ral.runs.html import Markup, curve, facts, picture, table
from ral.runs.names import ITEMS, LOOKS

#: Metrics of a row, by their words; what is not measured is left out.
COLUMNS = (
    ("reward", "reward"), ("accuracy", "reward/accuracy"), ("length", "completion_length"), ("KL", "kl"), ("looks", "visual_share"),
)  # fmt: skip
#: Steps that the table shows, the last ones.
SHOWN = 12
#: Looks that are drawn below it.
LOOKED = 4


class LiveTable(TrainerCallback):
    """The last steps of a run, its reward as a curve, and where the model looked last, in a cell that is written anew."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self._cell: Any = None

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if not state.is_world_process_zero or "loss" not in (logs or {}):
            return
        self.rows.append({"step": state.global_step, **(logs or {})})
        self._show(self.html(state.max_steps, Path(str(args.output_dir))))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero and self.rows:  # the last look is taken at the end
            self._show(self.html(state.max_steps, Path(str(args.output_dir))))

    def html(self, steps: int, folder: Path) -> str:
        names = [(word, key) for word, key in COLUMNS if any(key in row for row in self.rows)]
        rows = [(int(row["step"]), *(row.get(key) for _, key in names)) for row in self.rows[-SHOWN:]]
        rewards = curve([row["reward"] for row in self.rows if "reward" in row])
        head = facts([("step", f"{int(self.rows[-1]['step']):,} of {steps:,}"), ("reward", rewards)])
        return head + table(("step", *(word for word, _ in names)), rows) + _looks(folder / LOOKS)

    def _show(self, html: str) -> None:
        from IPython.display import HTML, display

        if self._cell is None:
            self._cell = display(HTML(html), display_id=True)
        else:
            self._cell.update(HTML(html))


def _looks(folder: Path) -> str:
    """The last looks of the run as small pictures, each with its answer; nothing before the first."""
    if not (folder / ITEMS).is_file():
        return ""
    items = [Item.from_json(row, str(folder)) for row in read_jsonl(folder / ITEMS)]
    last = [item for item in items if item.step == items[-1].step][:LOOKED]
    cells = []
    for item in last:
        image, values = saved_image(folder, item), saved_map(item)
        shown = picture(under_heat(image, values)) if image is not None and values is not None else Markup("")
        cells.append((item.question, shown, item.prediction, "✓" if item.right else "✗"))
    return table((f"looks of step {last[0].step}", "", "answer", ""), cells) if last else ""
