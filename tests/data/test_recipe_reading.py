"""A recipe and `ral check` say what columns are called and what boxes count."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from ral.cli import app
from ral.data.record import Box
from ral.recipe import load_recipe
from ral.training.launch import datasets
from tests.data.test_readers import write_lines

ROW = {"caption": "what?", "label": "red", "picture": "a.png", "bbox": [0.5, 0.25, 1.0, 0.75]}


def test_a_recipe_names_columns_and_the_scale_of_boxes(media: Path, tmp_path: Path) -> None:
    data = write_lines(media / "named.jsonl", [ROW])
    text = (
        f"model: start\ndata: {data}\nuse_cpu: true\nbox_scale: unit\n"
        "columns: {problem: caption, solution: label, images: picture}\n"
    )
    (tmp_path / "r.yaml").write_text(text)
    recipe = load_recipe(tmp_path / "r.yaml")
    assert (recipe.settings()["box_scale"], recipe.settings()["columns"]["problem"]) == ("unit", "caption")
    ((record,), _) = datasets(recipe)
    assert (record.problem, record.solution, record.images) == ("what?", "red", (media / "a.png",))
    assert record.boxes == (Box(32, 12, 64, 36),)


def test_check_takes_them_as_options(media: Path) -> None:
    data = str(write_lines(media / "named.jsonl", [ROW]))
    columns = ["--columns", "{problem: caption, solution: label, images: picture}"]
    for words, code, said in [
        ([*columns, "--box-scale", "unit"], 0, "ready to train"),
        (columns, 1, "box_scale"),
        ([*columns, "--box-scale", "pixels"], 1, "name the scale"),
        ([], 1, "of no known format"),
        ([*columns, "--box-scale", "percent"], 2, "choose one of pixels, unit, thousand"),
        (["--columns", "caption"], 2, "is no mapping"),
    ]:
        found = CliRunner().invoke(app, ["check", data, *words])
        assert found.exit_code == code, found.output
        assert said in found.output
