"""All options, as they are read from the source: the same as the classes have, quickly, and in the docs."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import fields
from typing import Any

import pytest
from docs.options_page import page

from ral.config import RALConfig
from ral.options import options_of
from ral.recipe import Recipe
from ral.training.sft import SFTSettings, SFTTask


@pytest.mark.parametrize(
    ("name", "recipe", "settings"),
    [("ral.recipe:Recipe", Recipe, RALConfig), ("ral.training.sft:SFTTask", SFTTask, SFTSettings)],
)
def test_the_source_says_what_the_classes_have(name: str, recipe: Any, settings: Any) -> None:
    found = [option for group in options_of(name) for option in group.options]
    expected = {one.name: one for kind in (recipe, settings) for one in fields(kind) if one.init and one.name != "args"}
    assert {option.name for option in found} == expected.keys()
    assert len(found) == len(expected), "each once"
    for option in found:
        text = expected[option.name].metadata.get("help", "")
        assert "…" in option.help or option.help == " ".join(text.split()), option.name
        default = expected[option.name].default
        if isinstance(default, int | float | bool) and option.default not in ("default_optim",):
            assert eval(str(option.default)) == default, option.name


def test_every_option_of_our_own_is_explained() -> None:
    for group in options_of("ral.recipe:Recipe"):
        if group.of.startswith("ral."):
            assert all(len(option.help) > 8 for option in group.options), group.title


def test_help_lists_every_key_without_a_slow_import() -> None:
    code = (
        "import sys; sys.argv = ['ral', 'train', '--help']\n"
        "from ral.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'transformers', 'trl', 'peft'} & sys.modules.keys()\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={"COLUMNS": "400"} | _paths()
    )
    assert found.returncode == 0, found.stderr
    for group in options_of("ral.recipe:Recipe"):
        assert group.title in found.stdout
        assert all(f"--{option.name}" in found.stdout for option in group.options)


def _paths() -> dict[str, str]:
    return {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "HOME") if name in os.environ}


def test_the_page_holds_every_option() -> None:
    text = page()
    for group in options_of("ral.recipe:Recipe"):
        assert f" {group.title}\n" in text
        assert all(f"| `{option.name}` |" in text for option in group.options)
    assert all(line.count("|") - line.count("\\|") == 4 for line in text.splitlines() if line.startswith("| "))
