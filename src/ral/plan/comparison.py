"""The table of `ral plan --compare`: a recipe under other settings, each changed by itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ral.plan.advice import EIGHT_BITS
from ral.plan.duration import Duration, Machine, duration
from ral.plan.memory import GIB, Memory, host_memory, memory
from ral.plan.setup import MACHINE, Setup, rows_of, served
from ral.plan.shapes import Weights


@dataclass(frozen=True)
class Arm:
    """A recipe with one change: its peak, its time and the host's memory."""

    name: str
    setup: Setup
    memory: Memory
    duration: Duration
    host: float

    @classmethod
    def of(
        cls, name: str, setup: Setup, machine: Machine, steps: int | None, completion: int, epochs: float = 1.0
    ) -> Arm:
        time = duration(replace(setup, completion=completion), machine, steps, epochs)
        return cls(name, setup, memory(setup), time, host_memory(setup))

    @property
    def peak(self) -> float:
        """GiB on each GPU."""
        return self.memory.peak / GIB


def arms(setup: Setup, adapted: Weights, quantised: Weights, gpu_memory: float) -> Iterator[tuple[str, Setup]]:
    """The recipe, and what its settings could be instead."""
    yield "the recipe", setup
    yield from (("ddp", replace(setup, sharding="ddp")), ("zero2", replace(setup, sharding="zero2")))
    yield "fsdp2, weights kept in a step", replace(setup, sharding="fsdp2", gathered=True)
    yield "fsdp2, weights given back by every layer", replace(setup, sharding="fsdp2", gathered=False)
    yield "rollouts by the policy", replace(setup, sampler="own", rollout_rows=rows_of(setup, gpu_memory))
    yield f"rollouts by the policy, {setup.group} rows at once", replace(setup, sampler="own", rollout_rows=setup.group)
    yield f"rollouts by a server on {MACHINE} GPUs more", served(setup, "server", gpu_memory)
    machines = max(1, setup.gpus // MACHINE)
    yield f"rollouts by {machines} server(s) on the same GPUs", served(setup, "shared", gpu_memory, machines)
    yield "without activation_checkpointing", replace(setup, checkpointing=False)
    yield "optim: adamw_torch_8bit", replace(setup, optimiser=EIGHT_BITS)
    yield "gradient_norm_steps: 0", replace(setup, norm_steps=0)
    if setup.weights.method == "full":
        yield "an adapter", replace(setup, weights=adapted, reference=False)
    yield "an adapter on 4 bits, ddp", replace(setup, weights=quantised, reference=False, sharding="ddp")


def different(setups: Iterator[tuple[str, Setup]]) -> Iterator[tuple[str, Setup]]:
    """The first of equal setups."""
    seen: list[Setup] = []
    for name, setup in setups:
        if setup not in seen:
            seen.append(setup)
            yield name, setup


def as_lines(rows: tuple[Arm, ...], limit: float, host: float | None) -> list[str]:
    """For a terminal, a line each; "too much" marks what does not fit."""
    wide = max(len(arm.name) for arm in rows)
    found = [f"{'each change by itself':{wide}}  GiB a GPU  host GiB  s a step  rollouts  passes  updates  hours"]
    for arm in rows:
        time, fits = arm.duration, arm.peak <= limit and (host is None or arm.host / GIB <= host)
        hours = "" if time.hours is None else f"{time.hours:,.0f}"
        found.append(
            f"{arm.name:{wide}}  {arm.peak:9.1f}  {arm.host / GIB:8,.0f}  {time.step:8,.0f}  {time.rollouts:8,.0f}  "
            f"{time.passes:6,.0f}  {time.updates:7,.0f}  {hours:>5}{'' if fits else '  too much'}"
        )
    return found
