"""Sharding that a run may have, and the launchers' files that are shipped for it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType, GradientAccumulationPlugin
from torch.distributed.fsdp import MixedPrecisionPolicy
from transformers import BitsAndBytesConfig

from ral.attention.models import vision_tower
from ral.config import ConfigError, RALConfig
from ral.models.loading import frozen
from ral.models.sharding import configure_sharding, refuse_sharding, zero_vision_loss
from ral.models.zero3 import refuse_measured_gradients
from tests.tiny import tiny_model

RECIPES = Path(__file__).parents[2] / "recipes"
TYPES = {
    "ddp": DistributedType.MULTI_GPU,
    "fsdp2": DistributedType.FSDP,
    "full-shard": DistributedType.FSDP,
    "zero2": DistributedType.DEEPSPEED,
    "zero3": DistributedType.DEEPSPEED,
}


def launched(name: str) -> Any:
    """A launcher's file, as `accelerate launch` reads it."""
    return load_config_from_file(str(RECIPES / "accelerate" / f"{name}.yaml"))


def accelerator(name: str, **changes: Any) -> Any:
    """What `refuse_sharding` reads of an accelerator that such a file made."""
    config = launched(name)
    fsdp = {key.removeprefix("fsdp_"): value for key, value in (config.fsdp_config or {}).items()} | changes
    if config.fsdp_config:
        fsdp["fsdp_version"] = fsdp.pop("version")
        fsdp["cpu_offload"] = fsdp.pop("offload_params")
        return SimpleNamespace(state=SimpleNamespace(fsdp_plugin=FullyShardedDataParallelPlugin(**fsdp)))
    stage = (config.deepspeed_config or {}).get("zero_stage")
    settings = {"zero_optimization": {"stage": stage} | changes}
    plugin = None if stage is None else SimpleNamespace(zero_stage=stage, deepspeed_config=settings)
    return SimpleNamespace(state=SimpleNamespace(deepspeed_plugin=plugin), mixed_precision=config.mixed_precision)


def args(folder: Path, **changes: Any) -> RALConfig:
    return RALConfig(output_dir=str(folder), use_cpu=True, **changes)


def test_there_is_a_launcher_for_every_engine() -> None:
    assert {path.stem for path in (RECIPES / "accelerate").iterdir()} == TYPES.keys()


@pytest.mark.parametrize("name", TYPES)
def test_a_launcher_starts_eight_processes_of_a_run_that_is_allowed(name: str, tmp_path: Path) -> None:
    config = launched(name)
    assert config.distributed_type == TYPES[name]
    assert (config.num_machines, config.num_processes, config.mixed_precision) == (1, 8, "bf16")
    assert f"recipes/accelerate/{name}.yaml" in (RECIPES / "accelerate" / f"{name}.yaml").read_text()
    refuse_sharding(accelerator(name), frozen(tiny_model("qwen2_5_vl")), args(tmp_path))
    refuse_measured_gradients(accelerator(name), 10)


def test_sharding_that_would_hang_or_fail_is_refused(tmp_path: Path) -> None:
    trained, text = tiny_model("qwen2_5_vl"), tiny_model("qwen2")
    with pytest.raises(ConfigError, match=r"fsdp in its first version .* set version: 2"):
        refuse_sharding(accelerator("fsdp2", version=1, reshard_after_forward="FULL_SHARD"), text, args(tmp_path))
    with pytest.raises(ConfigError, match=r"ZeRO-3 with freeze_vision=False: .* use FSDP2"):
        refuse_sharding(accelerator("zero3"), trained, args(tmp_path))
    layers = accelerator("fsdp2", transformer_cls_names_to_wrap=["Qwen2_5_VLDecoderLayer"])
    with pytest.raises(
        ConfigError, match=r"transformer_layer_cls_to_wrap=.* with freeze_vision=False: .* leave .* out"
    ):
        refuse_sharding(layers, trained, args(tmp_path))
    refuse_sharding(layers, text, args(tmp_path))
    for name in ("ddp", "fsdp2", "full-shard", "zero2"):
        refuse_sharding(accelerator(name), trained, args(tmp_path))


def test_quantised_weights_are_not_sharded(tmp_path: Path) -> None:
    model = tiny_model("qwen2")
    model.config.quantization_config = BitsAndBytesConfig(load_in_4bit=True)  # where transformers says so
    with pytest.raises(ConfigError, match=r"quantization under fsdp: .*recipes/accelerate/ddp\.yaml"):
        refuse_sharding(accelerator("fsdp2"), model, args(tmp_path))
    with pytest.raises(ConfigError, match=r"quantization under ZeRO-3: .*recipes/accelerate/ddp\.yaml"):
        refuse_sharding(accelerator("zero3"), model, args(tmp_path))
    refuse_sharding(accelerator("ddp"), model, args(tmp_path))


