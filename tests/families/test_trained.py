"""Two updates of the trainer on other architectures, with real processors and pictures.

`python -m experiments.families.train` does it for all of them, and on several processes; here are one hybrid, one tiled model and
one whose image tokens see each other.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from experiments.families.check import read
from experiments.families.processors import PROCESSORS, model_for
from experiments.families.train import faults, rollouts_are_exact, two_updates
from typer.testing import CliRunner

from ral.cli import app
from ral.evaluate.runner import evaluate
from ral.evaluate.settings import EvalSettings
from ral.evaluate.tasks import Task
from ral.evaluate.tasks.own import by_type
from ral.testbed.rings import ring_records

KINDS = ("qwen3_5", "internvl", "gemma3")


@pytest.mark.parametrize("adapter", [False, True], ids=["whole", "adapter"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_first_update_starts_from_old_policy_and_reference(kind: str, adapter: bool, tmp_path: Path) -> None:
    assert faults(two_updates(kind, tmp_path, adapter)) == []
    assert adapter or rollouts_are_exact(kind)


def test_the_faults_are_found() -> None:
    good = {"ratio": 1.0, "kl": 0.0, "grad_norm": 1.0, "attention/on_evidence": 0.1, "grad/attention_norm": 0.1}
    later = good | {"ratio": 1.01, "kl": 1e-3}
    assert faults([good, later]) == []
    for name, bad in (("ratio", 1.0001), ("kl", 1e-9), ("grad_norm", float("nan")), ("grad/attention_norm", 0.0)):
        assert len(faults([good | {name: bad}, later])) == 1
    assert faults([good, good]) == ["the update changed nothing"]


def test_ten_architectures_and_more_were_trained() -> None:
    trained = [line.kind for line in read() if line.trained]
    assert set(KINDS) <= set(trained)
    assert len(trained) >= 20


@pytest.mark.parametrize("kind", ["qwen3_5", "internvl"])
def test_ral_look_draws_what_a_saved_hybrid_or_tiled_model_sees(kind: str, tmp_path: Path) -> None:
    made = PROCESSORS[kind]()
    model_for(kind, made).save_pretrained(tmp_path / "model")
    made[0].save_pretrained(tmp_path / "model")
    (record,) = ring_records(1, seed=0)
    record.images[0].save(tmp_path / "ring.png")
    words = ["look", str(tmp_path / "model"), "--image", str(tmp_path / "ring.png"), "--question", "what?", "--output",
             str(tmp_path / "look.html"), "--template", "plain", "--no-think", "--max-completion-length", "4"]  # fmt: skip
    found = CliRunner().invoke(app, [*words, "--heads", "[1, 2]"])
    assert found.exit_code == 0, found.output
    page = (tmp_path / "look.html").read_text(encoding="utf-8")
    assert "3 of 0 to 3" in page
    assert "1, 2" in page
    if kind == "qwen3_5":
        refused = CliRunner().invoke(app, [*words, "--layer", "0"])
        assert "contains 0, a layer without attention; those with it are [3]" in refused.stderr


@pytest.mark.parametrize("kind", ["qwen3_5", "internvl"])
def test_hybrids_and_tiled_models_are_evaluated_with_every_probe(kind: str, tmp_path: Path) -> None:
    """Their answers are noise; so the solution is what they say."""
    made = PROCESSORS[kind]()
    model, processor = model_for(kind, made), made[0]
    task = Task("rings", lambda table, media: ring_records(2, seed=0), by_type)
    settings = EvalSettings(think=False, template="plain", max_completion_length=4, probes="all", heads=[1, 2], show=2)
    summary = evaluate(model, processor, task, tmp_path, settings=settings)
    assert summary.grounding is not None
    assert summary.layers is not None
    found = [layer is not None for layer in summary.layers]
    assert found == ([False] * 3 + [True] if kind == "qwen3_5" else [True] * 4)
    assert summary.settings["layer"] == 3
    heads = summary.probes["heads"]
    assert [len(row) for row in heads] == [4 * with_attention for with_attention in found]
    assert summary.grounding.visual_share == pytest.approx(
        (heads[3][1]["visual_share"] + heads[3][2]["visual_share"]) / 2
    )
    assert {"relative", "without_sinks", "masking", "masking-text"} <= summary.probes.keys()
