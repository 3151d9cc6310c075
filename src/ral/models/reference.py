"""The reference: the policy as it starts, frozen."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, extract_model_from_parallel
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ral.errors import RunError
from ral.models.adapters import leaves_start
from ral.models.gathering import fsdp_plugin, gathered
from ral.models.loading import frozen, frozen_copy
from ral.models.sharding import computing_dtype, full_on_main, held_state, prepare_frozen
from ral.models.zero3 import whole_weight, written


@dataclass
class Reference:
    """The policy as it starts: without its adapter, where that leaves the start as it is, or a frozen copy.

    Under FSDP2 a copy is made of the shards that each process has of the policy, so that it never exists as a whole. It has them in
    the precision that both compute in. Until the policy is sharded it has no weights.

    Attributes:
        model: the copy, or its structure alone; None: the policy without its adapter.
    """

    model: nn.Module | None
    is_empty: bool = False

    @classmethod
    def of(cls, accelerator: Accelerator, policy: nn.Module) -> Reference:
        """The reference of a policy that accelerate has not prepared yet. All processes must call this."""
        # The main process decides, as it alone may have read the weights.
        off_is_start = accelerator.is_main_process and isinstance(policy, PeftModel) and leaves_start(policy)
        [off_is_start] = broadcast_object_list([off_is_start])
        if off_is_start:
            return cls(None)
        if fsdp_plugin(accelerator) is not None:
            return cls(_without_weights(policy), is_empty=True)
        # In the policy's mixed precision, or the reference would differ from the start.
        return cls(prepare_frozen(accelerator, frozen_copy(policy)))

    def fill(self, accelerator: Accelerator, policy: nn.Module) -> None:
        """Take the shards of the prepared policy, before an update or a checkpoint changes them. All processes must call this."""
        if self.model is None or not self.is_empty:
            return
        self.model, dtype = prepare_frozen(accelerator, self.model), computing_dtype(accelerator)
        parameters = {name for name, _ in self.model.named_parameters(remove_duplicate=False)}
        state = policy.state_dict().items()
        self.model.load_state_dict(
            {name: _copied(value, dtype if name in parameters else None) for name, value in state}, assign=True
        )
        self.is_empty = False

    @torch.no_grad()
    def move(self, policy: nn.Module, share: float) -> None:
        """Mix the prepared policy in: `share`·policy + (1 − `share`)·reference (TR-DPO, arXiv 2404.09656, eq. 7)."""
        assert self.model is not None
        new = held_state(extract_model_from_parallel(policy))
        for name, own in self._shards():
            value = whole_weight(new[name])
            with written([own]):
                own.mul_(1 - share).add_(value.to(own.dtype), alpha=share)

    def save(self, folder: Path, accelerator: Accelerator) -> None:
        """Write the weights, or under FSDP2 each process its shards of them. All processes must call this."""
        if self.is_sharded:
            weights = {name: _local(value).contiguous().cpu() for name, value in self._shards()}
        else:
            weights = full_on_main(self._shards(), accelerator)
        if weights:
            save_file(weights, folder / self._file(accelerator))

    def load(self, folder: Path, accelerator: Accelerator) -> None:
        """Take what `save` wrote on as many processes. Raises RunError where it is not there."""
        path = folder / self._file(accelerator)
        if not path.is_file():
            raise RunError(
                f"{folder} holds no {path.name}, the moved reference of this process; go on from a checkpoint that was saved with "
                "sync_ref_model, on as many processes"
            )
        weights = load_file(path)
        for name, own in self._shards():
            with written([own]), torch.no_grad():
                _local(own).copy_(weights[name])

    @property
    def is_sharded(self) -> bool:
        return any(isinstance(value, DTensor) for _, value in self._shards())

    def _shards(self) -> Iterator[tuple[str, Tensor]]:
        """The parameters by name, each once, as this process has them."""
        assert self.model is not None
        model = extract_model_from_parallel(self.model)
        state = held_state(model)
        return ((name, state[name]) for name, _ in model.named_parameters())

    def _file(self, accelerator: Accelerator) -> str:
        return f"reference-{accelerator.process_index if self.is_sharded else 0}.safetensors"

    @contextmanager
    def used(self, policy: nn.Module) -> Iterator[nn.Module]:
        """The model to call, for as long as it is used. All processes must use it together."""
        if self.model is None:
            with cast(PeftModel, extract_model_from_parallel(policy)).disable_adapter():
                yield policy
        else:
            with gathered(self.model) as reference:
                yield reference


def _local(value: Tensor) -> Tensor:
    return value.to_local() if isinstance(value, DTensor) else value


def _without_weights(model: nn.Module) -> nn.Module:
    """A copy of a model with its buffers, whose parameters have shapes but no values (on torch's meta device)."""
    empty = {id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad) for p in model.parameters()}
    return frozen(copy.deepcopy(model, empty))


def _copied(value: Tensor, dtype: torch.dtype | None) -> Tensor:
    return value.detach().to(dtype if value.is_floating_point() else None, copy=True)
