"""What a run that Python starts says of itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from peft import LoraConfig
from PIL import Image
from typer.testing import CliRunner

from ral import RALConfig, RALTrainer
from ral.cli import app
from ral.data.fingerprint import fingerprint
from ral.errors import ConfigError
from ral.evaluate.settings import EvalSettings
from ral.files import read_yaml
from ral.models.loading import export, load_config, load_processor
from ral.testbed.rings import ring_records
from ral.training.run_origin import named


def test_the_output_of_python_is_evaluated_and_reported_as_it_was_trained(tmp_path: Path) -> None:
    args = RALConfig(
        str(tmp_path), template="plain", think=False, max_pixels=3136, max_completion_length=3, attention_layers=[0],
        num_generations=2, per_device_train_batch_size=2, max_steps=1, use_cpu=True, scorer="compat", save_strategy="steps",
        save_steps=2, hub_private_repo=None,
    )  # fmt: skip
    records = ring_records(4, seed=3)
    trainer = RALTrainer("start", args, records, reward_funcs=["accuracy"], reward_weights=[2.0])
    trainer.train()
    trainer.save_model()
    settings = EvalSettings.of_model(tmp_path)
    assert (settings.template, settings.think, settings.max_pixels) == ("plain", False, 3136)
    assert (settings.max_completion_length, settings.scorer, settings.layer) == (3, "compat", 0)
    config = read_yaml(tmp_path / "config.yaml", "the settings")
    assert (config["model"], config["reward_funcs"], config["reward_weights"]) == ("start", ["accuracy"], [2.0])
    assert not {"data", "teacher"} & config.keys(), "what lies in memory has no name"
    facts = json.loads((tmp_path / "environment.json").read_text())
    assert (facts["data"], facts["processes"]) == (fingerprint(records), 1)
    found = CliRunner().invoke(app, ["eval", str(tmp_path), "--tasks", "rings", "--n", "2"])
    assert found.exit_code == 0, found.output
    asked = json.loads((tmp_path / "eval/rings/settings.json").read_text())
    assert {"template": "plain", "think": False, "max_completion_length": 3}.items() <= asked.items()
    assert CliRunner().invoke(app, ["report", str(tmp_path)]).exit_code == 0
    assert "compat" in (tmp_path / "report.html").read_text()


def test_only_what_has_a_name_is_named() -> None:
    assert [named(value) for value in ("a", Path("b"), ["c", "d"], [len], [{"problem": len}], [], None, len, {"x": "y"}, 4)] == [
        "a", "b", ["c", "d"], None, None, None, None, None, {"x": "y"}, 4,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "runs/firts",
            r"runs/firts: there is no such folder; did you mean runs/first\? To take it from the hub.*hf download runs/firts",
        ),
        ("runs/first/fnal", r"runs/first/fnal: there is no such folder; did you mean runs/first/final\?$"),
        ("./start", r"\./start: there is no such folder; check the path"),
        ("/no/where/at/all", "there is no such folder"),
        ("a model", "there is no such folder"),
    ],
)
def test_a_mistyped_folder_is_refused_without_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, said: str
) -> None:
    (tmp_path / "runs/first/final").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for load in (load_config, load_processor):
        with pytest.raises(ConfigError, match=said):
            load(name)
    with pytest.raises(ConfigError, match=said):
        RALTrainer(name, RALConfig("out", use_cpu=True), ring_records(2, seed=1))


def test_a_checkpoint_is_asked_as_it_was_trained_wherever_it_lies(tmp_path: Path) -> None:
    args = RALConfig(
        str(tmp_path / "run"), template="plain", max_completion_length=3, num_generations=2, per_device_train_batch_size=2,
        max_steps=2, use_cpu=True, save_strategy="steps", save_steps=2, system_prompt="Answer.",
    )  # fmt: skip
    adapter = LoraConfig(r=2, target_modules=["q_proj"])
    RALTrainer("start", args, ring_records(4, seed=3), peft_config=adapter).train()
    (tmp_path / "run/checkpoint-2").rename(tmp_path / "kept")
    export(tmp_path / "kept", tmp_path / "whole")
    for folder in ("kept", "whole"):
        settings = EvalSettings.of_model(tmp_path / folder)
        assert (settings.template, settings.max_completion_length, settings.system_prompt) == ("plain", 3, "Answer.")
    rows = [{"caption": "What colour?", "label": "red", "picture": str(tmp_path / "a.png"), "boxes": [[0, 0, 0.5, 1]]}]
    Image.new("RGB", (56, 56), "red").save(tmp_path / "a.png")
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["eval", str(tmp_path / "whole"), "--tasks", str(tmp_path / "own.jsonl"), "--output", str(tmp_path / "out")]
    found = CliRunner().invoke(app, words)
    assert (found.exit_code, "'caption', 'label'" in found.output) == (2, True), "columns of another name"
    columns = "{problem: caption, solution: label, images: picture}"
    found = CliRunner().invoke(app, [*words, "--columns", columns, "--box-scale", "unit"])
    assert found.exit_code == 0, found.output
    (item,) = map(json.loads, (tmp_path / "out/own/items.jsonl").read_text().splitlines())
    assert (item["solution"], item["boxes"]) == ("red", [[0.0, 0.0, 28.0, 56.0]])
