"""Estimates the time of a step: the arithmetic of its passes at an assumed utilisation, and its decoding steps.

An estimate, not a measurement. What is not counted: decoding of images and videos, rewards, and the part of communication that
goes on while layers compute.
"""

from __future__ import annotations

from dataclasses import dataclass

from ral.errors import UsageError
from ral.plan.memory import FLOAT
from ral.plan.setup import HALF, MACHINE, Setup
from ral.plan.shapes import ModelShape
from ral.rollouts.room import DRAW_BYTES

#: Operations of a decoding step outside of its layers, in those of one layer: embedding, masks, output embedding, draw. Of the testbed's
#: model torch dispatches 56 there and 127 in a layer.
OUTSIDE = 0.44


@dataclass(frozen=True)
class Machine:
    """One GPU. The defaults are an H100's data sheet (bfloat16 without sparsity, SXM) and what is assumed of it.

    Attributes:
        tflops: peak of matrix products, in 10¹² floating-point operations a second.
        bandwidth: of its memory, in 10¹² bytes a second.
        utilisation: the share of `tflops` that passes reach.
        layer_ms: milliseconds that one layer takes in a decoding step at least, as its kernels are started one by one;
            server_layer_ms: of a server, which starts them together.
        link, network, disk: 10¹² bytes a second that a GPU gets from others of its machine, from other machines, from a folder.
        host: that it exchanges with the host's memory, and that the host's processors move for it.
        float_tflops: peak of products in 32 bits.
    """

    tflops: float = 989.0
    bandwidth: float = 3.35
    utilisation: float = 0.4
    layer_ms: float = 1.0
    server_layer_ms: float = 0.15
    link: float = 0.3
    network: float = 0.04
    disk: float = 0.002
    host: float = 0.05
    float_tflops: float = 67.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value <= 0:
                raise UsageError(f"{name} must be positive, got {value:g}.")
        if self.utilisation > 1:
            raise UsageError(f"utilisation is a share of the peak, at most 1, got {self.utilisation:g}.")

    def assumption(self) -> str:
        return (
            f"{self.utilisation:.0%} of {self.tflops:g} TFLOP/s in passes, {self.bandwidth:g} TB/s and at least "
            f"{self.layer_ms:g} ms a layer in decoding steps ({self.server_layer_ms:g} of a server), {self.link:g} TB/s between "
            f"GPUs of a machine and {self.network:g} between machines; media and rewards are not counted"
        )


@dataclass(frozen=True)
class Duration:
    """Seconds of one optimiser step, averaged over the inner updates of a rollout batch; and of the run, where known.

    Attributes:
        prompts: of one rollout batch, on all GPUs. steps: optimiser steps of the run.
        cached: seconds of a step that kept features of the vision tower save after the first epoch. epochs: of the run.
    """

    rollouts: float
    passes: float
    updates: float
    prompts: int
    steps: int | None
    cached: float = 0.0
    epochs: float = 1.0

    @property
    def step(self) -> float:
        return self.rollouts + self.passes + self.updates

    @property
    def hours(self) -> float | None:
        later = 1 - 1 / max(1.0, self.epochs)
        return None if self.steps is None else self.steps * (self.step - later * self.cached) / 3600


def duration(setup: Setup, machine: Machine, steps: int | None, epochs: float = 1.0) -> Duration:
    """Estimate the time of `setup`, with all completions of the stated length.

    `epochs`: how often the run sees each record, for features of the vision tower that are kept.
    """
    s, model = setup, setup.model
    speed = machine.tflops * machine.utilisation * 1e12
    prompts = s.prompts * s.accumulation * s.parts
    prefill = prompts * _decoder_flops(model, s.prompt, s.prompt**2 / 2) / speed
    vision = prompts * 2 * model.vision_parameters * s.visual * model.visual_patches / speed
    read = prompts * s.features / (machine.disk * 1e12) if s.vision_cache else vision
    gather = gathering_seconds(s, machine)
    return Duration(
        rollouts=(vision + prefill + _sampling(s, machine, gather)) / s.updates,
        passes=s.accumulation * _passes(s, machine, gather) / s.iterations,
        updates=_updates(s, machine, gather),
        prompts=s.asked_by_all,
        steps=steps,
        cached=max(0.0, vision - read) / s.updates,
        epochs=epochs,
    )


def _passes(s: Setup, machine: Machine, gather: float) -> float:
    """The passes without gradient over a micro-batch."""
    speed = machine.tflops * machine.utilisation * 1e12
    frozen = int(s.reference_pass) + int(s.teacher is not None)
    # The policy's: for a target, and over what is learnt from only after an update on other parts of the rollout batch.
    own = int(s.target_pass) + 1 - 1 / s.parts
    seconds = (int(s.reference_pass) + own) * forward_flops(s, s.model) / speed + own * rows_seconds(s, machine)
    seconds += forward_flops(s, s.teacher) / speed if s.teacher else 0.0
    # Gathering goes on while layers compute: the slower of the two counts. Reference and teacher always give weights back.
    return max(seconds, gather * (frozen * (s.sharding == "fsdp2") + own * s.gives_back))


def _updates(s: Setup, machine: Machine, gather: float) -> float:
    """Forward and backward passes of an optimiser step, and what an optimiser in the host's memory takes."""
    forward = forward_flops(s, s.model)
    # The backward forms two products for each of the forward's, one where the weights are frozen.
    backward = forward * ((2 if s.weights.method == "full" else 1) + int(s.checkpointing))
    often = 1 / s.norm_steps if s.norm_steps else 0.0
    products = (forward + (1 + often * s.measured) * backward) / (machine.tflops * machine.utilisation * 1e12)
    # A backward forms rows again, and from their gradient those of two factors. That of the token loss alone has no rows.
    rows = (1 + 3 * (1 + often * (s.measured - 1))) * rows_seconds(s, machine)
    communication = s.accumulation * gather * (2 if s.gives_back else 1) + _reducing(s, machine)
    return max(s.accumulation * (products + rows), communication) + _optimising(s, machine)


