from __future__ import annotations

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
