from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.main import get_group
from typer.testing import CliRunner

from ral.cli import app

runner = CliRunner()
COMMANDS = get_group(app).commands


def test_help_does_not_wait_for_torch() -> None:
    """Measured in a fresh interpreter, best of three: other processes may be busy."""
    code = (
        "import sys; sys.argv = ['ral', '--help']\n"
        "from ral.cli import main\n"
        "try: main()\n"
        "finally: assert not {'torch', 'transformers', 'matplotlib'} & sys.modules.keys()"
    )

    def seconds() -> float:
        started = time.perf_counter()
        found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert found.returncode == 0, found.stderr
        assert "Reinforced Attention Learning" in found.stdout
        return time.perf_counter() - started

    assert min(seconds() for _ in range(3)) < 1.0


def test_a_mistake_is_one_line_and_exit_code_two(tmp_path: Path) -> None:
    found = runner.invoke(app, ["report", str(tmp_path)])
    assert found.exit_code == 2
    assert found.stderr.startswith("error: ")
    assert str(tmp_path) in found.stderr
    assert "Traceback" not in found.output


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=tmp_path.name):
        runner.invoke(app, ["--debug", "report", str(tmp_path)], catch_exceptions=False)


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_explains_itself(command: str) -> None:
    found = runner.invoke(app, [command, "--help"])
    assert found.exit_code == 0
    assert "Usage" in found.output


def write_items(run: Path, task: str, correct: list[float]) -> None:
    folder = run / "eval" / task
    folder.mkdir(parents=True)
    rows = [json.dumps({"id": str(i), "correct": value}) for i, value in enumerate(correct)]
    (folder / "items.jsonl").write_text("\n".join(rows) + "\n")


def test_compare_shows_the_paired_difference(tmp_path: Path) -> None:
    write_items(tmp_path / "a", "rings", [1.0] * 4 + [0.0] * 6)
    write_items(tmp_path / "b", "rings", [1.0] * 9 + [0.0])
    write_items(tmp_path / "b", "other", [1.0])
    found = runner.invoke(app, ["compare", str(tmp_path / "a"), str(tmp_path / "b")])
    assert found.exit_code == 0
    assert (
        f"On rings (10 items), {tmp_path / 'b'} scores 90.0% and {tmp_path / 'a'} 40.0%: +50.0 points" in found.stdout
    )
    assert "5 items better, 0 worse" in found.stdout


def test_compare_says_what_is_missing(tmp_path: Path) -> None:
    write_items(tmp_path / "a", "rings", [1.0])
    found = runner.invoke(app, ["compare", str(tmp_path / "a"), str(tmp_path / "b")])
    assert found.exit_code == 2
    assert "no evaluation found" in found.stderr
    write_items(tmp_path / "b", "other", [1.0])
    assert "no task in common" in runner.invoke(app, ["compare", str(tmp_path / "a"), str(tmp_path / "b")]).stderr


def test_check_tells_good_data_from_bad(tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    row = {"problem": "How many legs has a spider?", "solution": "8", "problem_type": "numerical"}
    data.write_text(json.dumps(row) + "\n")
    good = runner.invoke(app, ["check", str(data)])
    assert (good.exit_code, "1 rows" in good.stdout, "ready to train" in good.stdout) == (0, True, True)
    data.write_text(json.dumps({**row, "solution": "many"}) + "\n{broken\n")
    bad = runner.invoke(app, ["check", str(data)])
    assert bad.exit_code == 1
    assert "line 2" in bad.stdout
    assert "solutions that no answer can match: 1" in bad.stdout


def test_check_refuses_a_budget_without_a_model(tmp_path: Path) -> None:
    found = runner.invoke(app, ["check", str(tmp_path / "x.jsonl"), "--max-prompt-tokens", "10"])
    assert (found.exit_code, "needs --model" in found.stderr) == (2, True)
