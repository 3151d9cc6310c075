"""Samples G completions for every prompt from the policy, with transformers.

Each prompt is prefilled once, and its keys and values are stored once for all G completions. Finished rows leave the batch, and the
next prompts enter it. Every prompt has its own random numbers. So a seed gives the same completions for a prompt in any batch, on any
number of processes, and with or without dropped rows.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from ral.attention import Prompt
from ral.attention.models import make_capturable, resolve_layers, special_visual_token_ids
from ral.errors import ConfigError
from ral.models.eos_tokens import eos_token_ids as eos_token_ids  # its older address
from ral.rollouts.batch import DROP_SHARE, Entry, Part, all_newest, prefill
from ral.rollouts.graphs import Steps


@dataclass(frozen=True)
class Sampling:
    """Settings of sampling.

    Attributes:
        temperature: divides the logits; 0 takes the most likely token.
        top_p, top_k: keep the smallest set of tokens with this mass / this many tokens (1.0 and 0: all).
        min_p: keep tokens of at least this share of the likeliest one's probability (arXiv 2407.01082); None: all.
        repetition_penalty: divides the positive logits of tokens that the prompt or the completion holds already, and multiplies
            the negative ones (arXiv 1909.05858); 1: none.
        eos_token_ids: any of them ends a completion and is its last token.
    """

    max_completion_length: int
    eos_token_ids: tuple[int, ...]
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float | None = None
    repetition_penalty: float = 1.0

    @classmethod
    def of(cls, settings: Any, eos_token_ids: tuple[int, ...]) -> Sampling:
        """Those among the settings of a run (`RALConfig`)."""
        named = {item.name: getattr(settings, item.name) for item in fields(cls) if item.name != "eos_token_ids"}
        return cls(eos_token_ids=eos_token_ids, **named)

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ConfigError(f"temperature must be at least 0, got {self.temperature}")
        if not self.eos_token_ids:
            raise ConfigError("no end-of-sequence token is known; set generation_config.eos_token_id of the model")


@dataclass(frozen=True)
class Completion:
    """One sampled completion: `ids [R]` (R ≥ 1, on the CPU) with its end-of-sequence token, unless it was `truncated` at the limit.

    `logps [R]` are its log-probabilities from another engine that sampled it; None if the policy itself did.
    """

    ids: Tensor
    truncated: bool
    logps: Tensor | None = None

    def text(self, processor: Any, opening: str = "") -> str:
        """The completion as text, without the end-of-sequence token but with tags that are tokens.

        `opening` is what the prompt had said of it already (`templates.think_opening`): with it, the text is the whole turn.
        """
        tokenizer = getattr(processor, "tokenizer", processor)
        return opening + tokenizer.decode(self.ids if self.truncated else self.ids[:-1], skip_special_tokens=False)


@torch.no_grad()
def sample(
    model: nn.Module,
    prompts: Sequence[Prompt],
    num_generations: int,
    sampling: Sampling,
    generators: Sequence[torch.Generator] | None = None,
    look_bias: Sequence[Tensor] | None = None,
    bias_layers: Sequence[int] | None = None,
    rows: int | None = None,
) -> list[list[Completion]]:
    """Sample completions for several prompts of any kind.

    Args:
        model: the policy, as training calls it; switched to evaluation mode while sampling. An autocast that accelerate put
            around its `forward` holds for rollouts, too.
        generators: one per prompt, on the CPU; torch's global one if not given.
        look_bias: per prompt `[G, P]` added to the attention logits of the completion queries (`explore` anchor).
        bias_layers: decoder layers that feel it; None: every layer.
        rows: completions in the batch at most, and at least those of one prompt; None: all. It changes no completion.

    Returns:
        Per prompt, `num_generations` completions.
    """
    every = len(prompts) * num_generations
    limit = every if rows is None else rows
    own: Sequence[torch.Generator | None] = generators or [None] * len(prompts)
    looks: Sequence[Tensor | None] = look_bias or [None] * len(prompts)
    entries = [Entry(i, *one) for i, one in enumerate(zip(prompts, own, looks, strict=True))]
    if limit < every:  # like lengths enter together, so that little is padding; the largest first
        entries.sort(key=lambda entry: entry.length, reverse=True)
    ended = stream(model, entries, num_generations, sampling, lambda longest: limit, bias_layers=bias_layers)
    found = {entry.number: completions for entry, completions in ended}
    return [found[i] for i in range(len(prompts))]


@torch.no_grad()
def stream(
    model: nn.Module,
    entries: Iterable[Entry],
    num_generations: int,
    sampling: Sampling,
    rows: Callable[[int], int],
    *,
    bias_layers: Sequence[int] | None = None,
) -> Iterator[tuple[Entry, list[Completion]]]:
    """Sample completions for prompts that come one by one; each leaves when its last completion has ended.

    The model is in evaluation mode until the last prompt has left.

    Args:
        entries: taken when there is room for them, and a quarter of a batch before. All have a look bias, or none has.
        rows: completions in the batch at most, where the longest prompt has so many tokens; those of one prompt at least.
        Others as for `sample`.
    """
    base = make_capturable(model)
    biased = None if bias_layers is None else resolve_layers(base, bias_layers)
    draw = _Draw(sampling, special_visual_token_ids(base))
    ends, longest = frozenset(sampling.eos_token_ids), sampling.max_completion_length
    waiting = _Waiting(iter(entries))
    batch: list[Part] = []
    steps = Steps(model)
    with evaluating(base):
        while waiting or batch:
            limit = max(1, rows(waiting.longest) // num_generations)
            taken = math.ceil(sum(part.size for part in batch) / num_generations)
            if entering := waiting.take(limit - taken, max(1, int(DROP_SHARE * limit)), empty=not batch):
                batch.append(prefill(model, entering, num_generations, longest, biased, sampling.temperature > 0))
            for part in batch:
                draw(part)
            for part, newest in zip(batch, all_newest(batch), strict=True):
                for number in part.write(newest, ends, longest):
                    written = part.written[number]
                    yield part.entries[number], [Completion(torch.tensor(y), y[-1] not in ends) for y in written]
            batch = [part for part in batch if part.keep_running()]
            if batch:
                steps.advance(batch, longest)


class _Waiting:
    """The prompts that have not entered yet. It takes few more from their source than can enter."""

    def __init__(self, source: Iterator[Entry]):
        self.source, self.longest = source, 0
        self.next: deque[Entry] = deque()
        self._fetch(1)

    def __bool__(self) -> bool:
        return bool(self.next)

    def take(self, room: int, few: int, empty: bool) -> list[Entry]:
        """As many as there is `room` for; none while fewer than a `few` could enter and more wait, unless the batch is `empty`."""
        self._fetch(few)
        if not empty and room < min(few, len(self.next)):
            return []
        self._fetch(room)
        taken = [self.next.popleft() for _ in range(min(room, len(self.next)))]
        self._fetch(1)
        return taken

    def _fetch(self, count: int) -> None:
        """Have `count` at hand, or all that are left."""
        for entry in islice(self.source, max(0, count - len(self.next))):
            self.next.append(entry)
            self.longest = max(self.longest, entry.length)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Set the model to evaluation mode; afterwards every module gets its old mode back."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


class _Draw:
    """Draws the next token of every row of a part; what ended before is drawn in vain."""

    def __init__(self, sampling: Sampling, banned: Sequence[int]):
        self.temperature, self.processors = sampling.temperature, _processors(sampling)
        self.penalises = sampling.repetition_penalty != 1
        # A sampled visual placeholder would make the next forward pass look for features that do not exist.
        self.banned = torch.tensor(banned, dtype=torch.long)

    def __call__(self, part: Part) -> None:
        self.banned = self.banned.to(part.logits.device)
        scores = part.logits.float().index_fill(-1, self.banned, float("-inf"))
        written = part.tokens[:, : part.length]
        before = torch.cat([part.asked(), written], dim=1) if self.penalises else written
        scores = self.processors(before, scores)  # type: ignore[arg-type]
        uniform = None if part.uniform is None else part.uniform[part.length]
        part.newest = part.tokens[:, part.length] = _draw(scores, uniform, self.temperature)
        part.length += 1


def _processors(sampling: Sampling) -> LogitsProcessorList:
    """In the order of transformers' `generate`."""
    processors = LogitsProcessorList()
    if sampling.repetition_penalty != 1:
        processors.append(RepetitionPenaltyLogitsProcessor(float(sampling.repetition_penalty)))
    if sampling.temperature not in (0, 1):
        processors.append(TemperatureLogitsWarper(float(sampling.temperature)))
    if sampling.top_k:
        processors.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        processors.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        processors.append(MinPLogitsWarper(sampling.min_p))
    return processors


def _draw(scores: Tensor, uniform: Tensor | None, temperature: float) -> Tensor:
    """Tokens `[N]` by inverse transform of one uniform number per row: rows do not share a random stream."""
    if temperature == 0:
        return scores.argmax(dim=-1)
    assert uniform is not None
    cumulative = scores.double().softmax(dim=-1).cumsum(dim=-1)
    # Scaled by the total, so that rounding never points past the last token with any mass.
    return torch.searchsorted(cumulative, (uniform * cumulative[:, -1])[:, None], right=True)[:, 0].clamp_max(
        scores.shape[-1] - 1
    )
