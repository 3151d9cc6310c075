"""Memory of one GPU by item and phase of a step. Every formula states what it counts.

Counted is what the passes of this package save for the backward, as `torch.autograd.graph.saved_tensors_hooks` shows it;
`benchmarks/plan.py` holds the sums against measured peaks. Sizes are bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from ral.attention.forward import LOGIT_CHUNK_ELEMENTS
from ral.attention.prefix import ROOM
from ral.attention.rows import CHUNK_ELEMENTS
from ral.attention.selfcheck import LENGTH
from ral.plan.setup import HALF, MACHINE, Setup
from ral.plan.shapes import Layer, ModelShape
from ral.rollouts.room import DRAW_BYTES

Phase = Literal["check", "rollouts", "passes", "update", "optimiser"]
#: The phases of a step, and what is done in each; the first is there once.
PHASES: dict[Phase, str] = {
    "check": "checking the computation on the first prompt",
    "rollouts": "sampling the completions",
    "passes": "reference, teacher and anchor, without gradient",
    "update": "forward and backward",
    "optimiser": "the optimiser's step",
}
FLOAT, GIB = 4, 2**30
#: Tensors of the rows' size `[G, R, P+R]` that exist at once beside the stored ones: the rows, and their gradient twice.
ROW_TENSORS = 3
#: Tensors of a logit chunk's size in float32 that exist at once in its backward pass.
LOGIT_TENSORS = 4
#: Norms of a layer whose output matrices take.
NORMS = 2
#: Tensors of the gated unit's size `[T, intermediate]` that the backward of a block adds at its peak.
GATE_TENSORS = 3
#: What a GPU's libraries hold (CUDA context, NCCL, cuBLAS), and the share that the allocator cannot use.
LIBRARIES, FRAGMENTATION = 1.5 * GIB, 0.05
#: Of the host's memory what a process takes with its libraries, images and videos.
PROCESS = 6 * GIB
#: What a vLLM server takes beside weights and cache (CUDA graphs, activations, libraries), and what it keeps asleep.
AWAKE, ASLEEP = 4 * GIB, 1.5 * GIB
#: Defaults of DeepSpeed: parameters that stage 3 keeps gathered, and elements of a gradient bucket.
ZERO_LIVE, ZERO_BUCKET = 1e9, 5e8


@dataclass(frozen=True)
class Item:
    """Something that takes memory: its name, bytes, and the phases in which it is there."""

    name: str
    size: float
    phases: tuple[Phase, ...]


@dataclass(frozen=True)
class Memory:
    """All items of one GPU."""

    items: tuple[Item, ...]

    def total(self, phase: Phase) -> float:
        return sum(item.size for item in self.items if phase in item.phases)

    @property
    def peak_phase(self) -> Phase:
        return max(PHASES, key=self.total)

    @property
    def peak(self) -> float:
        return self.total(self.peak_phase)


def memory(setup: Setup, libraries: bool = True) -> Memory:
    """Items of one GPU's memory. `libraries`: include the use of the GPU's libraries and allocator."""
    items = [item for item in (*_held(setup), *_of_phases(setup)) if item.size > 0]
    if libraries:
        found = Memory(tuple(items))
        items += [
            Item("libraries and fragmentation", LIBRARIES + FRAGMENTATION * found.total(phase), (phase,))
            for phase in PHASES
        ]
    return Memory(tuple(items))


def _held(s: Setup) -> Iterator[Item]:
    """Items that exist during the whole run."""
    always: tuple[Phase, ...] = tuple(PHASES)
    later: tuple[Phase, ...] = ("rollouts", "passes", "update", "optimiser")
    n, trained, parameters = s.shards, s.weights.trained, s.model.parameters
    if s.sharding in ("zero2", "zero3"):
        split = s.gpus if s.sharding == "zero3" else 1
        yield Item("weights, 16 bits" + (" (shard)" if split > 1 else ""), HALF * parameters / split, always)
        if not s.offloaded:
            yield Item("trained weights, 32 bits (shard)", FLOAT * trained / n, always)
    elif not s.offloaded_weights:
        yield Item("weights" + (" (shard)" if n > 1 else ""), s.weights.stored / n, always)
    if not s.offloaded:
        yield Item("optimiser states" + (" (shard)" if n > 1 else ""), s.optimiser * trained / n, later)
    if not s.offloaded_weights:
        shard = " (shard)" if s.fsdp_shards > 1 else ""
        for name, size in _frozen(s):
            yield Item(name + shard, size, always)
    if s.sampler == "shared":
        yield Item("the sleeping server", ASLEEP, ("passes", "update", "optimiser"))
    yield Item("prompts and rollouts of the step", _kept(s), later)


def _frozen(s: Setup) -> Iterator[tuple[str, float]]:
    """Reference and teacher by name, and the bytes that each process holds of them."""
    if s.reference:  # of shards in the precision that is computed in
        each = s.compute if s.sharding == "fsdp2" else FLOAT
        yield "reference model", each * s.model.parameters / s.fsdp_shards
    if s.teacher:
        yield "teacher", s.teacher.parameters * s.teacher.saved_bytes / s.fsdp_shards


def _of_phases(s: Setup) -> Iterator[Item]:
    """Items that exist only within a step, by phase."""
    working: tuple[Phase, ...] = ("check", "passes", "update")
    yield Item("weights to compute with", _gathered(s), (*working, "rollouts") if s.sampler == "own" else working)
    yield Item("two completions behind copies of a prompt; its logits", _check(s), ("check",))
    if s.sampler == "own":
        yield Item("key/value cache", _cache(s), ("rollouts",))
        yield Item("sampling: prefill and logits", _forward(s, s.sampled * s.prompt) + _drawing(s), ("rollouts",))
    if s.sampler == "shared":
        awake = HALF * s.model.parameters / s.server_gpus + AWAKE
        yield Item("the server's weights", awake, ("check", "rollouts"))
        yield Item("the server's keys and values", _served_cache(s), ("rollouts",))
    if s.sharding == "fsdp2":
        for name, model in (("reference model", s.model if s.reference else None), ("teacher", s.teacher)):
            if model is not None:
                yield Item(f"{name}, gathered", s.compute * _layer_by_layer(model), ("passes",))
    if s.reference_pass or s.target_pass or s.teacher or s.parts > 1:
        yield Item("a pass without gradient", _forward(s, s.tokens) + _logits(s) + _rows(s), ("passes",))
    gradients = _gradients(s)
    yield Item("gradients", gradients, ("update", "optimiser") if s.accumulation > 1 else ("optimiser",))
    if s.sharding == "ddp" and s.gpus > 1:
        yield Item("gradient buckets of DDP", FLOAT * s.weights.trained, ("update", "optimiser"))
    if not s.offloaded_weights:
        yield Item("gradients of each term, to measure their norms", _measured(s), ("update",))
    kept, peak = _activations(s)
    # With one pass a step, gradients come into being while activations go; FSDP2's of what is no layer's are whole until the end.
    whole = (s.gradient_bytes + FLOAT) * s.trained_outside if s.sharding == "fsdp2" else 0.0
    growing = max(whole, gradients if s.grows else 0.0)
    yield Item("activations kept for the backward", kept, ("update",))
    yield Item("backward of a block, logits, attention rows", max(peak, growing - kept), ("update",))


def _gathered(s: Setup) -> float:
    """Copies of the weights beside the stored ones: in 16 bits under autocast, or gathered from the shards."""
    decoder = s.model.decoder
    if s.sharding == "ddp":
        # Autocast keeps its copies of trained weights to the end of a forward, and the backward needs them.
        copied = s.mixed and s.weights.method == "full"
        return HALF * decoder.parameters if copied else s.compute * max(layer.largest for layer in decoder.kinds)
    each = HALF if s.mixed or s.sharding != "fsdp2" else s.weights.weight_bytes
    if s.sharding == "zero2":
        return 0.0
    if s.sharding == "zero3":
        vision = s.model.vision_parameters  # whole
        return HALF * (vision + min(ZERO_LIVE, s.model.parameters - vision))
    if s.gathered:
        return each * s.model.parameters
    return each * (_layer_by_layer(s.model) + sum(layer.parameters for layer in s.captured_layers))


def _layer_by_layer(model: ModelShape) -> float:
    """Weights that are gathered at once of a model that gives them back: two layers, and what is used outside of its call."""
    kept = model.outside - model.input_embedding + model.vision_parameters
    return kept + 2 * max(layer.parameters for layer in model.decoder.kinds)


def _gradients(s: Setup) -> float:
    """Bytes of the gradients; FSDP2 shares them out after every pass. Those of an optimiser on the host go there."""
    trained = 0 if s.offloaded else s.weights.trained
    if s.sharding == "ddp":
        return FLOAT * trained
    return FLOAT * trained / s.gpus if s.sharding == "fsdp2" else HALF * (trained / s.gpus + ZERO_BUCKET)


def _measured(s: Setup) -> float:
    """Bytes of the terms' gradients, sums over the step in 32 bits; beside them a pass's own, if it is not the first.

    FSDP2 adds a pass's shards to the sums layer by layer. Under ZeRO-3 there are shards of both sums, of a pass's own, and of what
    the passes that train have left, which is put back.
    """
    if not s.norm_steps:
        return 0.0
    if s.sharding == "zero3":
        return 4 * FLOAT * s.weights.trained / s.gpus
    copies = s.measured + int(s.sharding != "fsdp2" and s.accumulation > 1)
    return copies * FLOAT * s.weights.trained / s.fsdp_shards


def _activations(s: Setup) -> tuple[float, float]:
    """Memory that the forward pass leaves, and the maximum that its backward pass adds."""
    decoder = s.model.decoder
    blocks = {layer: block_bytes(s, layer) for layer in decoder.kinds}
    edges = s.tokens * decoder.hidden * s.residual
    ends = 3 * edges + s.tokens * decoder.hidden * FLOAT  # embeddings, final norm
    # Layers that keep all: without checkpoints each of them, with checkpoints the captured ones.
    whole = s.captured_layers if s.checkpointing else decoder.layers
    kept_whole = sum(blocks[layer] for layer in whole)
    kept = ends + masks_bytes(s) + kept_whole + (len(decoder.layers) - len(whole)) * edges
    # Each chunk of logits makes a gradient of the whole output embedding, and adds it to those before it.
    head = s.gradient_bytes * s.trained_head
    loss = _logits(s) + _rows(s) + 2 * head
    # A checkpointed layer is run again once the captured one, usually the last, is through.
    again = max(0.0, max(blocks.values()) - kept_whole) if s.checkpointing else 0.0
    held = head if s.grows or s.sharding == "fsdp2" else 0.0
    return kept, max(loss, held + again + max(_backward(s, layer) for layer in decoder.kinds))


def block_bytes(s: Setup, layer: Layer) -> float:
    """Tensors of the packed row that one decoder layer saves for the backward pass.

    Beside what was measured of the layer (`ral.plan.saved`), attention saves query, key and value with the keys and values
    repeated for every query head, a copy of the prompt's keys and values for every block of completions, its output, and a
    number per query. Under autocast norms give 32 bits, and each matrix has its own copy in 16 bits of what it takes.
    """
    saved, c = layer.saved, s.compute
    each = saved.bytes(c)
    if s.residual > c:
        each += (s.residual - c) * NORMS * s.model.decoder.hidden + c * saved.again
    if s.weights.inputs and c < FLOAT:  # an adapter's own copies, and none for the frozen matrices
        each += c * (s.weights.inputs - saved.inputs)
    return s.tokens * (each + c * s.weights.ranks + FLOAT * layer.heads) + _attention(s, layer)


def masks_bytes(s: Setup) -> float:
    """Masks of the blocks of completions, one set for all layers that see as far."""
    sights = {layer.sight for layer in s.model.decoder.attending}
    return len(sights) * s.compute * s.prompts * sum(block * (s.prompt + block) for block in s.blocks)


def _attention(s: Setup, layer: Layer) -> float:
    """Query, key, value and output, and every block's keys and values of [prompt; block]; a prompt's mask, if it needs one.

    Where prompts are repeated, each completion has all of them.
    """
    if not layer.heads:
        return 0.0
    wide = (layer.queries + layer.outputs) * s.compute * s.prompts
    if not s.model.shared:
        return 2 * wide * s.group * (s.prompt + s.completion)
    mask = 0 if layer.sight.reaches(s.prompt) else s.compute * s.prompts * s.prompt**2
    return wide * (2 * s.layout.total + sum(s.prompt + block for block in s.blocks)) + mask


def _backward(s: Setup, layer: Layer) -> float:
    """Gradients inside one layer: of the gated unit, or of attention's copies."""
    return max(GATE_TENSORS * s.tokens * layer.gate * s.compute, _attention(s, layer))


