"""Estimates the time of a step: the arithmetic of its passes at an assumed utilisation, and its decoding steps.

An estimate, not a measurement. What is not counted: communication between GPUs, decoding of images and videos, rewards.
"""

from __future__ import annotations

from dataclasses import dataclass

from ral.errors import UsageError
from ral.plan.memory import FLOAT, HALF
from ral.plan.setup import Setup
from ral.plan.shapes import ModelShape


@dataclass(frozen=True)
class Machine:
    """One GPU. The defaults are an H100's data sheet (bfloat16 without sparsity, SXM) and what is assumed of it.

    Attributes:
        tflops: peak of matrix products, in 10¹² floating-point operations a second.
        bandwidth: of its memory, in 10¹² bytes a second.
        utilisation: the share of `tflops` that passes reach.
        layer_ms: milliseconds that one layer takes in a decoding step at least, as its kernels are started one by one.
    """

    tflops: float = 989.0
    bandwidth: float = 3.35
    utilisation: float = 0.4
    layer_ms: float = 1.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value <= 0:
                raise UsageError(f"{name} must be positive, got {value:g}.")
        if self.utilisation > 1:
            raise UsageError(f"utilisation is a share of the peak, at most 1, got {self.utilisation:g}.")

    def assumption(self) -> str:
        return (
            f"{self.utilisation:.0%} of {self.tflops:g} TFLOP/s in passes, {self.bandwidth:g} TB/s and at least "
            f"{self.layer_ms:g} ms a layer in decoding steps; communication, media and rewards are not counted"
        )


@dataclass(frozen=True)
class Duration:
    """Seconds of one optimiser step, averaged over the inner updates of a rollout batch; and of the run, where known.

    Attributes:
        prompts: of one rollout batch, on all GPUs. steps: optimiser steps of the run.
    """

    rollouts: float
    passes: float
    updates: float
    prompts: int
    steps: int | None

    @property
    def step(self) -> float:
        return self.rollouts + self.passes + self.updates

    @property
    def hours(self) -> float | None:
        return None if self.steps is None else self.steps * self.step / 3600


def duration(setup: Setup, machine: Machine, steps: int | None) -> Duration:
    """Estimate the time of `setup`, with all completions of the stated length."""
    s, model = setup, setup.model
    speed = machine.tflops * machine.utilisation * 1e12
    forward = forward_flops(s, model)
    prompts = s.prompts * s.accumulation
    prefill = prompts * _decoder_flops(model, s.prompt, s.prompt**2 / 2)
    vision = prompts * 2 * model.vision_parameters * s.visual * model.visual_patches
    # Prompts enter as rows end, so that the batch stays full until the last of them.
    decoding = prompts / s.sampled * (s.completion - 1) * decoding_seconds(s, machine)
    rollouts = (vision + prefill) / speed + decoding

    passes = (int(s.reference_pass) + int(s.target_pass)) * forward
    passes += forward_flops(s, s.teacher) if s.teacher else 0.0
    # The backward forms two products for each of the forward's, one where the weights are frozen.
    backward = forward * ((2 if s.weights.method == "full" else 1) + int(s.checkpointing))
    measured = 2 * backward / s.norm_steps if s.norm_steps else 0.0
    return Duration(
        rollouts=rollouts / s.iterations,
        passes=s.accumulation * passes / speed / s.iterations,
        updates=s.accumulation * (forward + backward + measured) / speed,
        prompts=s.prompts * s.accumulation * s.gpus,
        steps=steps,
    )


def forward_flops(s: Setup, model: ModelShape) -> float:
    """Operations of one pass: every token through the layers, completion tokens through the output embedding."""
    head = 2 * model.vocabulary * model.decoder.hidden * s.prompts * s.group * s.completion
    if not model.shared:
        length = s.prompt + s.completion
        return s.prompts * s.group * _decoder_flops(model, length, length**2 / 2) + head
    pairs = s.prompt**2 / 2 + sum(block * (s.prompt + block) for block in s.blocks)
    return s.prompts * _decoder_flops(model, s.layout.total, pairs) + head


def decoding_seconds(s: Setup, machine: Machine) -> float:
    """Time of one decoding step for all rollouts in the batch, which reads the weights that they take and the mean cache once."""
    decoder, rollouts = s.model.decoder, s.sampled * s.group
    # Autocast reads a 32-bit weight, writes its 16-bit copy and reads that, again in every decoding step.
    each = FLOAT + 2 * HALF if s.sharding == "ddp" and s.mixed and s.weights.method == "full" else s.compute
    weights = each * (decoder.read(rollouts) + s.model.vocabulary * decoder.hidden)
    prompts = s.sampled if s.model.shared else rollouts
    cache = decoder.token * (FLOAT * prompts * s.prompt + s.compute * rollouts * s.completion / 2)
    moved = weights + cache + 2 * FLOAT * decoder.state * rollouts  # a state is read and written
    return max(moved / (machine.bandwidth * 1e12), len(decoder.layers) * machine.layer_ms / 1e3)


def _decoder_flops(model: ModelShape, tokens: float, pairs: float) -> float:
    """Operations of a forward pass over `tokens` that attend in `pairs` of query and key.

    A token that changes a state lets it decay, reads it twice and adds to it.
    """
    return sum(
        count
        * (2 * layer.active * tokens + 2 * (layer.queries + layer.outputs) * pairs + 6 * layer.held.state * tokens)
        for layer, count in model.decoder.kinds.items()
    )
