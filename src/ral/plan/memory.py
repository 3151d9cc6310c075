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
from ral.plan.setup import Setup
from ral.rollouts.room import DRAW_BYTES

Phase = Literal["rollouts", "passes", "update", "optimiser"]
#: The phases of a step, and what is done in each.
PHASES: dict[Phase, str] = {
    "rollouts": "sampling the completions",
    "passes": "reference, teacher and anchor, without gradient",
    "update": "forward and backward",
    "optimiser": "the optimiser's step",
}
FLOAT, HALF, GIB = 4, 2, 2**30
#: Tensors of the rows' size `[G, R, P+R]` that exist at once beside the stored ones: the rows, and their gradient twice.
ROW_TENSORS = 3
#: Tensors of a logit chunk's size in float32 that exist at once in its backward pass.
LOGIT_TENSORS = 4
#: Tensors of the gated unit's size `[T, intermediate]` that the backward of a block adds at its peak.
GATE_TENSORS = 3
#: What a GPU's libraries hold (CUDA context, NCCL, cuBLAS), and the share that the allocator cannot use.
LIBRARIES, FRAGMENTATION = 1.5 * GIB, 0.05
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
    n, trained, parameters = s.shards, s.weights.trained, s.model.parameters
    if s.sharding in ("zero2", "zero3"):
        split = s.gpus if s.sharding == "zero3" else 1
        yield Item("weights, 16 bits" + (" (shard)" if split > 1 else ""), HALF * parameters / split, always)
        yield Item("trained weights, 32 bits (shard)", FLOAT * trained / n, always)
    else:
        yield Item("weights" + (" (shard)" if n > 1 else ""), s.weights.stored / n, always)
    yield Item("optimiser states" + (" (shard)" if n > 1 else ""), s.optimiser * trained / n, always)
    if s.reference:
        split = s.gpus if s.sharding == "fsdp2" else 1
        yield Item("reference model" + (" (shard)" if split > 1 else ""), FLOAT * parameters / split, always)
    if s.teacher:
        yield Item("teacher", s.teacher.parameters * s.teacher.saved_bytes, always)
    yield Item("prompts and rollouts of the step", _kept(s), ("rollouts", "passes", "update", "optimiser"))


def _of_phases(s: Setup) -> Iterator[Item]:
    """Items that exist only within a step, by phase."""
    working: tuple[Phase, ...] = ("rollouts", "passes", "update")
    yield Item("weights to compute with", _gathered(s), working)
    yield Item("key/value cache", _cache(s), ("rollouts",))
    yield Item("sampling: prefill and logits", _forward(s, s.sampled * s.prompt) + _drawing(s), ("rollouts",))
    if s.reference and s.sharding == "fsdp2":
        yield Item("reference model, gathered", s.compute * s.model.parameters, ("passes",))
    if s.reference_pass or s.target_pass or s.teacher:
        yield Item("a pass without gradient", _forward(s, s.tokens) + _logits(s) + _rows(s), ("passes",))
    gradients = _gradients(s)
    yield Item("gradients", gradients, ("update", "optimiser") if s.accumulation > 1 else ("optimiser",))
    if s.sharding == "ddp" and s.gpus > 1:
        yield Item("gradient buckets of DDP", FLOAT * s.weights.trained, ("update", "optimiser"))
    if s.norm_steps:
        # Sums over the step of both terms, in 32 bits; beside them a pass's own, where it is not the first or is not sharded.
        copies = 2 if s.sharding == "fsdp2" or s.accumulation == 1 else 3
        split = s.gpus if s.sharding == "fsdp2" else 1
        yield Item(
            "gradients of each term, to measure their norms", copies * FLOAT * s.weights.trained / split, ("update",)
        )
    kept, peak = _activations(s)
    # With one pass a step, gradients come into being while activations go.
    growing = gradients if s.accumulation == 1 and not s.norm_steps else 0.0
    yield Item("activations kept for the backward", kept, ("update",))
    yield Item("backward of a block, logits, attention rows", max(peak, growing - kept), ("update",))


def _gathered(s: Setup) -> float:
    """Copies of the weights beside the stored ones: in 16 bits under autocast, or gathered from the shards."""
    matrices = s.model.decoder.layers * s.model.decoder.matrices
    if s.sharding == "ddp":
        # Autocast keeps its copies of trained weights to the end of a forward, and the backward needs them.
        return HALF * matrices if s.mixed and s.weights.method == "full" else s.compute * s.model.decoder.matrices / 7
    each = HALF if s.mixed or s.sharding != "fsdp2" else s.weights.weight_bytes
    if s.sharding == "zero2":
        return 0.0
    if s.sharding == "zero3":
        return HALF * min(ZERO_LIVE, s.model.parameters)
    outside = s.model.parameters - matrices - s.model.vision_parameters
    return each * (s.model.parameters if s.gathered else outside + 2 * s.model.decoder.matrices)


