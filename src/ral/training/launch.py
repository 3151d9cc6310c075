"""Runs a recipe: from its settings to a trained model in a run folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import PreTrainedModel

from ral.data.fingerprint import fingerprint
from ral.data.record import Record
from ral.errors import ConfigError, RunError
from ral.evaluate.look_recorder import LookRecorder
from ral.models.loading import load_model, load_processor, main_process_reads, training_dtype
from ral.models.lora import lora_config
from ral.models.sharding import QUANTISED_SHARDS
from ral.recipe import BaseRecipe, Recipe
from ral.runs.folder import prepare_run, refuse_occupied
from ral.runs.interruption import Interrupted
from ral.runs.names import FINAL
from ral.testbed import model_name
from ral.testbed.sets import load_data, load_sets
from ral.training.exact_resume import ExactResumeTrainer
from ral.training.held_out import Sets, flat
from ral.training.live_report import LiveReport
from ral.training.run_origin import RunOrigin
from ral.training.terminal import show
from ral.training.trainer import RALTrainer

AnyRecipe = TypeVar("AnyRecipe", bound=BaseRecipe)


def train(recipe: Recipe, *, resume: bool = False, overwrite: bool = False) -> Path:
    """Train what `recipe` says by reinforcement, save the model in `final/`, and return the run folder.

    Raises what `run` and `RALTrainer` raise.
    """
    return run(recipe, _reinforcement, resume=resume, overwrite=overwrite)


def run(
    task: AnyRecipe,
    build: Callable[[AnyRecipe, list[Record], Sets | None], ExactResumeTrainer],
    *,
    resume: bool,
    overwrite: bool,
) -> Path:
    """Train what `build` makes of `task` and its data, under the contract of run folders, and return the folder.

    Raises RunError for an output folder that holds a run, or that cannot be resumed (see `prepare_run`), and what
    `build` refuses. The earlier run that `overwrite` replaces is removed only once the new one's model, data and settings
    are found good.
    """
    args = task.args
    folder = Path(str(args.output_dir))
    main_process = args.process_index == 0
    if main_process:
        refuse_occupied(folder, resume=resume, overwrite=overwrite)
    training, held_out = datasets(task)
    with _full_memory_named(), main_process_reads(args):
        trainer = build(task, training, held_out)
    with args.main_process_first(local=False, desc="preparing the run folder"):
        if main_process:
            facts = {"data": fingerprint(training), "processes": args.world_size}
            defaults = {item.name: item.default for one in (task, args) for item in fields(one)}
            prepare_run(folder, task.settings(), **facts, resume=resume, overwrite=overwrite, defaults=defaults)
    trainer.remove_callback(RunOrigin)  # the recipe says more
    trainer.add_callback(LiveReport())
    held = f", {len(flat(held_out)):,} held out" if held_out else ""
    show(trainer, f"{task.model} on {len(training):,} records{held}")
    try:
        with _full_memory_named():
            trainer.train(resume_from_checkpoint=resume)
    except Interrupted:
        trainer.accelerator.end_training()  # all processes are here; of another error this one alone may know
        raise
    _save_final(trainer, folder)
    # A thread of a process group that outlives the interpreter may abort its process: with the run done, a failure.
    trainer.accelerator.end_training()
    return folder


@contextmanager
def _full_memory_named() -> Iterator[None]:
    """Raises RunError, which says what to lower, where a GPU's memory does not suffice."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise RunError(
            f"the GPU's memory does not suffice ({str(error).split('. ')[0]}); lower rollout_rows, "
            "per_device_train_batch_size or max_pixels, or train an adapter (peft); `ral plan RECIPE` counts what each takes"
        ) from error


def _save_final(trainer: ExactResumeTrainer, folder: Path) -> None:
    """Write the model to `final/`, which is there whole or not at all."""
    unfinished, final = folder / f".{FINAL}", folder / FINAL
    if trainer.is_world_process_zero():
        shutil.rmtree(unfinished, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()
    trainer.save_model(str(unfinished))
    trainer.accelerator.wait_for_everyone()
    if trainer.is_world_process_zero():
        shutil.rmtree(final, ignore_errors=True)
        unfinished.replace(final)


def _reinforcement(recipe: Recipe, training: list[Record], held_out: Sets | None) -> RALTrainer:
    if recipe.look_steps and not held_out:
        raise ConfigError(
            f"look_steps={recipe.look_steps} needs held-out records to look at; set eval_data, or look_steps to 0"
        )
    looked = flat(held_out)[: recipe.look_items]
    looks = [LookRecorder(looked, recipe.look_steps, recipe.look_probes)] if recipe.look_steps else []
    model, processor = start_model(recipe)
    return RALTrainer(
        model,
        recipe.args,
        train_dataset=training,
        eval_dataset=held_out,
        reward_funcs=recipe.reward_funcs,
        reward_weights=recipe.reward_weights,
        processing_class=processor,
        peft_config=lora_config(recipe, model, recipe.args.freeze_vision),
        teacher=None if recipe.teacher is None else model_name(recipe.teacher),
        callbacks=looks,
    )


def start_model(task: BaseRecipe) -> tuple[PreTrainedModel, Any]:
    """The model that a task starts from and its processor.

    Raises ConfigError: quantised weights without an adapter, or sharded.
    """
    if task.quantization is not None and task.peft is None:
        raise ConfigError("quantization is set, but quantised weights cannot be trained; train an adapter: set peft")
    if task.quantization is not None and task.args.fsdp:
        raise ConfigError(QUANTISED_SHARDS)
    name = model_name(task.model)
    return load_model(name, task.quantization, training_dtype(adapter=task.peft is not None)), load_processor(name)


def datasets(task: BaseRecipe) -> tuple[list[Record], Sets | None]:
    """The records that a task trains on, and those held out."""
    held_out = None if task.eval_data is None else load_sets(task.eval_data, "test", **task.reading)
    return load_data(task.data, "train", **task.reading), held_out
