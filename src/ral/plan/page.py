"""`plan`: the complete answer for one recipe, as a record, a terminal table and JSON."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from ral.errors import UsageError
from ral.models.lora import lora_config
from ral.plan.advice import ADAPTER, Advice, advise
from ral.plan.comparison import Arm, arms, as_lines, different
from ral.plan.duration import Duration, Machine
from ral.plan.memory import GIB, PHASES, Memory
from ral.plan.setup import Setup, Sharding, setup_of
from ral.plan.shapes import Weights, meta_model, weights_of
from ral.recipe import Recipe, load_recipe
from ral.testbed import model_name
from ral.testbed.sets import count_data

#: What samples, in words.
SAMPLERS = {
    "own": "rollouts by the policy",
    "server": "rollouts by servers on GPUs of their own",
    "shared": "rollouts by servers on the same GPUs",
}


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
    host: float
    host_limit: float | None = None
    compared: tuple[Arm, ...] = ()
    examples: int | None = None

    @property
    def cache(self) -> float | None:
        """Bytes on disk of the vision tower's features for all examples; None where none are kept, or examples are not counted."""
        return self.setup.features * self.examples if self.setup.vision_cache and self.examples else None

    @property
    def fits(self) -> bool:
        return self.memory.peak / GIB <= self.limit and self.fits_host

    @property
    def fits_host(self) -> bool:
        """Whether the first machine's own memory suffices; true where it is not known."""
        return self.host_limit is None or self.host / GIB <= self.host_limit

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
            "host_gib": self.host / GIB,
            "vision_cache_gb": None if self.cache is None else self.cache / 1e9,
            "compared": [
                {"name": arm.name, "peak_gib": arm.peak, "host_gib": arm.host / GIB, "step": arm.duration.step}
                for arm in self.compared
            ],
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
    host: float | None = None,
    compare: bool = False,
) -> Plan:
    """Plan a recipe of `ral train` with the words `overrides` of the command line.

    Args:
        gpu_memory: GiB of one GPU. prompt_tokens: of the longest prompt, where the recipe's bounds are not to be used.
        completion_tokens: of the average completion, for the time; memory counts `max_completion_length`.
        host: GiB of the memory of one machine. compare: plan other settings, too.
        examples: records to train on. sharding: how the model is spread, where it is not to be as the recipe says.

    Raises DataError and ConfigError for a recipe that cannot be read or run, and what `setup_of` raises.
    """
    counts = {"--gpus": gpus, "--gpu-memory": gpu_memory, "--prompt-tokens": prompt_tokens, "--host-memory": host}
    for name, value in {**counts, "--completion-tokens": completion_tokens, "--examples": examples}.items():
        if value is not None and value <= 0:
            raise UsageError(f"{name} must be positive, got {value:g}.")
    # On the machine that plans there need not be a GPU, which settings such as bf16 would ask for.
    loaded = load_recipe(recipe, [*overrides, "--use_cpu", "true"])
    setup = setup_of(loaded, gpus, prompt_tokens=prompt_tokens, sharding=sharding, gpu_memory=gpu_memory)
    machine = machine or Machine()
    completion = completion_tokens or setup.completion
    bounded = examples is None and loaded.args.max_steps > 0
    if examples is None and (not bounded or setup.vision_cache):
        examples = count_data(loaded.data, **loaded.reading)
    steps = loaded.args.max_steps if bounded else _steps(loaded, setup, examples)
    epochs = _epochs(setup, steps, examples)
    recipes = Arm.of("the recipe", setup, machine, steps, completion, epochs)
    adapters = _adapters(loaded) if compare or recipes.peak > gpu_memory else None
    others: Iterable[tuple[str, Setup]] = ()
    if compare and adapters is not None:
        others = different(arms(setup, *adapters, gpu_memory))
    return Plan(
        recipe=str(recipe),
        setup=setup,
        limit=gpu_memory,
        memory=recipes.memory,
        machine=machine,
        completion_tokens=completion,
        duration=recipes.duration,
        advice=tuple(advise(setup, gpu_memory, *adapters)) if adapters and recipes.peak > gpu_memory else (),
        host=recipes.host,
        host_limit=host,
        compared=tuple(Arm.of(name, other, machine, steps, completion, epochs) for name, other in others),
        examples=examples,
    )


def _steps(recipe: Recipe, setup: Setup, examples: int | None) -> int | None:
    """Optimiser steps of a run over so many examples."""
    if examples is None:
        return None
    batches = math.ceil(examples / setup.asked_by_all)
    return math.ceil(recipe.args.num_train_epochs * batches * setup.updates)


