"""FSDP2: a sharded model makes rollouts and gradients as the whole one does, in one process and in two."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from ral.attention import forward_groups, prepare_prompt
from ral.attention.models import make_capturable, pretrained, special_visual_token_ids
from ral.models.gathering import gather_weights, unit_classes
from ral.models.loading import freeze_vision
from ral.objective.terms import attention_loss, grpo_loss
from ral.rollouts.sampling import Sampling, sample
from tests.tiny import EOS, completions, prompt, tiny_model


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def sharded(model: nn.Module, policy: MixedPrecisionPolicy) -> nn.Module:
    """As accelerate does with `reshard_after_forward: false`: every layer and the tower a unit of its own, the rest one more."""
    how: Any = {
        "mesh": init_device_mesh("cpu", (dist.get_world_size(),)),
        "reshard_after_forward": False,
        "mp_policy": policy,
    }
    names = unit_classes(make_capturable(model))
    for module in list(model.modules()):
        if type(module).__name__ in names:
            fully_shard(module, **how)
    return fully_shard(model, **how)


def step(model: nn.Module, layers: tuple[int, ...]) -> tuple[Any, ...]:
    """Rollouts, log-probabilities, attention and gradients of two prompts, one with an image and one with a video."""
    prompts = [prepare_prompt(model, prompt(kind, seed=i)) for i, kind in enumerate(("image", "video"))]
    settings = Sampling(8, (EOS,), temperature=0)
    rollouts = [[one.ids for one in group] for group in sample(model, prompts, 2, settings)]
    outputs = forward_groups(model, prompts, [completions(seed=i) for i in range(2)], layers=layers)
    rows = [rows for output in outputs for rows in output.layers.values()]
    logps = [output.logps for output in outputs]
    torch.stack([x.sum() for x in logps] + [x.square().sum() for x in rows]).sum().backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    whole = {name: g.full_tensor() if isinstance(g, DTensor) else g for name, g in grads.items()}
    return rollouts, [x.detach() for x in logps], [x.detach() for x in rows], whole


@torch.no_grad()
def behind_the_best(model: nn.Module) -> float:
    """By how much (nats) a token of a greedy rollout is less likely than the likeliest one, to the pass that trains on it."""
    prompts = [prepare_prompt(model, prompt(kind, seed=i)) for i, kind in enumerate(("image", "video"))]
    rollouts = sample(model, prompts, 1, Sampling(12, (EOS,), temperature=0))
    ids = [[one.ids for one in group] for group in rollouts]
    banned = torch.tensor(special_visual_token_ids(pretrained(model)))  # these are never drawn, however likely
    outputs = forward_groups(
        model, prompts, ids, token_statistics=lambda logits, hidden, rows: {"top": best(logits, banned)}
    )
    return max(float((output.extra["top"] - output.logps).max()) for output in outputs)


def flat(values: list[Tensor] | dict[str, Tensor]) -> list[Tensor]:
    return [value.float() for value in (values.values() if isinstance(values, dict) else values)]


def best(logits: Tensor, banned: Tensor) -> Tensor:
    return logits.log_softmax(dim=-1).index_fill(-1, banned, float("-inf")).max(dim=-1).values


#: A policy has FSDP2 build anew what it knows among a layer's arguments; without one it does so where a gradient passes.
IN_FLOAT32 = {"no policy": MixedPrecisionPolicy(), "float32 named": MixedPrecisionPolicy(*[torch.float32] * 3)}
IN_BFLOAT16 = {
    "as accelerate": MixedPrecisionPolicy(*[torch.bfloat16] * 3),
    "reduced in float32": MixedPrecisionPolicy(torch.bfloat16, torch.float32),
}


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("policy", IN_FLOAT32.values(), ids=IN_FLOAT32)
@pytest.mark.parametrize(
    ("adapter", "layers"), [(False, (-1,)), (False, (0, -1)), (True, (0, -1))], ids=["full", "two layers", "lora"]
)
def test_a_sharded_model_does_what_the_whole_one_does(
    adapter: bool, layers: tuple[int, ...], policy: MixedPrecisionPolicy
) -> None:
    model: nn.Module = tiny_model()
    if adapter:
        model = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))  # type: ignore[arg-type]
    make_capturable(model)
    split = sharded(copy.deepcopy(model), policy)
    for _ in range(2):
        torch.testing.assert_close(step(split, layers), step(model, layers), atol=1e-6, rtol=1e-5)
    assert all(isinstance(parameter, DTensor) for parameter in split.parameters())


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("policy", IN_BFLOAT16.values(), ids=IN_BFLOAT16)
@pytest.mark.parametrize("layers", [(-1,), (0, -1)], ids=["one layer", "two layers"])
def test_in_bfloat16_it_does_what_the_whole_one_does_in_bfloat16(
    layers: tuple[int, ...], policy: MixedPrecisionPolicy
) -> None:
    model = tiny_model()
    split = sharded(copy.deepcopy(model), policy)
    found = [values for kind in step(split, layers)[1:] for values in flat(kind)]
    exact = [values for kind in step(model, layers)[1:] for values in flat(kind)]
    model.zero_grad()
    for parameter in model.parameters():  # not the buffers: frequencies stay float32, as where a checkpoint is loaded
        parameter.data = parameter.data.bfloat16()
    rounded = [values for kind in step(model, layers)[1:] for values in flat(kind)]
    for ours, whole, true in zip(found, rounded, exact, strict=True):
        assert (ours - whole).norm() <= 1.5 * (whole - true).norm()
    assert behind_the_best(split) < 0.05
    assert all(parameter.grad.dtype == torch.float32 for parameter in split.parameters() if parameter.grad is not None)


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("policy", IN_BFLOAT16.values(), ids=IN_BFLOAT16)
def test_the_update_finds_tokens_as_likely_as_the_pass_before_it(policy: MixedPrecisionPolicy) -> None:
    """So the first update's ratio is exactly 1, whatever the precision: a pass without a gradient is the pass with one."""
    model = sharded(tiny_model(), policy)
    prompts, ys = [prepare_prompt(model, prompt("images"))], [completions()]
    with torch.no_grad():
        (old,) = forward_groups(model, prompts, ys, layers=(0, -1))
    (now,) = forward_groups(model, prompts, ys, layers=(0, -1))
    assert now.logps.requires_grad
    assert torch.equal((now.logps - old.logps).exp(), torch.ones_like(old.logps))
    for layer, rows in old.layers.items():
        assert torch.equal(now.layers[layer], rows)


