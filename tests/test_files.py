from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ral.errors import DataError
from ral.files import atomic_write_bytes, atomic_write_text, json_line, parse_yaml, read_jsonl, remove_parts


def test_atomic_write_makes_parents_and_replaces(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b.txt"
    atomic_write_text(target, "one\n")
    atomic_write_text(target, "zwei ä\n")
    assert target.read_text(encoding="utf-8") == "zwei ä\n"
    assert os.listdir(target.parent) == ["b.txt"]


def test_atomic_write_leaves_the_old_file_when_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "a.bin"
    atomic_write_bytes(target, b"old")

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        atomic_write_bytes(target, b"new")
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_atomic_write_gives_the_permissions_of_open(tmp_path: Path) -> None:
    atomic_write_text(tmp_path / "ours", "")
    (tmp_path / "theirs").write_text("")
    assert stat.S_IMODE((tmp_path / "ours").stat().st_mode) == stat.S_IMODE((tmp_path / "theirs").stat().st_mode)


def test_json_line_holds_no_invalid_json_at_any_depth() -> None:
    row = {
        "loss": float("inf"),
        "rewards": {"accuracy": float("nan")},
        "values": (1.5, -float("inf")),
        "text": "色",
    }
    assert json.loads(json_line(row)) == {
        "loss": None,
        "rewards": {"accuracy": None},
        "values": [1.5, None],
        "text": "色",
    }


def test_read_jsonl_passes_over_a_last_line_that_was_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"ste')
    assert [row["step"] for row in read_jsonl(path)] == [1, 2]


@pytest.mark.parametrize(
    ("content", "message"),
    [('{"a": 1}\n{oops}\n', "line 2: not valid JSON"), ("[1]\n", "line 1: expected a JSON object")],
)
def test_read_jsonl_names_file_and_line(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text(content)
    with pytest.raises(ValueError, match=f"m.jsonl, {message}"):
        list(read_jsonl(path))


def test_what_a_killed_write_left_is_removed(tmp_path: Path) -> None:
    """A real kill, between the bytes and the rename."""
    program = (
        "import os, signal, sys; from pathlib import Path; from ral.files import atomic_write_text\n"
        "os.replace = lambda *paths: os.kill(os.getpid(), signal.SIGKILL)\n"
        "atomic_write_text(Path(sys.argv[1]), 'new')"
    )
    (tmp_path / "notes.txt").write_text("old")
    (tmp_path / ".gitignore").write_text("mine")
    killed = subprocess.run([sys.executable, "-c", program, str(tmp_path / "notes.txt")], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 3
    remove_parts(tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"notes.txt": "old", ".gitignore": "mine"}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5), ("no", "no"), ("true", True), ("2024-01-01", "2024-01-01"), ("~", None), ("", None), ("012", 12), ("=", "="),
        ("12:30", "12:30"), ("'3'", "3"), ("[1, a, 1.5]", [1, "a", 1.5]), ("a: {b: .inf}", {"a": {"b": float("inf")}}),
    ],
)  # fmt: skip
def test_yaml_is_that_of_version_1_2(text: str, value: object) -> None:
    assert parse_yaml(text) == value


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: 2\na: 3\n", r"^line 3: not valid YAML \(found duplicate key .a. "),
        ("x:\n  y: 1\n  y: 2\n", r"^line 3: not valid YAML \(found duplicate key .y. "),
        ("a: &x 1\nb: [*x]\n", r"^line 2: not valid YAML \(a reference \(\*name\); write the value out\)"),
        ("base: &b {c: 1}\nd:\n  <<: *b\n", r"^line 3: not valid YAML \(a reference"),
        ("a: {b\n", r"^line 2: not valid YAML"),
        ("a: 1\n---\nb: 2\n", r"not valid YAML"),
        ("!!python/name:os.system x", r"^line 1: not valid YAML \(could not determine a constructor"),
        ("a: !!int x\n", r"^not valid YAML \(invalid literal"),
        ("a: \x07", r"^not valid YAML \(unacceptable character"),
    ],
)  # fmt: skip
def test_what_is_no_plain_yaml_is_refused_in_one_line(text: str, said: str) -> None:
    with pytest.raises(DataError, match=said) as caught:
        parse_yaml(text)
    assert "\n" not in str(caught.value)


@given(st.text())
def test_any_text_is_a_value_or_one_line(text: str) -> None:
    said = ""
    try:
        parse_yaml(text)
    except DataError as error:
        said = str(error)
    assert "\n" not in said