def _optimising(s: Setup, machine: Machine) -> float:
    """An optimiser in the host's memory: it reads weight, gradient and states and writes weight and states. On a GPU it takes no time.

    DeepSpeed brings gradients in 16 bits there, and such weights back.
    """
    if not s.offloaded:
        return 0.0
    each = FLOAT + 2 * (FLOAT + s.optimiser) + (0 if s.offloaded_weights else 2 * HALF)
    return each * s.weights.trained / s.shards / (machine.host * 1e12)


def _sampling(s: Setup, machine: Machine, gather: float) -> float:
    """Decoding of a rollout batch, and the way of new weights to its server."""
    # Prompts enter as rows end, so that the batch stays full until the last of them.
    steps, each = s.asked / s.sampled * (s.completion - 1), decoding_seconds(s, machine)
    if s.sampler == "own":
        return steps * max(each, gather if s.gives_back else 0.0)
    return s.sent / ((machine.disk if s.by_disk else machine.network) * 1e12) + steps * each


def _bandwidth(s: Setup, machine: Machine) -> float:
    """Bytes a second that a GPU exchanges with the others it shards with."""
    return (machine.link if s.gpus <= MACHINE else machine.network) * 1e12


def gathering_seconds(s: Setup, machine: Machine) -> float:
    """Time to gather all weights once, where they are sharded."""
    if s.sharding not in ("fsdp2", "zero3"):
        return 0.0
    # Shards in the host's memory are brought to the GPU as they are stored.
    brought = s.weights.stored / s.shards / (machine.host * 1e12) if s.offloaded_weights else 0.0
    return brought + s.compute * s.model.parameters * (1 - 1 / s.gpus) / _bandwidth(s, machine)


def _reducing(s: Setup, machine: Machine) -> float:
    """Time to add up gradients over processes in one optimiser step; FSDP2 does after every pass, with as many bytes out as in."""
    times = s.accumulation if s.sharding == "fsdp2" else 2
    brought = FLOAT * s.weights.trained / s.shards / (machine.host * 1e12) if s.offloaded_weights else 0.0
    return times * (brought + FLOAT * s.weights.trained * (1 - 1 / s.gpus) / _bandwidth(s, machine))


def forward_flops(s: Setup, model: ModelShape) -> float:
    """Operations of one pass: every token through the layers, completion tokens through the output embedding."""
    head = 2 * model.vocabulary * model.decoder.hidden * s.prompts * s.group * s.completion
    if not model.shared:
        length = s.prompt + s.completion
        return s.prompts * s.group * _decoder_flops(model, length, length**2 / 2) + head
    pairs = s.prompt**2 / 2 + sum(block * (s.prompt + block) for block in s.blocks)
    return s.prompts * _decoder_flops(model, s.layout.total, pairs) + head


def rows_seconds(s: Setup, machine: Machine) -> float:
    """Time of the products, in 32 bits, that one pass forms the attention rows of a micro-batch from: every query with every key."""
    share = 1.0 if s.heads is None else s.heads / s.model.heads
    numbers = sum(share * layer.queries for layer in s.captured_layers)
    products = 2 * s.prompts * s.group * s.completion * (s.prompt + s.completion) * numbers
    return products / (machine.float_tflops * machine.utilisation * 1e12)


def decoding_seconds(s: Setup, machine: Machine) -> float:
    """Time of one decoding step for all rollouts in the batch.

    It reads the weights that they take and the mean cache once, and writes and reads what the draws make; it multiplies; and it
    starts its kernels: the slowest counts.
    """
    decoder, rollouts, own = s.model.decoder, s.sampled * s.group, s.sampler == "own"
    # Autocast reads a 32-bit weight, writes its 16-bit copy and reads that, again in every decoding step.
    cast = own and s.sharding == "ddp" and s.mixed and s.weights.method == "full"
    each = FLOAT + 2 * HALF if cast else s.compute if own else HALF
    weights = each * (decoder.read(rollouts) + s.model.vocabulary * decoder.hidden)
    prompts = s.sampled if s.model.shared or not own else rollouts
    cache = decoder.token * (FLOAT * prompts * s.prompt + s.compute * rollouts * s.completion / 2)
    moved = weights + cache + 2 * FLOAT * decoder.state * rollouts  # a state is read and written
    moved += 2 * DRAW_BYTES * s.model.vocabulary * rollouts
    products = rollouts * _decoder_flops(s.model, 1, s.prompt + s.completion / 2)
    products += 2 * rollouts * s.model.vocabulary * decoder.hidden
    gpus, layer = (1, machine.layer_ms) if own else (s.server_gpus, machine.server_layer_ms)
    return max(
        moved / (gpus * machine.bandwidth * 1e12),
        products / (gpus * machine.tflops * machine.utilisation * 1e12),
        (len(decoder.layers) + OUTSIDE) * layer / 1e3,
    )


def _decoder_flops(model: ModelShape, tokens: float, pairs: float) -> float:
    """Operations of a forward pass over `tokens` that attend in `pairs` of query and key.

    A token that changes a state lets it decay, reads it twice and adds to it.
    """
    return sum(
        count
        * (2 * layer.active * tokens + 2 * (layer.queries + layer.outputs) * pairs + 6 * layer.held.state * tokens)
        for layer, count in model.decoder.kinds.items()
    )
