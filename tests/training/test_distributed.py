"""Several real processes against one, on the same global batches of images, videos and text."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.common import in_fresh_process
from experiments.processes import SHARDING, Case, run

from ral.models.sharding import full_state_dict
from ral.training.nonfinite import NonFiniteError
from tests.training.test_trainer import spread, trainer

#: What the processes of a run measure together; the loss itself passes through zero.
COMPARED = ("grad_norm", "reward", "kl", "entropy", "visual_share", "completion_length")
#: Gradients of the whole step; the attention term's is rounding while a row is its own target.
MEASURED = ("grad/token_norm", "grad/attention_norm")
#: Those that ask for something of all processes.
OPTIONS = {
    "dynamic_sampling": True, "scale_rewards": "batch", "mask_truncated_completions": True, "top_entropy_quantile": 0.5,
    "entropy_coef": 0.01, "steps_per_generation": 2, "num_iterations": 1, "sync_ref_model": True, "ref_model_sync_steps": 2,
}  # fmt: skip


def heads(by: str) -> dict[str, Any]:
    """Heads are measured by all processes together; were they others, so would be the shares of attention."""
    return {"top": 2, "by": by}


CASES = {
    "think, explore, accumulated": (
        Case("think", 4, attention_anchor="explore", attention_share=0.3, accumulation=2, heads=heads("evidence")),
        "ddp",
        2,
    ),
    "think, options of GRPO": (Case("think", 4, settings=OPTIONS), "ddp", 2),
    "mixed, float32 named": (
        Case("mixed", 4, precision="fp32", heads=heads("visual"), accumulation=2),
        "full-shard",
        2,
    ),
    # Each process needs another number of passes: text has no blocks, and lengths of completions differ.
    "mixed, masking": (
        Case("mixed", 4, attention_anchor="evidence", settings={"evidence_from": "masking"}),
        "full-shard",
        2,
    ),
    "mixed, adapter": (Case("mixed", 4, adapter=True), "full-shard", 2),
    "mixed, vision trained, sharded": (Case("mixed", 4, freeze_vision=False), "fsdp2", 2),
    "mixed, vision trained": (Case("mixed", 6, freeze_vision=False), "ddp", 4),
    "taught, mixed": (Case("mixed", 5, taught=True), "full-shard, checkpointing", 2),
    "taught, mixed, vision trained": (Case("mixed", 5, taught=True, freeze_vision=False), "ddp", 4),
    "mixed, reentrant checkpoints": (
        Case("mixed", 2, settings={"gradient_norm_steps": 0}),
        "full-shard, reentrant",
        2,
    ),
    "a hybrid": (Case("think", 2, family="qwen3_5"), "fsdp2", 2),
    "mixed, ZeRO-2": (Case("mixed", 4), "zero2", 2),
    "mixed, ZeRO-3": (Case("mixed", 4), "zero3", 2),
    "mixed, served, ZeRO-3": (Case("mixed", 4, served=True), "zero3", 2),
    "mixed, adapter, ZeRO-3": (Case("mixed", 4, adapter=True), "zero3", 2),
    "think, explore, accumulated, ZeRO-3": (
        Case("think", 4, attention_anchor="explore", attention_share=0.3, accumulation=2, heads=heads("evidence")),
        "zero3",
        2,
    ),
    "think, options of GRPO, ZeRO-3": (Case("think", 4, settings=OPTIONS), "zero3", 2),
    "taught, mixed, ZeRO-3": (Case("mixed", 4, taught=True), "zero3", 2),
}


@pytest.mark.parametrize("name", CASES)
def test_several_processes_are_one_with_the_same_batches(name: str, tmp_path: Path) -> None:
    case, engine, processes = CASES[name]
    if case.data == "mixed":
        pytest.importorskip("minigrid")
    if engine.startswith("zero"):
        pytest.importorskip("deepspeed")
    alone, expected = run(replace(case, accumulation=1), "ddp", 1, tmp_path / "alone")
    metrics, parameters = run(case, engine, processes, tmp_path / "together")
    assert [row["step"] for row in metrics] == list(range(1, case.steps + 1))
    assert case.taught or any(row["visual_share"] for row in alone)
    largest = max(abs(row["loss"]) for row in alone)
    measured = () if case.taught or case.settings.get("gradient_norm_steps") == 0 else MEASURED
    for row, other in zip(alone, metrics, strict=True):
        assert other["loss"] == pytest.approx(row["loss"], abs=1e-5 * largest), row["step"]
        for metric in measured:
            # Under ZeRO-3 the attention term's, a difference of rows that are nearly equal, comes of another pass.
            slack = 1e-7 if engine == "zero3" else 1e-8
            assert other.get(metric) == pytest.approx(row.get(metric), rel=5e-5, abs=slack), (row["step"], metric)
        for metric in ("grad_norm",) if case.taught else COMPARED:
            assert other[metric] == pytest.approx(row[metric], rel=1e-4, abs=1e-6), (row["step"], metric)
    assert parameters.keys() == expected.keys()
    for parameter, value in expected.items():
        torch.testing.assert_close(parameters[parameter], value, atol=2e-5, rtol=0)


def test_in_bfloat16_the_first_update_starts_from_the_policy_and_the_reference(tmp_path: Path) -> None:
    """FSDP2 sets the precision of all: were the reference under autocast as well, the KL would not start at 0."""
    metrics, _ = run(Case("think", 2, precision="bf16", accumulation=2), "fsdp2", 2, tmp_path / "together")
    first = metrics[0]
    assert (first["ratio"], first["kl"], first["clip_fraction"]) == (1, 0, 0)
    assert 0 < first["grad_norm"] < 100
    assert metrics[1]["ratio"] != 1


def overflows(engine: str, folder: Path) -> tuple[str, bool]:
    """What stopped a run on DeepSpeed, and whether the weights are what they were."""
    os.environ |= {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29511",
    }
    one = trainer(folder, reward_funcs=spread, gradient_norm_steps=0, beta=0.0, **SHARDING[engine])
    first = next(parameter for parameter in one.model.parameters() if parameter.requires_grad)
    first.register_hook(lambda gradient: torch.full_like(gradient, torch.inf))
    before = {name: value.clone() for name, value in one.model.state_dict().items()}
    try:
        one.train()
    except NonFiniteError as error:
        after = full_state_dict(one.model_wrapped, one.accelerator)
        return str(error), all(torch.equal(value, after[name]) for name, value in before.items())
    return "nothing", False


@pytest.mark.parametrize("engine", ["zero2", "zero3"])
def test_deepspeed_makes_no_update_of_a_gradient_that_is_not_finite(engine: str, tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    told, untouched = in_fresh_process(overflows, engine, tmp_path)
    assert "step 1: the gradient's norm is inf" in told
    assert untouched
    assert (tmp_path / "nonfinite-1/model/model.safetensors").is_file()
