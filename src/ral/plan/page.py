"""`plan`: the complete answer for one recipe, as a record, a terminal table and JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from ral.errors import UsageError
from ral.models.lora import lora_config
from ral.plan.advice import ADAPTER, Advice, advise
from ral.plan.duration import Duration, Machine, duration
from ral.plan.memory import GIB, PHASES, Memory, memory
from ral.plan.setup import Setup, Sharding, setup_of
from ral.plan.shapes import meta_model, weights_of
from ral.recipe import Recipe, load_recipe
from ral.testbed import model_name
from ral.testbed.sets import count_data


@dataclass(frozen=True)
class Plan:
    """A recipe on `setup.gpus` GPUs of `limit` GiB."""

    recipe: str
    setup: Setup
    limit: float
    memory: Memory
    machine: Machine
    completion_tokens: int
    duration: Duration
    advice: tuple[Advice, ...]

    @property
    def fits(self) -> bool:
        return self.memory.peak / GIB <= self.limit

    def verdict(self) -> str:
        """One sentence: whether it fits, and where the peak is."""
        phase = PHASES[self.memory.peak_phase]
        room = f"{self.memory.peak / GIB:.1f} of {self.limit:g} GiB on each of {self.setup.gpus} GPU(s), while {phase}"
        return ("fits: " if self.fits else "does not fit: ") + room

    def to_dict(self) -> dict[str, Any]:
        """Plain values; sizes in GiB, times in seconds and hours."""
        return {
            "recipe": self.recipe,
            "fits": self.fits,
            "limit_gib": self.limit,
            "peak_gib": self.memory.peak / GIB,
            "peak_phase": self.memory.peak_phase,
            "phases_gib": {phase: self.memory.total(phase) / GIB for phase in PHASES},
            "items": [{"name": i.name, "gib": i.size / GIB, "phases": i.phases} for i in self.memory.items],
            "advice": [asdict(one) for one in self.advice],
            "setup": asdict(self.setup),
            "machine": asdict(self.machine),
            "completion_tokens": self.completion_tokens,
            "duration": asdict(self.duration) | {"step": self.duration.step, "hours": self.duration.hours},
        }


def plan(
    recipe: Path | str,
    overrides: Sequence[str] = (),
    *,
    gpus: int,
    gpu_memory: float,
    prompt_tokens: int | None = None,
    completion_tokens: int | None = None,
    examples: int | None = None,
    sharding: Sharding | None = None,
    machine: Machine | None = None,
) -> Plan:
    """Plan a recipe of `ral train` with the words `overrides` of the command line.

    Args:
        gpu_memory: GiB of one GPU. prompt_tokens: of the longest prompt, where the recipe's bounds are not to be used.
        completion_tokens: of the average completion, for the time; memory counts `max_completion_length`.
        examples: records to train on. sharding: how the model is spread, where it is not to be as the recipe says.

    Raises DataError and ConfigError for a recipe that cannot be read or run, and what `setup_of` raises.
    """
    counts = {"--gpus": gpus, "--gpu-memory": gpu_memory, "--prompt-tokens": prompt_tokens}
    for name, value in {**counts, "--completion-tokens": completion_tokens, "--examples": examples}.items():
        if value is not None and value <= 0:
            raise UsageError(f"{name} must be positive, got {value:g}.")
    # On the machine that plans there need not be a GPU, which settings such as bf16 would ask for.
    loaded = load_recipe(recipe, [*overrides, "--use_cpu", "true"])
    setup = setup_of(loaded, gpus, prompt_tokens=prompt_tokens, sharding=sharding, gpu_memory=gpu_memory)
    machine = machine or Machine()
    of_average = setup if completion_tokens is None else replace(setup, completion=completion_tokens)
    found = memory(setup)
    fits = found.peak / GIB <= gpu_memory
    return Plan(
        recipe=str(recipe),
        setup=setup,
        limit=gpu_memory,
        memory=found,
        machine=machine,
        completion_tokens=of_average.completion,
        duration=duration(of_average, machine, _steps(loaded, setup, examples)),
        advice=() if fits else tuple(_advice(loaded, setup, gpu_memory)),
    )


def _steps(recipe: Recipe, setup: Setup, examples: int | None) -> int | None:
    """Optimiser steps of the run: of so many examples, or of `max_steps`, or of the data where it is here."""
    if examples is None and recipe.args.max_steps > 0:
        return recipe.args.max_steps
    if examples is None:
        examples = count_data(recipe.data, **recipe.reading)
    if examples is None:
        return None
    batches = math.ceil(examples / (setup.prompts * setup.accumulation * setup.gpus))
    return math.ceil(recipe.args.num_train_epochs * batches * setup.iterations)


def _advice(recipe: Recipe, setup: Setup, limit: float) -> list[Advice]:
    model, _ = meta_model(model_name(recipe.model))
    adapter = lora_config(replace(recipe, peft=recipe.peft or ADAPTER), model, recipe.args.freeze_vision)
    adapted, quantised = (weights_of(model, adapter, four, recipe.args.freeze_vision) for four in (False, True))
    return advise(setup, limit, adapted, quantised)


def render(plan: Plan) -> Group:
    """The plan for a terminal."""
    s, phases = plan.setup, list(PHASES)
    table = Table(title="GiB on each GPU", title_justify="left", box=None, pad_edge=False)
    table.add_column("")
    for phase in phases:
        table.add_column(f"[bold]{phase}" if phase == plan.memory.peak_phase else phase, justify="right")
    for name in dict.fromkeys(item.name for item in plan.memory.items):
        sizes = {p: i.size for i in plan.memory.items if i.name == name for p in i.phases}
        table.add_row(name, *(_gib(sizes.get(phase)) for phase in phases))
    table.add_section()
    table.add_row("all", *(_gib(plan.memory.total(phase)) for phase in phases), style="bold")
    lines = [
        f"{plan.recipe}: {s.weights.method}, {s.weights.trained / 1e6:,.0f}M of {s.model.parameters / 1e6:,.0f}M "
        f"parameters trained, {s.sharding}{'' if s.sharding != 'fsdp2' or s.gathered else ' (given back after every layer)'}, "
        f"{'16' if s.mixed else '32'} bits, {'with' if s.checkpointing else 'without'} activation checkpointing",
        f"shape: {s.model.origin}",
        f"one pass: {s.prompts} prompt(s) of {s.prompt:,} tokens ({s.visual:,} visual), {s.group} completions of "
        f"{s.completion:,}; {s.accumulation} passes a step, {s.iterations} steps a rollout batch",
        plan.verdict(),
    ]
    time = plan.duration
    run = "" if time.hours is None else f"; {time.steps:,} steps: {_spent(time.hours)}"
    after = [
        f"about {time.step:,.0f} s a step (rollouts {time.rollouts:,.0f}, passes without gradient {time.passes:,.0f}, "
        f"updates {time.updates:,.0f}), {time.prompts:,} prompts a rollout batch{run}",
        f"assumed: {plan.machine.assumption()}; completions of {plan.completion_tokens:,} tokens",
    ]
    changes = [
        f"{n}. {one.change}   saves {one.saves:.1f} GiB, then {one.peak:.1f} (costs: {one.cost})"
        for n, one in enumerate(plan.advice, 1)
    ]
    if not plan.fits:
        end = "" if plan.advice and plan.advice[-1].peak <= plan.limit else "; still too much, take larger or more GPUs"
        changes = [f"change first, each on top of those before it{end}:", *changes]
    return Group(*map(Text, lines), Text(), table, Text(), *map(Text, (*changes, *after)))


def _gib(size: float | None) -> str:
    return "" if size is None else f"{size / GIB:.1f}" if size >= 0.05 * GIB else f"{size / GIB:.3f}"


def _spent(hours: float) -> str:
    return f"{hours:,.0f} hours" if hours >= 3 else f"{60 * hours:,.0f} minutes"
