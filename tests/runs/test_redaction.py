"""Credentials stay out of what is written and shown."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from ral import RALConfig
from ral.cli import app
from ral.config import ConfigError
from ral.runs.folder import prepare_run
from ral.runs.redaction import redacted, without_credentials

SECRET = "hunter2hunter2hunter2"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"https://me:{SECRET}@example.org/a?b", "https://***@example.org/a?b"),
        (f"git+ssh://{SECRET}@host/x", "git+ssh://***@host/x"),
        (f"hf_{SECRET}", "hf_***"),
        (f"key=sk-{SECRET}.", "key=sk-***."),
        ("mail me@example.org", "mail me@example.org"),
        ("https://example.org/@user", "https://example.org/@user"),
        ("the shelf_life of task-oriented models", "the shelf_life of task-oriented models"),
    ],
)
def test_credentials_in_a_text_become_stars(text: str, shown: str) -> None:
    assert redacted(text) == shown


def test_settings_lose_their_credentials_at_any_depth() -> None:
    given = {
        "hub_token": SECRET, "api_key": SECRET, "tracker": {"password": SECRET, "url": f"https://me:{SECRET}@x.org"},
        "hosts": [f"https://{SECRET}@y.org", 3], "max_completion_length": 64, "tokens_per_second": 2.0,
    }  # fmt: skip
    kept = without_credentials(given)
    assert SECRET not in json.dumps(kept)
    assert kept == {
        "tracker": {"url": "https://***@x.org"}, "hosts": ["https://***@y.org", 3], "max_completion_length": 64,
        "tokens_per_second": 2.0,
    }  # fmt: skip


def test_a_run_folder_holds_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    prepare_run(tmp_path / "run", {"data": f"https://me:{SECRET}@example.org/d.json", "wandb_api_key": SECRET})
    written = {path.name: path.read_text() for path in (tmp_path / "run").iterdir()}
    assert SECRET not in "".join(written.values())
    assert yaml.safe_load(written["config.yaml"]) == {"data": "https://***@example.org/d.json"}


def test_a_credential_is_no_setting(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="hub_token is a credential") as caught:
        RALConfig(output_dir=str(tmp_path), use_cpu=True, hub_token=SECRET)
    assert SECRET not in str(caught.value)


def test_a_message_holds_none() -> None:
    for command in ("check", "train"):
        found = CliRunner().invoke(app, [command, f"https://me:{SECRET}@example.org/data"])
        assert found.exit_code in (1, 2)
        assert SECRET not in found.output
        assert "***@example.org/data" in "".join(found.output.split())
