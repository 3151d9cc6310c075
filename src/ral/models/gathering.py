"""What all processes gather of a sharded model, so that each of them can make passes of its own.

Under FSDP2 a model is sharded in units: its decoder layers, its vision tower, its embeddings, and the rest. A unit gathers its weights from all
processes when it is called. Afterwards it gives them back (`reshard_after_forward: true`) or keeps them until the backward pass
(`false`). So all processes must call the units equally often and in the same order, unless the weights are gathered already.

If weights are given back, some units are kept all the same, as their weights are used outside of their own call:

- the vision tower, because not every process has an image;
- the layers whose attention is trained, because the attention term reaches their queries and keys past their output;
- the output embedding, because log-probabilities are computed before its own call;
- what belongs to no other unit.

Under ZeRO-3 (`ral.models.zero3`) every module gathers its own weights and gives them back. Nothing is kept, as nothing is used
outside of its own call: the vision tower was never shared out, and log-probabilities leave the output embedding as its output.

Rollouts, of which no two processes need equally many passes, are made in lock-step (`ral.rollouts.lock_step`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from accelerate import Accelerator, FullyShardedDataParallelPlugin
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from ral.attention.models import decoder_layers, pretrained, resolve_layers, vision_tower
from ral.models.zero3 import is_zero3


def fsdp_plugin(accelerator: Accelerator) -> FullyShardedDataParallelPlugin | None:
    """How FSDP shards; None where it does not. (`accelerator.is_fsdp2` turns false once accelerate has prepared an optimiser.)"""
    return getattr(accelerator.state, "fsdp_plugin", None)


def gives_back(accelerator: Accelerator) -> bool:
    """Whether weights are given back after every layer, so that all processes must make the same number of passes."""
    fsdp = fsdp_plugin(accelerator)
    return is_zero3(accelerator) if fsdp is None else bool(fsdp.reshard_after_forward)


def unit_classes(model: nn.Module) -> list[str]:
    """Names of the classes whose modules become units: the decoder's layers, and each part of the vision tower as a whole.

    A tower is one unit, as its parts would reduce their gradients as often as it is called, in each process another time.
    """
    base = pretrained(model)
    return sorted({type(module).__name__ for module in (*decoder_layers(base), *vision_tower(base).children())})


def gather_weights(model: nn.Module) -> None:
    """Let each process call any part of the model as often as it needs, until the next backward pass; all must call this.

    Weights that are not sharded are whole already. FSDP2 keeps what is gathered where `reshard_after_forward` is false.
    """
    for unit in _units(model):
        unit.unshard()


def gather_for_rollouts(accelerator: Accelerator, model: nn.Module, layers: Sequence[int]) -> None:
    """Gather all weights, or where they are given back what is kept all the same; all processes must call this."""
    if gives_back(accelerator):
        gather_kept(model, layers)
    else:
        gather_weights(model)


def gather_vision(model: nn.Module) -> None:
    """Gather the vision tower, and keep it until the next backward pass; all processes must call this."""
    _gather_and_keep(_units(vision_tower(pretrained(model))))


def gather_kept(model: nn.Module, layers: Sequence[int] = ()) -> None:
    """Gather the units that are needed outside of their own call, and keep them until the next backward pass.

    All processes must call this, before PEFT switches an adapter off: that sets a flag on the weights that a module holds, and must
    find the same ones again.

    Args:
        layers: decoder layers whose attention is trained.
    """
    if not isinstance(model, FSDPModule):
        return
    base = pretrained(model)
    decoder, head = decoder_layers(base), base.get_output_embeddings()
    captured = [decoder[layer] for layer in resolve_layers(base, layers)]
    inside = [unit for module in (vision_tower(base), head, *captured) for unit in _units(module)]
    _gather_and_keep([model, *inside])


def gathered_units(model: nn.Module) -> list[FSDPModule]:
    """The units whose weights are gathered now."""
    return [unit for unit in _units(model) if any(not isinstance(p, DTensor) for p in _own_parameters(unit))]


@contextmanager
def gathered(model: nn.Module) -> Iterator[nn.Module]:
    """The model for as long as it is used; what it gathers is given back afterwards. All processes must use it together."""
    gather_kept(model)
    try:
        yield model
    finally:
        for unit in _units(model):
            unit.reshard()


def _units(module: nn.Module) -> list[Any]:
    return [part for part in module.modules() if isinstance(part, FSDPModule)]


def _gather_and_keep(units: Sequence[FSDPModule]) -> None:
    for unit in units:
        unit.set_reshard_after_forward(False, recurse=False)
        unit.unshard()


def _own_parameters(unit: nn.Module) -> Iterator[nn.Parameter]:
    """Parameters of a unit that belong to no unit inside it."""
    yield from unit.parameters(recurse=False)
    for child in unit.children():
        if not isinstance(child, FSDPModule):
            yield from _own_parameters(child)
