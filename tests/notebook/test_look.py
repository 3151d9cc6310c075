"""`ral.look`, runs and records as notebooks show them, and the two notebooks."""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

import ral
from ral.data.record import Record
from ral.errors import RunError, UsageError
from ral.notebook.look import LookFigure
from ral.notebook.saved import read_task
from ral.testbed import load_start
from ral.testbed.rings import ring_records
from ral.training.live_table import LiveTable
from tests.training.test_held_out import trainer

(RECORD,) = ring_records(1, seed=-4)
NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))


def test_a_look_is_a_figure_whatever_names_the_model(tmp_path: Path) -> None:
    picture = tmp_path / "a.png"
    RECORD.images[0].save(picture)  # type: ignore[union-attr]
    run = trainer(tmp_path / "run")
    model, processor = load_start()
    ways: list[tuple[Any, dict[str, Any]]] = [
        ("start", {"settings": run.args.prompt}), (run, {}), (model, {"processor": processor, "settings": run.args.prompt}),
    ]  # fmt: skip
    found = [ral.look(one, picture, RECORD.problem, **given) for one, given in ways]
    assert len({figure.seen.text for figure in found}) == 1, "asked alike"
    assert ral.look(run, RECORD.images[0], RECORD.problem).seen.text == found[0].seen.text
    figure = found[0]
    assert isinstance(figure, LookFigure)
    assert figure._repr_png_().startswith(b"\x89PNG")
    html = figure._repr_html_()
    assert html.startswith("<img")
    assert "Attention on the image" in html
    assert figure.save(tmp_path / "look.html").read_text().startswith("<!doctype html>")
    with pytest.raises(UsageError, match="its processor"):
        ral.look(model, picture, "?")


def test_records_show_what_is_asked_and_nothing_as_markup(tmp_path: Path) -> None:
    record = Record(
        "1", "<b>Which?</b>", "left", images=(tmp_path / "none.png", RECORD.images[0]), options=("left", "right")
    )
    html = record._repr_html_()
    assert "&lt;b&gt;Which?&lt;/b&gt;" in html
    assert "none.png: no such file" in html
    assert html.count("<img") == 1
    assert "left\nright" in html


def test_runs_and_evaluations_are_tables(tmp_path: Path) -> None:
    run = trainer(tmp_path, max_steps=2)
    run.train()
    html = ral.read_run(tmp_path)._repr_html_()
    assert all(text in html for text in ("<b>steps</b>", "reward", "accuracy", "<polyline"))
    with pytest.raises(RunError, match="no such folder"):
        ral.read_run(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match="holds no run"):
        ral.read_run(tmp_path / "empty")
    with pytest.raises(RunError, match="holds no evaluation"):
        read_task(tmp_path)


def test_a_run_in_a_notebook_grows_in_one_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    cell = SimpleNamespace(update=shown.append)

    def display(html: str, display_id: bool) -> SimpleNamespace:
        shown.append(html)
        return cell

    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(HTML=str, display=display))
    monkeypatch.setattr("ral.training.terminal.is_in_notebook", lambda: True)
    run = trainer(tmp_path)
    assert any(isinstance(callback, LiveTable) for callback in run.callback_handler.callbacks)
    run.train()
    assert len(shown) == 3, "two steps and the end"
    assert "2 of 2" in shown[-1]
    assert shown[-1].count("<tr>") > shown[0].count("<tr>")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebooks_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cell after cell, as Jupyter does; the value of a cell's last line must be one that can be shown."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__main__"}
    shown = 0
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        assert not cell.get("outputs"), "outputs are not kept in the repository"
        if cell["cell_type"] != "code":
            continue
        tree = ast.parse("".join(cell["source"]))
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, path.name, "exec"), names)
        if last is not None:
            value = eval(compile(ast.Expression(last.value), path.name, "eval"), names)
            if hasattr(value, "_repr_html_"):
                assert len(value._repr_html_()) > 100
                shown += 1
    assert shown >= 2


def test_there_are_two_notebooks() -> None:
    assert len(NOTEBOOKS) == 2
    assert isinstance(RECORD.images[0], Image.Image)