LAYERS = {"one layer": (-1,), "two layers": (0, -1)}
#: One that rounds nothing, and accelerate's.
IN_TWO_PROCESSES = {"float32 named": IN_FLOAT32["float32 named"], "bfloat16": IN_BFLOAT16["as accelerate"]}
PROMPTS = ("image", "video")


def updates(model: nn.Module, numbers: list[int], layers: tuple[int, ...]) -> tuple[list[Tensor], Tensor, Tensor]:
    """A process's share of the prompts: their rollouts, losses `[2, prompts]` of two updates on fixed completions, the first's ratios."""
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-4)  # of the shards, which are its parameters now
    gather_weights(model)  # rollouts are as many steps as their longest completion, in each process another number
    prompts = [prepare_prompt(model, prompt(PROMPTS[i], seed=i)) for i in numbers]
    generators = [torch.Generator().manual_seed(i) for i in numbers]
    drawn = [one.ids for group in sample(model, prompts, 3, Sampling(10, (EOS,)), generators) for one in group]
    ys = [completions(seed=i) for i in numbers]
    with torch.no_grad():
        old = forward_groups(model, prompts, ys, layers=layers)
    losses, ratios = torch.zeros(2, len(numbers)), torch.ones(0)
    for update in range(2):
        of_prompts = []
        for now, before in zip(forward_groups(model, prompts, ys, layers=layers), old, strict=True):
            weights, advantages = now.mask / now.mask.sum(), torch.tensor([1.0, -0.5, -0.5])
            loss = grpo_loss(now.logps, before.logps, advantages, weights, epsilon=0.2).loss
            for layer, rows in now.layers.items():
                loss = loss + attention_loss(rows, before.layers[layer].roll(1, 0), advantages, weights).loss
            of_prompts.append(loss)
            if update == 0:
                ratios = torch.cat([ratios, (now.logps - before.logps).exp().detach()[now.mask]])
        loss = torch.stack(of_prompts)
        losses[update] = loss.detach()
        (loss.sum() * dist.get_world_size()).backward()  # FSDP2 takes the mean over processes
        optimiser.step()
        optimiser.zero_grad()
    return drawn, losses, ratios


def policy_model() -> PreTrainedModel:
    model = tiny_model()
    freeze_vision(model)
    return model


def share(rank: int, folder: Path) -> None:
    """One process of two: what its prompt gives, for every policy and choice of layers."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found = {
        (name, which): updates(sharded(policy_model(), policy), [rank], layers)
        for name, policy in IN_TWO_PROCESSES.items()
        for which, layers in LAYERS.items()
    }
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


def size(differences: list[Tensor]) -> Tensor:
    """Root mean square over prompts and choices of layers, for each update."""
    return torch.cat(differences, dim=1).square().mean(dim=1).sqrt()


def test_two_processes_do_what_one_does(tmp_path: Path) -> None:
    """In bfloat16 too, where "the same" means the rounding of one process: how far its losses are from those in float32.

    Sharding adds nothing to it. The first update has the same bits in one process under the same policy; the second may
    differ by how the sum of gradients over processes is rounded.
    """
    torch.multiprocessing.spawn(share, (tmp_path,), nprocs=2)
    shares = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/alone", rank=0, world_size=1)
    rounding, under_policy, in_two = [], [], []  # differences from the losses in float32
    try:
        for which, layers in LAYERS.items():
            rollouts, exact, _ = updates(policy_model(), [0, 1], layers)
            drawn, losses, _ = zip(*(found["float32 named", which] for found in shares), strict=True)
            assert [ids.tolist() for ids in drawn[0] + drawn[1]] == [ids.tolist() for ids in rollouts]
            torch.testing.assert_close(torch.cat(losses, dim=1), exact, atol=1e-6, rtol=0)

            with torch.autocast("cpu", torch.bfloat16):  # as accelerate does to a whole model
                rounding.append(updates(policy_model(), [0, 1], layers)[1] - exact)
            alone = updates(sharded(policy_model(), IN_TWO_PROCESSES["bfloat16"]), [0, 1], layers)[1]
            _, losses, ratios = zip(*(found["bfloat16", which] for found in shares), strict=True)
            assert torch.equal(torch.cat(ratios), torch.ones(30))
            assert torch.equal(torch.cat(losses, dim=1)[0], alone[0])
            under_policy.append(alone - exact)
            in_two.append(torch.cat(losses, dim=1) - exact)
    finally:
        dist.destroy_process_group()
    assert (
        size(in_two) <= 2.5 * size(rounding)
    ).all()  # 2.0 and 1.4: autocast leaves sums and norms in float32, a policy does not
    assert size([a - b for a, b in zip(in_two, under_policy, strict=True)])[1] <= size(under_policy)[1]
