"""Samples G completions for every prompt from the policy, with transformers.

Each prompt is prefilled once, and its keys and values are stored once for all G completions. Finished rows leave the batch, and the
next prompts enter it. Every prompt has its own random numbers. So a seed gives the same completions for a prompt in any batch, on any
number of processes, and with or without dropped rows.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from ral.attention import Prompt, vision_features
from ral.attention.carried import Carried
from ral.attention.models import (
    family,
    has_vision,
    make_capturable,
    pretrained,
    resolve_layers,
    special_visual_token_ids,
    why_repeated,
)
from ral.attention.prefix import Prefixes, Record, SharedPrefix
from ral.attention.repeated import CachedRows
from ral.errors import ConfigError
from ral.families.family import joined
from ral.models.eos_tokens import eos_token_ids as eos_token_ids  # its older address

#: Rows leave the batch once this share of it can; dropping them copies the others' keys and values.
DROP_SHARE = 0.25


@dataclass(frozen=True)
class Sampling:
    """Settings of sampling.

    Attributes:
        temperature: divides the logits; 0 takes the most likely token.
        top_p, top_k: keep the smallest set of tokens with this mass / this many tokens (1.0 and 0: all).
        eos_token_ids: any of them ends a completion and is its last token.
    """

    max_completion_length: int
    eos_token_ids: tuple[int, ...]
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ConfigError(f"temperature must be at least 0, got {self.temperature}")
        if not self.eos_token_ids:
            raise ConfigError("no end-of-sequence token is known; set generation_config.eos_token_id of the model")


@dataclass(frozen=True)
class Completion:
    """One sampled completion: `ids [R]` (R ≥ 1) with its end-of-sequence token, unless it was `truncated` at the limit.

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
    base = make_capturable(model)
    biased = None if bias_layers is None else resolve_layers(base, bias_layers)
    limit = len(prompts) if rows is None else max(1, rows // num_generations)
    waiting = list(range(len(prompts)))
    if limit < len(prompts):  # like lengths enter together, so that little is padding; the largest first
        waiting.sort(key=lambda i: len(prompts[i].input_ids), reverse=True)
    written = _Written(prompts, num_generations, sampling, generators, special_visual_token_ids(base))
    batch: list[_Part] = []
    with evaluating(base):
        while waiting or batch:
            room = limit - math.ceil(sum(len(part.rows) for part in batch) / num_generations)
            if waiting and (not batch or room >= min(len(waiting), max(1, DROP_SHARE * limit))):
                entering, waiting = waiting[:room], waiting[room:]
                bias = None if look_bias is None else [look_bias[i] for i in entering]
                batch.append(_prefill(model, prompts, entering, num_generations, bias, biased))
            for part in batch:
                written.add(part)
            batch = _unfinished(batch, written.ended, sampling.max_completion_length)
            if batch:
                _advance(model, batch)
    found = written.completions()
    return [found[i : i + num_generations] for i in range(0, len(found), num_generations)]


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


@dataclass
class _Part:
    """Completions that entered the batch together.

    Attributes:
        rows: `[N]` their numbers among all completions. start: `[N]` the positions of their first tokens, the same on each of
            `axes` (none, or the three of M-RoPE).
        logits: `[N, V]` of their next tokens. length: tokens that each of them has. newest: `[N]` the last of these.
    """

    prefix: SharedPrefix | CachedRows
    rows: Tensor
    start: Tensor
    axes: Sequence[int]
    logits: Tensor
    length: int = 0
    newest: Tensor = field(init=False)

    def keep(self, prompts: Tensor, rows: Tensor) -> None:
        """Go on with some of its prompts and rows, see `SharedPrefix.of`."""
        self.prefix = self.prefix.of(prompts, rows)
        self.rows, self.start, self.newest = self.rows[rows], self.start[rows], self.newest[rows]


class _Written:
    """All completions so far, as tables `[N, R]` and `[N]`; samples their tokens."""

    def __init__(
        self,
        prompts: Sequence[Prompt],
        num_generations: int,
        sampling: Sampling,
        generators: Sequence[torch.Generator] | None,
        banned: Sequence[int],
    ):
        device, total, longest = (
            prompts[0].input_ids.device,
            len(prompts) * num_generations,
            sampling.max_completion_length,
        )
        own: Sequence[torch.Generator | None] = generators or [None] * len(prompts)
        each = [torch.rand(longest, num_generations, generator=one, dtype=torch.float64) for one in own]
        self.uniform = torch.cat(each, dim=1).to(device)
        self.temperature, self.processors = sampling.temperature, _processors(sampling)
        # A sampled visual placeholder would make the next forward pass look for features that do not exist.
        self.banned = torch.tensor(banned, dtype=torch.long, device=device)
        self.eos = torch.tensor(sampling.eos_token_ids, device=device)
        self.tokens: Any = torch.zeros(total, longest, dtype=torch.long, device=device)
        self.lengths = torch.full((total,), longest, device=device)
        self.ended = torch.zeros(total, dtype=torch.bool, device=device)

    def add(self, part: _Part) -> None:
        """Draw the next token of every row of `part`; what ended before is drawn in vain."""
        rows, step = part.rows, part.length
        scores = part.logits.float().index_fill(-1, self.banned, float("-inf"))
        scores = self.processors(self.tokens[rows, :step], scores)
        part.newest = self.tokens[rows, step] = _draw(scores, self.uniform[step, rows], self.temperature)
        ends = torch.isin(part.newest, self.eos) & ~self.ended[rows]
        self.lengths[rows] = torch.where(ends, step + 1, self.lengths[rows])
        self.ended[rows] |= ends
        part.length += 1

    def completions(self) -> list[Completion]:
        cut = zip(self.tokens, self.lengths.tolist(), self.ended.tolist(), strict=True)
        return [Completion(tokens[:length].clone(), not ended) for tokens, length, ended in cut]


def _prefill(
    model: nn.Module,
    every: Sequence[Prompt],
    chosen: Sequence[int],
    num_generations: int,
    look_bias: Sequence[Tensor] | None,
    bias_layers: tuple[int, ...] | None,
) -> _Part:
    """One left-padded pass over the `chosen` of all prompts: what their completions start from."""
    prompts = [every[i] for i in chosen]
    base, device = pretrained(model), prompts[0].input_ids.device
    longest = max(len(p.input_ids) for p in prompts)

    def left_padded(values: Tensor) -> Tensor:
        return nn.functional.pad(values, (longest - values.shape[-1], 0))

    features = [p.features if p.features is not None else vision_features(model, p.inputs) for p in prompts]
    mask = torch.stack([left_padded(torch.ones_like(p.input_ids)) for p in prompts])
    # The padding token's value is irrelevant; 0 is never a visual placeholder.
    ids = torch.stack([left_padded(p.input_ids) for p in prompts])
    record, shared = Record(), why_repeated(model) is None
    how: dict[str, Any] = {"use_cache": False, "record": Carried(record)} if shared else {"use_cache": True}
    outputs = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=torch.stack([left_padded(p.position_ids) for p in prompts], dim=-2),
        **({"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(base.forward).parameters else {}),
        **how,
        **family(base).per_token(base, ids, torch.ones_like(mask, dtype=torch.bool)),
        **({"mm_encoder_outputs": joined(features)} if has_vision(base) else {}),
    )
    own = torch.arange(len(prompts), device=device).repeat_interleave(num_generations)
    prefix: SharedPrefix | CachedRows
    if shared:
        states = {i: state.each(lambda held: held[own], recording=False) for i, state in record.states.items()}
        prefix = SharedPrefix(record.layers, mask.bool(), num_generations, states=states)
    else:
        outputs.past_key_values.reorder_cache(own)
        prefix = CachedRows(outputs.past_key_values, mask.bool()[own], num_generations)
    if look_bias is not None:
        bias = torch.cat([left_padded(bias.to(device)) for bias in look_bias])
        prefix = replace(prefix, bias=bias, bias_layers=bias_layers)
    numbers = torch.tensor(chosen, device=device)[:, None] * num_generations
    rows = (numbers + torch.arange(num_generations, device=device)).flatten()
    start = torch.tensor([p.next_position for p in prompts], device=device)
    start, logits = (x.repeat_interleave(num_generations, dim=0) for x in (start, outputs.logits[:, -1]))
    return _Part(prefix, rows, start, prompts[0].position_ids.shape[:-1], logits)


def _unfinished(batch: Sequence[_Part], ended: Tensor, longest: int) -> list[_Part]:
    """The parts in which a completion still runs, without those of its rows that can leave it."""
    running = [~ended[part.rows].view(-1, part.prefix.width) for part in batch]
    counts = torch.cat(
        [rows.sum(dim=1) for rows in running]
    ).tolist()  # the one value of a step that the host waits for
    kept = []
    for part, rows in zip(batch, running, strict=True):
        own, counts = counts[: len(rows)], counts[len(rows) :]
        left = sum(count > 0 for count in own) * max(own)
        if left == 0 or part.length == longest:
            continue
        if len(part.rows) - left >= DROP_SHARE * len(part.rows):
            part.keep(*_still_needed(rows, max(own)))
        kept.append(part)
    return kept


def _advance(model: nn.Module, batch: Sequence[_Part]) -> None:
    """The logits of the next tokens, by one pass over the newest ones of the whole batch.

    Parts that hold a copy of the prompt for each completion take a pass each: their caches are apart.
    """
    if len(batch) > 1 and any(isinstance(part.prefix, CachedRows) for part in batch):
        for part in batch:
            _advance(model, [part])
        return
    newest = torch.cat([part.newest for part in batch])
    positions = torch.cat([part.start + part.length - 1 for part in batch])
    first = batch[0].prefix
    prefix = first if isinstance(first, CachedRows) else Prefixes(part.prefix for part in batch)  # type: ignore[misc]
    logits = model(
        input_ids=newest[:, None],
        position_ids=positions[:, None].expand(*batch[0].axes, -1, 1),
        **prefix.arguments(),
    ).logits[:, -1]
    for part, own in zip(batch, logits.split([len(part.rows) for part in batch]), strict=True):
        part.logits = own


def _still_needed(running: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Of `running [B, W]`: the prompts `[b]` that have a running row, and `[b·width]` rows of theirs, all running ones among them.

    Every prompt keeps as many, so ended rows stay where another prompt has more that run.
    """
    prompts = running.any(dim=1).nonzero()[:, 0]
    columns = running[prompts].byte().argsort(dim=1, descending=True, stable=True)[:, :width]
    return prompts, (prompts[:, None] * running.shape[1] + columns).flatten()


def _processors(sampling: Sampling) -> LogitsProcessorList:
    processors = LogitsProcessorList()
    if sampling.temperature not in (0, 1):
        processors.append(TemperatureLogitsWarper(float(sampling.temperature)))
    if sampling.top_k:
        processors.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        processors.append(TopPLogitsWarper(sampling.top_p))
    return processors


def _draw(scores: Tensor, uniform: Tensor, temperature: float) -> Tensor:
    """Tokens `[N]` by inverse transform of one uniform number per row: rows do not share a random stream."""
    if temperature == 0:
        return scores.argmax(dim=-1)
    cumulative = scores.double().softmax(dim=-1).cumsum(dim=-1)
    # Scaled by the total, so that rounding never points past the last token with any mass.
    return torch.searchsorted(cumulative, (uniform * cumulative[:, -1])[:, None], right=True)[:, 0].clamp_max(
        scores.shape[-1] - 1
    )
