"""FSDP2: a sharded model makes rollouts and gradients as the whole one does; one process, so that it runs anywhere."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from ral.attention import forward_groups, prepare_prompt
from ral.attention.models import make_capturable
from ral.rollouts.sampling import Sampling, sample
from tests.tiny import EOS, completions, prompt, tiny_model


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def sharded(model: nn.Module) -> nn.Module:
    """As accelerate does with `reshard_after_forward: false`: every layer a unit of its own, the rest one more."""
    mesh = init_device_mesh("cpu", (1,))
    names = make_capturable(model)._no_split_modules
    for module in list(model.modules()):
        if type(module).__name__ in names:
            fully_shard(module, mesh=mesh, reshard_after_forward=False)
    return fully_shard(model, mesh=mesh, reshard_after_forward=False)


def step(model: nn.Module) -> tuple[Any, ...]:
    """Rollouts, log-probabilities, attention and gradients of two prompts, one with an image and one with a video."""
    prompts = [prepare_prompt(model, prompt(kind, seed=i)) for i, kind in enumerate(("image", "video"))]
    settings = Sampling(4, (EOS,), temperature=0)
    rollouts = [[one.ids for one in group] for group in sample(model, prompts, 2, settings)]
    outputs = forward_groups(model, prompts, [completions(seed=i) for i in range(2)])
    torch.stack([output.logps.sum() + output.attention.square().sum() for output in outputs]).sum().backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    whole = {name: g.full_tensor() if isinstance(g, DTensor) else g for name, g in grads.items()}
    return rollouts, [output.logps.detach() for output in outputs], whole


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
def test_a_sharded_model_does_what_the_whole_one_does(adapter: bool) -> None:
    model: nn.Module = tiny_model()
    if adapter:
        model = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))  # type: ignore[arg-type]
    make_capturable(model)
    split = sharded(copy.deepcopy(model))
    for _ in range(2):
        torch.testing.assert_close(step(split), step(model), atol=1e-6, rtol=1e-5)
    assert all(isinstance(parameter, DTensor) for parameter in split.parameters())