def _epochs(setup: Setup, steps: int | None, examples: int | None) -> float:
    """How often the run sees each record; 1 where that is not known, or features of all of them are more than the cache takes."""
    if steps is None or examples is None or setup.features * examples > setup.vision_cache:
        return 1.0
    return steps / setup.updates * setup.asked_by_all / examples


def _adapters(recipe: Recipe) -> tuple[Weights, Weights]:
    """The model's weights under an adapter, in 16 and in four bits."""
    model, _ = meta_model(model_name(recipe.model))
    adapter = lora_config(replace(recipe, peft=recipe.peft or ADAPTER), model, recipe.args.freeze_vision)
    half, quarter = (weights_of(model, adapter, four, recipe.args.freeze_vision) for four in (False, True))
    return half, quarter


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
    experts = s.model.active < 0.9 * (s.model.parameters - s.model.vision_parameters)
    active = f" ({s.model.active / 1e6:,.0f}M take part in a token)" if experts else ""
    lines = [
        f"{plan.recipe}: {s.weights.method}, {s.weights.trained / 1e6:,.0f}M of {s.model.parameters / 1e6:,.0f}M "
        f"parameters trained{active}, {s.sharding}{' (weights given back by every layer)' if s.gives_back else ''}, "
        f"{'16' if s.mixed else '32'} bits, {'with' if s.checkpointing else 'without'} activation checkpointing",
        f"shape: {s.model.origin}",
        f"one pass: {s.prompts} prompt(s) of {s.prompt:,} tokens ({s.visual:,} visual), {s.group} completions of "
        f"{s.completion:,}; {s.accumulation} passes a step, {s.iterations} steps a rollout batch; {SAMPLERS[s.sampler]}",
        plan.verdict(),
    ]
    time = plan.duration
    run = "" if time.hours is None else f"; {time.steps:,} steps: {_spent(time.hours)}"
    after = [
        f"about {time.step:,.0f} s a step (rollouts {time.rollouts:,.0f}, passes without gradient {time.passes:,.0f}, "
        f"updates {time.updates:,.0f}), {time.prompts:,} prompts a rollout batch{run}",
        f"assumed: {plan.machine.assumption()}; completions of {plan.completion_tokens:,} tokens",
    ]
    host = f"host memory of the first machine: {plan.host / GIB:,.0f} GiB"
    if plan.host_limit is not None:
        host += f" of {plan.host_limit:,g}" + ("" if plan.fits_host else f": too much; {_for_the_host(s)}")
    after.insert(0, host)
    if plan.cache is not None:
        after.append(_of_cache(plan))
    if s.trained_vision:
        after.append("not counted: what the vision tower keeps for its own backward (freeze_vision: false)")
    changes = [
        f"{n}. {one.change}   saves {one.saves:.1f} GiB, then {one.peak:.1f} (costs: {one.cost})"
        for n, one in enumerate(plan.advice, 1)
    ]
    if plan.memory.peak / GIB > plan.limit:
        end = "" if plan.advice and plan.advice[-1].peak <= plan.limit else "; still too much, take larger or more GPUs"
        named = (
            "the cheapest change that fits:"
            if len(changes) == 1 and not end
            else "the cheapest changes that fit, together:"
        )
        changes = [f"what saves memory, each on top of those before it{end}:" if end else named, *changes]
    compared = [] if not plan.compared else ["", *as_lines(plan.compared, plan.limit, plan.host_limit)]
    return Group(*map(Text, lines), Text(), table, Text(), *map(Text, (*changes, *after, *compared)))


def _of_cache(plan: Plan) -> str:
    """What the features of the vision tower take on disk, and save."""
    size, limit = plan.cache or 0.0, plan.setup.vision_cache
    said = f"vision_cache: {size / 1e9:,.1f} GB for {plan.examples:,} examples"
    if size > limit:
        return f"{said}, more than vision_cache_gb={limit / 1e9:g}: entries go before they are read again"
    return f"{said}; saves {plan.duration.cached:,.2f} s a step after the first epoch (of {plan.duration.epochs:,.1f})"


def _for_the_host(s: Setup) -> str:
    """What takes less of the host's memory."""
    if s.loads > 1 and s.sharding == "fsdp2":
        return "let one process read the weights (fsdp_config: cpu_ram_efficient_loading: true)"
    return "take larger machines, or an adapter"


def _gib(size: float | None) -> str:
    return "" if size is None else f"{size / GIB:.1f}" if size >= 0.05 * GIB else f"{size / GIB:.3f}"


def _spent(hours: float) -> str:
    return f"{hours:,.0f} hours" if hours >= 3 else f"{60 * hours:,.0f} minutes"