@pytest.mark.parametrize("optim", ["adafactor", "adamw_8bit", "adamw_bnb_8bit", "paged_adamw_32bit", "lion_8bit"])
def test_an_optimiser_that_cannot_update_shards_is_refused_where_weights_are_sharded(
    optim: str, tmp_path: Path
) -> None:
    text = tiny_model("qwen2")
    with pytest.raises(ConfigError, match=rf"optim={optim[:6]}.* under fsdp: .* use adamw_torch"):
        refuse_sharding(accelerator("full-shard"), text, args(tmp_path, optim=optim))
    refuse_sharding(accelerator("zero2"), text, args(tmp_path, optim=optim))
    for other in ("adamw_torch", "adamw_torch_8bit", "sgd"):
        refuse_sharding(accelerator("full-shard"), text, args(tmp_path, optim=other))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_gradients_are_added_up_in_float32_and_shared_out_after_every_micro_batch(precision: str) -> None:
    own = Accelerator(cpu=True, gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1))
    made = accelerator("fsdp2").state.fsdp_plugin
    made.set_mixed_precision(precision)  # as accelerate does
    computed = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    assert made.mixed_precision_policy == MixedPrecisionPolicy(computed, computed, computed)
    sharded = SimpleNamespace(state=SimpleNamespace(fsdp_plugin=made), gradient_state=own.gradient_state)
    configure_sharding(sharded, tiny_model("qwen2_5_vl"))
    assert made.mixed_precision_policy == MixedPrecisionPolicy(computed, torch.float32, None)
    assert own.gradient_state.plugin_kwargs == {"num_steps": 1, "sync_each_batch": True}
    # The tower as a whole, not its blocks: they would reduce gradients as often as a process has images.
    assert made.transformer_cls_names_to_wrap == ["Qwen2_5_VLDecoderLayer", "Qwen2_5_VisionTransformerPretrainedModel"]


def test_zero3_measures_no_gradients_that_deepspeed_does_not_tell() -> None:
    offloaded = {"offload_optimizer": {"device": "cpu"}}
    refuse_measured_gradients(accelerator("zero3", **offloaded), 0)
    with pytest.raises(ConfigError, match=r"gradient_norm_steps=10 under ZeRO-3 .* set gradient_norm_steps=0"):
        refuse_measured_gradients(accelerator("zero3", **offloaded), 10)


def test_without_sharding_nothing_is_configured() -> None:
    own = Accelerator(cpu=True, gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1))
    configure_sharding(own, tiny_model("qwen2"))
    assert not own.gradient_state.plugin_kwargs.get("sync_each_batch")


@pytest.mark.parametrize("model", ["qwen2_5_vl", "qwen2_vl", "qwen3_vl"])
def test_a_blank_image_gives_the_whole_tower_a_gradient_of_zero(model: str) -> None:
    policy = tiny_model(model)
    nothing = zero_vision_loss(policy)
    assert nothing == 0
    nothing.backward()
    for parameter in vision_tower(policy).parameters():
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, torch.zeros_like(parameter))


def slurm(folder: Path, **more: str) -> dict[str, str]:
    """The environment of a job on two machines. Slurm's own commands, and the launcher, are replaced by what prints how it was called."""
    for name, body in {
        "scontrol": "printf 'first\\nsecond\\n'",
        "srun": '[[ $1 == --overlap ]] && shift && exec "$@"; for SLURM_NODEID in 0 1; do export SLURM_NODEID; "$@"; done',
        "accelerate": 'echo "$TORCH_ELASTIC_SHUTDOWN_TIMEOUT s" "$@"',
        "vllm": f'echo "$CUDA_VISIBLE_DEVICES: $@" >> {folder}/served; exec /bin/sleep 2',
        "curl": f"[[ $(cat {folder}/served | wc -l) == $EACH ]]",
        "sleep": 'exec /bin/sleep "${1/10/0.1}"',
    }.items():
        (folder / name).write_text(f"#!/bin/bash\n{body}\n")
        (folder / name).chmod(0o755)
    path = f"{folder}:{os.environ['PATH']}"
    return {"SLURM_JOB_NODELIST": "n[1-2]", "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "8", "PATH": path, **more}


def test_the_slurm_script_starts_one_launcher_a_machine(tmp_path: Path) -> None:
    words = ["recipe.yaml", "--output_dir", "a folder"]
    found = subprocess.run(
        ["bash", str(RECIPES / "slurm/train.sbatch"), *words],
        env=slurm(tmp_path),
        capture_output=True,
        text=True,
        check=True,
    )
    expected = (
        "290 s launch --config_file recipes/accelerate/ddp.yaml --num_machines 2 --num_processes 16 --machine_rank {} "
        "--main_process_ip first --main_process_port 29500 --no_python ral train recipe.yaml --output_dir a folder"
    )
    assert found.stdout.splitlines() == [expected.format(rank) for rank in (0, 1)]


def test_the_slurm_script_with_servers_starts_them_first_and_names_them_all(tmp_path: Path) -> None:
    """The stand-in for srun starts those of one machine."""
    words = ["recipes/qwen2.5-vl-7b-shared.yaml", "--max_steps", "4"]
    found = subprocess.run(
        ["bash", "recipes/slurm/shared.sbatch", *words], env=slurm(tmp_path, EACH="2", OPTIONS="--max-model-len 4096"),
        cwd=RECIPES.parent, capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    served = sorted((tmp_path / "served").read_text().splitlines())
    line = (
        "{}: serve runs/qwen2.5-vl-7b-sft --port {} --tensor-parallel-size 4 --gpu-memory-utilization 0.5 --enable-sleep-mode "
        "--enable-scale-out --logprobs-mode processed_logprobs --max-model-len 4096"
    )
    assert served == [line.format("0,1,2,3", 8000), line.format("4,5,6,7", 8001)]
    urls = ",".join(f"http://{machine}:{port}" for machine in ("first", "second") for port in (8000, 8001))
    assert [out.partition("ral train ")[2] for out in found.stdout.splitlines()] == [
        f"{' '.join(words)} --vllm_url {urls}"
    ] * 2
