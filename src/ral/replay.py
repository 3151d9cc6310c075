"""`ral replay DUMP`: runs the batch of a dump again, and says where it becomes non-finite."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ral.config import RALConfig
from ral.dumps import MODEL, Dump, non_finite_fields
from ral.groups import ScoredGroup
from ral.guards import gradient_norm
from ral.loading import load_policy, load_processor
from ral.losses import attention_term, distillation_term, token_term
from ral.trainer import RALTrainer


def replay(folder: Path, output: Path, process: int = 0) -> Iterator[str]:
    """Findings of one process's dump, in words, as they are made: in the order in which a value passes through the step.

    Args:
        folder: `nonfinite-N` of a run. output: a scratch folder for the trainer, which writes nothing to it.

    Raises ValueError where `folder` is no dump.
    """
    model = load_policy(folder / MODEL)
    for name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            yield f"weights: {name} holds {_count(parameter)}"
    dump = Dump.load(folder, process, model)
    yield f"stopped at step {dump.step + 1} of {dump.max_steps}: {dump.what}"
    trainer = _Unguarded(
        model,
        RALConfig(output_dir=str(output), **dump.settings),
        processing_class=load_processor(folder / MODEL),
        teacher=dump.teacher,
    )
    trainer.state.global_step, trainer.state.max_steps, trainer.balance.factor = dump.step, dump.max_steps, dump.factor
    policy = trainer.accelerator.prepare_model(trainer.model)
    for m, micro_batch in enumerate(dump.micro_batches):
        for g, group in enumerate(micro_batch):
            place = f"micro-batch {m}, group {g} (record {group.record.id})"
            for name in non_finite_fields(group):
                yield f"{place}: {name} was not finite before the pass"
            yield from _of_group(trainer, policy, group, place)
        yield from _of_gradient(trainer, policy, micro_batch, f"micro-batch {m}")


def _of_group(trainer: RALTrainer, policy: nn.Module, group: Any, place: str) -> Iterator[str]:
    """The forward pass and the terms of one group."""
    modules: list[str] = []
    with torch.no_grad(), _watched(trainer.model, modules):
        [output] = trainer.forward(policy, [group])
    if modules:
        yield f"{place}: the output of {modules[0]} is the first that is not finite (of {len(modules)} modules)"
    terms = {"token": token_term, "attention": attention_term, "distillation": distillation_term}
    with torch.no_grad():
        trainer.keep_old(group, output)
        for name, term in terms.items():
            loss = term(group, output, trainer.args).loss
            yield f"{place}: {name} term {float(loss):.6g}"


def _of_gradient(trainer: RALTrainer, policy: nn.Module, micro_batch: list[Any], place: str) -> Iterator[str]:
    """Loss and gradient of a micro-batch; where there is a NaN, autograd names the operation that made the first."""
    trainer.model.zero_grad()
    loss: Any = trainer.compute_loss(policy, micro_batch)
    loss.backward()
    gradients = {name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None}
    bad = [name for name, gradient in gradients.items() if not bool(gradient.isfinite().all())]
    norm = gradient_norm(trainer.model.parameters())
    yield f"{place}: loss {float(loss):.6g}, gradient norm {float(norm):.6g}"
    if not bad:
        return
    yield f"{place}: {len(bad)} of {len(gradients)} gradients are not finite; the last in the model is that of {bad[-1]}"
    try:
        with warnings.catch_warnings(action="ignore"), torch.autograd.set_detect_anomaly(True):
            again: Any = trainer.compute_loss(policy, micro_batch)
            again.backward()
    except RuntimeError as error:
        yield f"{place}: {error}"


class _Unguarded(RALTrainer):
    """Goes on where the run was stopped."""

    def require_finite(self, what: str, value: Tensor, micro_batches: list[list[ScoredGroup]]) -> None:
        pass


@contextmanager
def _watched(model: nn.Module, found: list[str]) -> Iterator[None]:
    """Collect the names of modules whose output is not finite, in the order in which they ran."""

    def check(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if any(not bool(torch.isfinite(value).all()) for value in _tensors(output)):
                found.append(name)

        return hook

    with ExitStack() as stack:
        for name, module in model.named_modules():
            stack.callback(module.register_forward_hook(check(name or type(module).__name__)).remove)
        yield


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, dict):
        yield from (tensor for item in value.values() for tensor in _tensors(item))
    elif isinstance(value, list | tuple):
        yield from (tensor for item in value for tensor in _tensors(item))


def _count(values: Tensor) -> str:
    """How many are not numbers or infinite."""
    return f"{int(values.isnan().sum())} NaN and {int(values.isinf().sum())} infinite of {values.numel():,}"
