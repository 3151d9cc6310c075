"""README, documentation and docstrings are run, so that they cannot go stale."""

from __future__ import annotations

import doctest
import importlib
import re
import shlex
from pathlib import Path
from unittest.mock import patch

import pytest
from experiments.figures import README, with_figures
from experiments.packed_figure import ASSETS, THEMES, figure
from typer.main import get_group
from typer.testing import CliRunner

from ral.cli import app
from ral.evaluate.tasks import BENCHMARKS
from ral.families import registry
from ral.objective.anchors import ANCHORS
from ral.recipe import load_recipe

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SOURCE = ROOT / "src"
MODULES = sorted(
    ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")
    for path in SOURCE.glob("ral/**/*.py")
    if ">>> " in path.read_text(encoding="utf-8")
)


def blocks_of(page: Path, language: str) -> list[str]:
    pattern = re.compile(rf"^```{language}\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)
    return pattern.findall(page.read_text(encoding="utf-8"))


def blocks(language: str) -> list[str]:
    return [block for page in PAGES for block in blocks_of(page, language)]


def commands(program: str) -> list[list[str]]:
    """The words of every command line of `program` in the pages' bash blocks, comments left out."""
    lines = (
        shlex.split(line, comments=True) for block in blocks("bash") for line in block.replace("\\\n", " ").splitlines()
    )
    return [words for words in lines if words[:1] == [program]]


def test_figures_are_those_of_the_result_files() -> None:
    text = README.read_text(encoding="utf-8")
    assert "<!-- figures: " in text
    assert text == with_figures(text), "run python -m experiments.figures"


@pytest.mark.parametrize("page", [page for page in PAGES if blocks_of(page, "python")], ids=lambda page: page.name)
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other, as a reader would; what a page registers is taken back."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "documentation"}
    with patch.dict(ANCHORS), patch.dict(BENCHMARKS), patch.dict(registry._BY_TYPE):
        for code in blocks_of(page, "python"):
            exec(compile(code, page.name, "exec"), names)


@pytest.mark.parametrize("text", blocks("yaml"))
def test_recipes_load(text: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8")
    load_recipe(tmp_path / "recipe.yaml", ["--use_cpu", "true"])


@pytest.mark.parametrize("words", commands("ral"), ids=" ".join)
def test_ral_commands_exist_with_their_options(words: list[str]) -> None:
    known = get_group(app).commands
    assert words[1] in known
    found = CliRunner().invoke(app, [words[1], "--help"], env={"COLUMNS": "200"})
    assert found.exit_code == 0
    if words[1] != "train":  # every field of a recipe is an option of `train`
        options = {option for parameter in known[words[1]].params for option in parameter.opts}
        settings = set(re.findall(r"--[\w-]+", found.output))  # of `check`, `eval` and `look`, which the help lists
        assert {word for word in words if word.startswith("--")} <= options | settings


@pytest.mark.parametrize("words", commands("make"), ids=" ".join)
def test_make_targets_exist(words: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(rf"^{words[1]}:", makefile, flags=re.MULTILINE)


@pytest.mark.parametrize("theme", THEMES)
def test_the_figure_of_the_packed_group_is_what_the_code_draws(theme: str) -> None:
    drawn = (ASSETS / f"packed-{theme}.svg").read_text(encoding="utf-8")
    assert drawn == figure(THEMES[theme]), "run python -m experiments.packed_figure"


def test_the_navigation_lists_every_page() -> None:
    pages = re.findall(r":\s*([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert len(pages) == len(set(pages))
    written = {page.relative_to(ROOT / "docs").as_posix() for page in PAGES[1:]}
    assert set(pages) == {*written, "results.md", "options.md"}, "hooks in docs/ add these two"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_linked_and_shown_files_exist(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8"))
    assert not [target for target in targets if "://" not in target and not (page.parent / target).exists()]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0
