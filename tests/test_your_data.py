"""The page "Your data, your reward, eight GPUs": its files and its nine commands, with the embedded model."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from PIL import Image
from transformers import AutoModelForImageTextToText
from typer.testing import CliRunner

from ral.cli import app
from ral.testbed import start_checkpoint
from tests.test_readme import ROOT, blocks_of

PAGE = ROOT / "docs" / "your-data.md"
LAUNCHER = re.compile(r"^accelerate launch .* --no_python (?=ral )")
#: What makes a run of minutes one of seconds.
SMALL = (
    "use_cpu: true\nmax_steps: 2\nnum_generations: 2\nper_device_train_batch_size: 2\nmax_completion_length: 6\n"
    "save_strategy: no\nlook_steps: 2\n"
)


def commands() -> list[str]:
    """The lines of the page's bash blocks but the first block, which installs."""
    return [line for block in blocks_of(PAGE, "bash")[1:] for line in block.splitlines()]


def test_nine_commands_or_fewer() -> None:
    assert len(commands()) <= 9


def test_the_page_from_an_empty_folder_to_an_exported_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, colour in (("a", "red"), ("b", "blue")):
        Image.new("RGB", (84, 56), colour).save(f"{name}.png")
    (row,), (recipe,) = blocks_of(PAGE, "json"), blocks_of(PAGE, "yaml")
    rows = [json.loads(row) | {"id": str(number), "solution": ("left", "right")[number % 2]} for number in range(6)]
    for name, part in (("train", rows[:4]), ("test", rows[4:])):
        Path(f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in part))
    Path("reward.py").write_text(blocks_of(PAGE, "python")[0])
    kept = "".join(
        line + "\n" for line in recipe.splitlines() if line.split(":")[0] not in SMALL and "bf16" not in line
    )
    Path("recipe.yaml").write_text(kept.replace("Qwen/Qwen2.5-VL-7B-Instruct", "start") + SMALL)
    said = {}
    for line in commands():
        words = shlex.split(LAUNCHER.sub("", line).replace("Qwen/Qwen2.5-VL-7B-Instruct", "start"))
        assert words[0] == "ral", line
        found = CliRunner().invoke(app, words[1:])
        assert found.exit_code == 0, f"{line}\n{found.output}"
        said[words[1]] = found.stdout
    assert "4 rows: 4 free-form; 8 images" in said["check"]
    assert "You compare charts." in said["check"]
    assert said["compare"].startswith("On test (2 items")
    asked = [json.loads(Path(folder, "eval/test/settings.json").read_text()) for folder in ("before", "runs/recipe")]
    assert asked[0]["max_completion_length"] == asked[1]["max_completion_length"] == 6
    for name in ("runs/recipe/report.html", "look.html", "runs/recipe/looks/items.jsonl"):
        assert Path(name).stat().st_size > 500, name
    trained = AutoModelForImageTextToText.from_pretrained("model").state_dict()
    before = AutoModelForImageTextToText.from_pretrained(start_checkpoint()).state_dict()
    assert trained.keys() == before.keys()