def _forward(s: Setup, tokens: int) -> float:
    """One layer at work without gradient."""
    gate = max(layer.gate for layer in s.model.decoder.kinds)
    return tokens * (s.compute * 3 * gate + 4 * s.model.decoder.hidden * s.residual)


def _check(s: Setup) -> float:
    """Two copies of a prompt without gradient, with the masks of their layers, or the model's own logits at all of its tokens.

    A mask of one byte is there, and one in the precision that is computed in; autocast makes the logits ones of 32 bits.
    """
    length = s.prompt + LENGTH
    wide = max(layer.queries + layer.outputs for layer in s.model.decoder.kinds)
    copies = 2 * length**2 * (1 + s.compute) + max(_forward(s, 2 * length), 2 * length * 2 * wide * s.compute)
    each = s.compute + (FLOAT if s.mixed else 0)
    return max(copies, _forward(s, length) + each * length * s.model.vocabulary)


def _logits(s: Setup) -> float:
    """One chunk of logits and its gradient."""
    rows = min(s.prompts * s.group * s.completion, max(1, LOGIT_CHUNK_ELEMENTS // s.model.vocabulary))
    return rows * s.model.vocabulary * FLOAT * LOGIT_TENSORS


def _rows(s: Setup) -> float:
    """The attention rows of all groups of a pass, query and key of their heads with gradients, and one chunk of them per head."""
    rows = s.captured * s.prompts * ROW_TENSORS * _row_tensor(s) + (2 * CHUNK_ELEMENTS * FLOAT if s.captured else 0)
    return rows + sum(s.prompts * 2 * FLOAT * _looking(s, layer) for layer in s.captured_layers)


def _looking(s: Setup, layer: Layer) -> float:
    """Numbers of one group's queries and keys that rows are formed of; of chosen heads each has a key of its own."""
    written = s.group * s.completion
    share = 1.0 if s.heads is None else s.heads / layer.heads
    keys = layer.held.keys if s.heads is None else share * layer.queries
    return share * layer.queries * written + keys * (s.prompt + written)


def _row_tensor(s: Setup) -> float:
    """`[G, R, P+R]` of one group in one layer."""
    return FLOAT * s.group * s.completion * (s.prompt + s.completion)


def _kept(s: Setup) -> float:
    """Per prompt of the rollout batch: vision features, the pixels they are from, and the old (and target) rows."""
    targets = 1 + int(s.target_pass)
    pixels = FLOAT * s.visual * s.model.visual_values
    prompts = s.prompts * s.accumulation * s.parts
    return prompts * (pixels + s.features + targets * s.captured * _row_tensor(s))


def _cache(s: Setup) -> float:
    """Keys and values: of the prompts once, and of all completions, with room to grow; states; and what one layer does with them.

    A layer copies its completions' where their room grows; its scores, in float32, live with their parts and their softmax.
    """
    decoder, rollouts = s.model.decoder, s.sampled * s.group
    prompts = (s.sampled if s.model.shared else rollouts) * s.prompt
    completions = rollouts * ROOM * math.ceil(s.completion / ROOM)
    grown = completions * max(layer.held.token for layer in decoder.kinds)
    scores = 3 * rollouts * s.model.heads * (s.prompt + s.completion) * FLOAT
    return s.compute * (decoder.token * (prompts + completions) + grown) + FLOAT * decoder.state * rollouts + scores


def _served_cache(s: Setup) -> float:
    """Keys and values of all rollouts of a server in 16 bits, on one of its GPUs; a window's layers hold no more than it."""
    decoder, rollouts, length = s.model.decoder, s.sampled * s.group, s.prompt / s.group + s.completion
    held = sum(
        count * layer.held.token * min(length, layer.sight.window or length) for layer, count in decoder.kinds.items()
    )
    return rollouts * (HALF * held + FLOAT * decoder.state) / s.server_gpus


def _drawing(s: Setup) -> float:
    return s.sampled * s.group * s.model.vocabulary * DRAW_BYTES


def host_memory(s: Setup) -> float:
    """Memory of the first machine: while weights are read, by one process or by all; while they are saved; and during the run."""
    parameters, local = s.model.parameters, min(s.gpus, MACHINE)
    read = FLOAT if s.weights.method == "full" else s.weights.weight_bytes
    loading = s.loads * read * parameters
    # The main process gathers what is saved, and what a server is sent, in whole tensors.
    gathering = max(FLOAT * s.weights.trained, s.sent)
    return max(loading, gathering + local * _on_host(s)) + local * PROCESS


def _on_host(s: Setup) -> float:
    """Bytes of one process that would be its GPU's if they were not offloaded: optimiser, weights and gradients, all in 32 bits."""
    if not s.offloaded:
        return 0.0
    optimised = (s.optimiser + FLOAT) * s.weights.trained / s.shards
    if not s.offloaded_weights:
        return optimised + FLOAT * s.weights.trained / s.shards
    return optimised + s.weights.stored / s.shards + _measured(s) + sum(size for _, size in _frozen(s))
