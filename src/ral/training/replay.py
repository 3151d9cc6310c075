"""`ral replay DUMP`: runs the batch of a dump again, and finds where it becomes non-finite."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from datasets import Dataset
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainerState

from ral.attention import GroupOutput
from ral.config import RALConfig
from ral.data.record_errors import WatchedRecords
from ral.models.loading import load_policy, load_processor
from ral.models.sharding import prepare_frozen
from ral.objective.needs import Needs
from ral.objective.terms import Term
from ral.rewards.functions import RewardError, build_rewards, of_record, run_reward
from ral.rollouts.group import TrainingGroup
from ral.runs.resume import without_removed
from ral.training.distillation import load_teacher
from ral.training.dumps import MODEL, ExamplesDump, FailedReward, RolloutsDump, load_dump, non_finite_fields
from ral.training.losses import (
    attention_term,
    distillation_term,
    micro_batch_loss,
    policy_pass,
    token_term,
)
from ral.training.nonfinite import gradient_norm
from ral.training.prepare_policy import prepare_policy
from ral.training.sft import Examples, SFTSettings, WorkedExamplesTrainer
from ral.training.targets import old_pass


def replay(folder: Path, output: Path, process: int = 0, reward: str | None = None) -> Iterator[str]:
    """Findings of one process's dump, in words, as they are made: in the order in which a value passes through the step.

    Args:
        folder: `nonfinite-N` or `failed-reward-N` of a run.
        output: a scratch folder for the trainer, which writes nothing to it.
        reward: the function to call on completions that it failed on, as a recipe names it; without, none is called.

    Raises RunError where `folder` is no dump.
    """
    if FailedReward.is_in(folder):
        yield from _of_reward(FailedReward.load(folder, process), reward)
        return
    model = load_policy(folder / MODEL)
    for name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            yield f"weights: {name} holds {_count(parameter)}"
    dump = load_dump(folder, process, model)
    yield f"stopped at step {dump.step + 1} of {dump.max_steps}: {dump.what}"
    if isinstance(dump, RolloutsDump):
        yield from _of_rollouts(dump, model, folder, output)
    else:
        yield from _of_examples(dump, model, folder, output)


def _of_reward(failed: FailedReward, reward: str | None) -> Iterator[str]:
    """The completions, and what the function makes of them now."""
    yield f"stopped at step {failed.step + 1}: {failed.what}"
    for i, text in enumerate(failed.texts):
        yield f"completion {i}: {text!r}"
    if reward is None:
        return
    [built] = build_rewards([reward], mode=failed.scorer, think=failed.think, think_opened=False)
    try:
        state = TrainerState(global_step=failed.step)
        given = of_record(failed.record, failed.texts, failed.ids)
        values = run_reward(built.fn, built.name, *given, trainer_state=state)
    except RewardError as error:
        yield f"called again: {error}"
    else:
        yield f"called again: {built.name} returned {values}"


def _of_rollouts(dump: RolloutsDump, model: PreTrainedModel | PeftModel, folder: Path, output: Path) -> Iterator[str]:
    args = RALConfig(output_dir=str(output), **without_removed(dump.settings, f"{folder}"))
    needs = Needs.of(args)
    accelerator = Accelerator(cpu=args.use_cpu, mixed_precision=args.mixed_precision)
    policy = accelerator.prepare_model(prepare_policy(model, args))
    teacher = load_teacher(dump.teacher, load_processor(folder / MODEL), args)
    teacher = None if teacher is None else prepare_frozen(accelerator, teacher)
    weight = args.attention_coef * dump.factor
    forward = partial(policy_pass, policy, args=args, capture=needs.rows, teacher=teacher)

    def loss(micro_batch: list[TrainingGroup]) -> Tensor:
        return micro_batch_loss(policy, micro_batch, forward(micro_batch), args).total(weight)

    for m, micro_batch in enumerate(dump.micro_batches):
        for g, group in enumerate(micro_batch):
            place = f"micro-batch {m}, group {g} (record {group.scored.record.id})"
            for name in non_finite_fields(group):
                yield f"{place}: {name} was not finite before the pass"
            yield from _of_group(policy, group, forward, args, place)
        yield from _of_gradient(policy, partial(loss, micro_batch), f"micro-batch {m}")


def _of_examples(dump: ExamplesDump, model: PreTrainedModel | PeftModel, folder: Path, output: Path) -> Iterator[str]:
    args, processor = SFTSettings(output_dir=str(output), **dump.settings), load_processor(folder / MODEL)
    trainer = _FineTuning(
        model,
        args,
        data_collator=Examples(processor, WatchedRecords(()), args),
        train_dataset=Dataset.from_dict({"number": [0]}),  # TRL looks at the first row; none is trained on
        processing_class=processor,
    )
    policy = trainer.accelerator.prepare_model(trainer.model)
    for m, batch in enumerate(dump.micro_batches):
        place = f"micro-batch {m}"
        for name, value in batch.items():
            if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                yield f"{place}: {name} was not finite before the pass"

        def loss(batch: dict[str, Tensor] = batch) -> Any:
            return trainer.compute_loss(policy, dict(batch), num_items_in_batch=dump.items)

        modules: list[str] = []
        with torch.no_grad(), _watched(trainer.model, modules):
            loss()
        yield from _first_of(modules, place)
        yield from _of_gradient(trainer.model, loss, place)


def _of_group(
    policy: nn.Module,
    group: TrainingGroup,
    forward: Callable[[list[TrainingGroup]], list[GroupOutput]],
    args: RALConfig,
    place: str,
) -> Iterator[str]:
    """The forward pass and the terms of one group, which gets its old pass where the run stopped before it."""
    modules: list[str] = []
    with torch.no_grad(), _watched(policy, modules):
        [output] = forward([group])
    yield from _first_of(modules, place)
    terms: dict[str, Callable[..., Term]] = {
        "token": token_term, "attention": attention_term, "distillation": distillation_term
    }  # fmt: skip
    with torch.no_grad():
        if group.old is None:
            group.old, _ = old_pass(group, output, args)
        for name, term in terms.items():
            loss = term(group, output, args).loss
            yield f"{place}: {name} term {float(loss):.6g}"


def _first_of(modules: list[str], place: str) -> Iterator[str]:
    if modules:
        yield f"{place}: the output of {modules[0]} is the first that is not finite (of {len(modules)} modules)"


def _of_gradient(model: nn.Module, compute_loss: Callable[[], Any], place: str) -> Iterator[str]:
    """Loss and gradient of a micro-batch; where there is a NaN, autograd names the operation that made the first."""
    model.zero_grad()
    loss = compute_loss()
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    bad = [name for name, gradient in gradients.items() if not bool(gradient.isfinite().all())]
    norm = gradient_norm(model.parameters())
    yield f"{place}: loss {float(loss.detach()):.6g}, gradient norm {float(norm):.6g}"
    if not bad:
        return
    yield f"{place}: {len(bad)} of {len(gradients)} gradients are not finite; the last in the model is that of {bad[-1]}"
    try:
        with warnings.catch_warnings(action="ignore"), torch.autograd.set_detect_anomaly(True):
            compute_loss().backward()
    except RuntimeError as error:
        yield f"{place}: {error}"


class _FineTuning(WorkedExamplesTrainer):
    """A fine-tuning trainer with TRL's loss that continues where the run was stopped."""

    def require_finite(self, what: str, value: Tensor) -> None:
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
    """The number of NaNs and infinities."""
    return f"{int(values.isnan().sum())} NaN and {int(values.isinf().sum())} infinite of {values.numel():,}"