def _gradients(s: Setup) -> float:
    """Bytes of the gradients; FSDP2 shares them out after every pass."""
    trained = s.weights.trained
    if s.sharding == "ddp":
        return FLOAT * trained
    return FLOAT * trained / s.gpus if s.sharding == "fsdp2" else HALF * (trained / s.gpus + ZERO_BUCKET)


def _activations(s: Setup) -> tuple[float, float]:
    """Memory that the forward pass leaves, and the maximum that its backward pass adds."""
    layers, block = s.model.decoder.layers, block_bytes(s)
    edges = s.tokens * s.model.decoder.hidden * s.residual
    ends = 3 * edges + s.tokens * s.model.decoder.hidden * FLOAT  # embeddings, final norm
    whole = layers if not s.checkpointing else s.captured  # layers that keep all
    kept = ends + whole * block + (layers - whole) * edges
    loss = _logits(s) + _rows(s)
    # A checkpointed layer is run again once the captured one, usually the last, is through.
    again = max(0.0, block - whole * block) if s.checkpointing else 0.0
    return kept, max(loss, again + _backward(s))


def block_bytes(s: Setup) -> float:
    """Tensors of the packed row that one decoder block saves for the backward pass.

    Norms save their input in float32 and their output; matrices save their input, which autocast copies for each of them
    (as an adapter does); the gated unit saves its three inputs and its product; attention saves query, key and value with the
    keys and values repeated for every query head, a copy of the prompt's keys and values for every block of completions,
    and its output; both norms and attention save a few numbers per token.
    """
    stack, c, tokens = s.model.decoder, s.compute, s.tokens
    casts = s.residual > c
    norm = 2 * FLOAT if s.residual == FLOAT else FLOAT + HALF
    norms = 2 * stack.hidden * norm
    if stack.normed_heads:
        norms += (stack.query_width + stack.key_width) * (2 * FLOAT if c == FLOAT else FLOAT + HALF)
    inputs: float = (5 if casts else 2) * stack.hidden + stack.query_width
    gate: float = 4 * stack.intermediate
    if s.weights.inputs and c < FLOAT:  # an adapter's own copies, and none for the frozen matrices
        inputs, gate = s.weights.inputs, 3 * stack.intermediate
    numbers = FLOAT * (2 + stack.heads)
    return tokens * (norms + c * (inputs + gate + s.weights.ranks) + numbers) + _attention(s)


def _attention(s: Setup) -> float:
    """Query, key, value and output, and every block's keys and values of [prompt; block]."""
    copied = 2 * sum(s.prompt + block for block in s.blocks)
    return s.model.decoder.query_width * s.compute * s.prompts * (4 * s.layout.total + copied)


def _backward(s: Setup) -> float:
    """Gradients inside one block: of the gated unit, or of attention's copies."""
    return max(GATE_TENSORS * s.tokens * s.model.decoder.intermediate * s.compute, _attention(s))


def _forward(s: Setup, tokens: int) -> float:
    """One block at work without gradient."""
    return tokens * (s.compute * 3 * s.model.decoder.intermediate + 4 * s.model.decoder.hidden * s.residual)


def _logits(s: Setup) -> float:
    """One chunk of logits and its gradient."""
    rows = min(s.prompts * s.group * s.completion, max(1, LOGIT_CHUNK_ELEMENTS // s.model.vocabulary))
    return rows * s.model.vocabulary * FLOAT * LOGIT_TENSORS


def _rows(s: Setup) -> float:
    """The attention rows of all groups of a pass, and one chunk of them per head."""
    return s.captured * s.prompts * ROW_TENSORS * _row_tensor(s) + (2 * CHUNK_ELEMENTS * FLOAT if s.captured else 0)


def _row_tensor(s: Setup) -> float:
    """`[G, R, P+R]` of one group in one layer."""
    return FLOAT * s.group * s.completion * (s.prompt + s.completion)


def _kept(s: Setup) -> float:
    """Per prompt of the step: vision features, the pixels they are from, and the old (and target) rows."""
    targets = 1 + int(s.target_pass)
    pixels = FLOAT * s.visual * s.model.visual_values
    features = s.visual * s.model.decoder.hidden * s.compute
    return s.prompts * s.accumulation * (pixels + features + targets * s.captured * _row_tensor(s))


def _cache(s: Setup) -> float:
    """Keys and values: of the prompts once, and of all completions, with room to grow; with what one layer does with them.

    A layer copies its completions' where their room grows; its scores, in float32, live with their parts and their softmax.
    """
    stack, rollouts = s.model.decoder, s.sampled * s.group
    prompts = 2 * s.sampled * s.prompt * stack.key_width * s.compute
    room = ROOM * math.ceil(s.completion / ROOM)
    completions = 2 * rollouts * room * stack.key_width * s.compute
    scores = 3 * rollouts * stack.heads * (s.prompt + s.completion) * FLOAT
    return stack.layers * (prompts + completions) + completions + scores


def _drawing(s: Setup) -> float:
    return s.sampled * s.group * s.model.vocabulary * DRAW_BYTES
