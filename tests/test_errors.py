"""What a user can mend is one line; a mistake of ours is a traceback."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

import ral
from ral.attention.flex import KernelError
from ral.cli import app
from ral.errors import (
    ConfigError,
    DataError,
    MissingPackageError,
    RunError,
    UsageError,
    WorkerError,
    refused_by,
)
from ral.rollouts.vllm.server import ServerError
from ral.runs.checkpoints import CheckpointError

MENDED = [ConfigError, DataError, UsageError, RunError, WorkerError, MissingPackageError, CheckpointError, KernelError, ServerError]  # fmt: skip


def raising(error: Exception) -> Callable[..., None]:
    def fails(*arguments: object, **named: object) -> None:
        raise error

    return fails


@pytest.mark.parametrize("kind", [*MENDED, FileNotFoundError, PermissionError])
def test_what_can_be_mended_is_one_line(kind: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ral.quickstart.run_quickstart", raising(kind("the folder [a] is full; choose another")))
    found = CliRunner().invoke(app, ["quickstart"])
    assert found.exit_code == 2
    assert found.stderr == "error: the folder [a] is full; choose another\n"


@pytest.mark.parametrize("kind", [ValueError, RuntimeError, KeyError, ImportError, TypeError])
def test_anything_else_is_a_traceback(kind: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    error = kind("ours")
    monkeypatch.setattr("ral.quickstart.run_quickstart", raising(error))
    found = CliRunner().invoke(app, ["quickstart"])
    assert (found.exit_code, found.exception, found.stderr) == (1, error, "")


def test_every_error_class_of_the_package_is_one_that_can_be_mended() -> None:
    """Exceptions that end a process on purpose are no errors."""
    sources = Path(ral.__file__).parent.rglob("*.py")
    classes = [
        node
        for path in sources
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.ClassDef)
    ]
    bases = {node.name: [ast.unparse(base) for base in node.bases] for node in classes}
    mended = {"RalError"}
    while more := {name for name, above in bases.items() if mended & {*above} and name not in mended}:
        mended |= more
    errors = {name for name in bases if name.endswith("Error")} | {kind.__name__ for kind in MENDED}
    assert errors == mended


def test_what_a_library_refuses_is_the_users_and_an_error_of_ours_keeps_its_kind() -> None:
    with pytest.raises(ConfigError, match=r"^m: peft refuses it \(no such rank\)$"), refused_by("peft", "m"):
        raise ValueError("no such rank")
    with pytest.raises(DataError, match=r"^row 1$"), refused_by("peft", "m"):
        raise DataError("row 1")
    with pytest.raises(AttributeError), refused_by("peft", "m"):
        raise AttributeError("ours")
