"""Rollouts: G completions behind every prompt, sampled from the policy with transformers.

Each prompt is prefilled once, and its keys and values are held once for the G completions, too. Rows that have ended leave
the batch.
Every prompt has random numbers of its own, so a seed gives it the same completions whatever it is batched with, on however
many processes, and whether or not rows are dropped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    DynamicCache,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from ral.attention import Prompt, vision_features
from ral.attention.carried import Carried
from ral.attention.models import (
    has_vision,
    make_capturable,
    merge_features,
    pretrained,
    resolve_layers,
    special_visual_token_ids,
)
from ral.attention.prefix import SharedPrefix
from ral.errors import ConfigError

#: Rows leave the batch once this share of it can; dropping them copies the others' keys and values.
DROP_SHARE = 0.25


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn.

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

    `logps [R]` are what another engine drew it at; None where the policy itself did.
    """

    ids: Tensor
    truncated: bool
    logps: Tensor | None = None

    def text(self, processor: Any) -> str:
        """What was written, without the end-of-sequence token but with tags that are tokens."""
        tokenizer = getattr(processor, "tokenizer", processor)
        return tokenizer.decode(self.ids if self.truncated else self.ids[:-1], skip_special_tokens=False)


def eos_token_ids(model: Any) -> tuple[int, ...]:
    """The end-of-sequence tokens of a model's generation config."""
    ids = model.generation_config.eos_token_id
    return tuple(ids) if isinstance(ids, (list, tuple)) else () if ids is None else (ids,)


@torch.no_grad()
def sample(
    model: nn.Module,
    prompts: Sequence[Prompt],
    num_generations: int,
    sampling: Sampling,
    generators: Sequence[torch.Generator] | None = None,
    look_bias: Sequence[Tensor] | None = None,
    bias_layers: Sequence[int] | None = None,
) -> list[list[Completion]]:
    """Draw completions for several prompts of any kind at once.

    Args:
        model: the policy, as training calls it; switched to evaluation mode while sampling. An autocast that accelerate put
            around its `forward` holds for rollouts, too.
        generators: one per prompt, on the CPU; torch's global one if not given.
        look_bias: per prompt `[G, P]` added to the attention logits of the completion queries (`explore` anchor).
        bias_layers: decoder layers that feel it; None: every layer.

    Returns:
        Per prompt, `num_generations` completions.
    """
    base = make_capturable(model)
    with evaluating(base):
        prefix, logits, position = _prefill(model, prompts, num_generations)
        if look_bias is not None:
            bias = _left_padded([b.to(logits.device) for b in look_bias], prefix.seen.shape[1])
            biased = None if bias_layers is None else resolve_layers(base, bias_layers)
            prefix = replace(prefix, bias=bias, bias_layers=biased)
        rows = _decode(model, prefix, logits, position, sampling, generators or [None] * len(prompts))
    return [rows[i : i + num_generations] for i in range(0, len(rows), num_generations)]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode; behind it every module is in the mode it was in."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _prefill(model: nn.Module, prompts: Sequence[Prompt], num_generations: int) -> tuple[SharedPrefix, Tensor, Tensor]:
    """One left-padded pass over the B prompts: what N = B·G completions start from.

    Returns:
        The prompts' keys and values, next-token logits `[N, V]`, next positions `[N]`.
    """
    base, device = pretrained(model), prompts[0].input_ids.device
    longest = max(len(p.input_ids) for p in prompts)

    def left_padded(values: Tensor) -> Tensor:
        return nn.functional.pad(values, (longest - values.shape[-1], 0))

    features = [p.features if p.features is not None else vision_features(model, dict(p.inputs)) for p in prompts]
    cache = DynamicCache(config=base.config.get_text_config())
    mask = torch.stack([left_padded(torch.ones_like(p.input_ids)) for p in prompts])
    outputs = model(
        # The padding token's value is irrelevant; 0 is never a visual placeholder.
        input_ids=torch.stack([left_padded(p.input_ids) for p in prompts]),
        attention_mask=mask,
        position_ids=torch.stack([left_padded(p.position_ids) for p in prompts], dim=-2),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
        **({"mm_encoder_outputs": merge_features(features)} if has_vision(base) else {}),
    )
    position = torch.tensor([p.next_position for p in prompts], device=device)
    held: Any = cache.layers  # of a dynamic cache: each with its keys and values
    # Under autocast keys are float32, as the rotation makes them.
    layers = [(layer.keys.to(layer.values.dtype), layer.values) for layer in held]
    prefix = SharedPrefix(layers, mask.bool(), num_generations)
    logits = outputs.logits[:, -1].repeat_interleave(num_generations, dim=0)
    return prefix, logits, position.repeat_interleave(num_generations)


def _left_padded(biases: list[Tensor], longest: int) -> Tensor:
    """`[G, P_i]` per prompt → `[B·G, P]`."""
    return torch.cat([nn.functional.pad(bias, (longest - bias.shape[1], 0)) for bias in biases])


def _decode(
    model: Any,
    prefix: SharedPrefix,
    logits: Tensor,
    position: Tensor,
    sampling: Sampling,
    generators: Sequence[torch.Generator | None],
) -> list[Completion]:
    base, total, longest, device = pretrained(model), len(logits), sampling.max_completion_length, logits.device
    processors = _processors(sampling)
    # A sampled visual placeholder would make the next forward pass look for features that do not exist.
    banned = torch.tensor(special_visual_token_ids(base), dtype=torch.long, device=device)
    eos = torch.tensor(sampling.eos_token_ids, device=device)
    each = total // len(generators)
    uniform = torch.cat([torch.rand(longest, each, generator=g, dtype=torch.float64) for g in generators], dim=1)
    uniform = uniform.to(device)
    tokens: Any = torch.zeros(total, longest, dtype=torch.long, device=device)
    lengths = torch.full((total,), longest, device=device)
    ended = torch.zeros(total, dtype=torch.bool, device=device)
    active = torch.arange(total, device=device)
    axes = (3,) if has_vision(base) else ()
    for step in range(longest):
        scores = processors(tokens[active, :step], logits.float().index_fill(-1, banned, float("-inf")))
        chosen = _draw(scores, uniform[step, active], sampling.temperature)
        tokens[active, step] = chosen
        ends = torch.isin(chosen, eos) & ~ended[active]
        lengths[active] = torch.where(ends, step + 1, lengths[active])
        ended[active] |= ends
        running = ~ended[active].view(-1, prefix.width)
        counts = running.sum(dim=1).tolist()  # the one value of a step that the host waits for
        left = sum(count > 0 for count in counts) * max(counts)
        if left == 0 or step + 1 == longest:
            break
        if len(active) - left >= DROP_SHARE * len(active):
            prompts, rows = _still_needed(running, max(counts))
            active, chosen, position, prefix = active[rows], chosen[rows], position[rows], prefix.of(prompts, rows)
        logits = model(
            input_ids=chosen[:, None],
            position_ids=(position + step)[:, None].expand(*axes, -1, 1),
            # A prepared 4-D mask is passed through as it is; what is padding, the prefix knows.
            attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device),
            prefix=Carried(prefix),
            use_cache=False,
        ).logits[:, -1]
    return [Completion(tokens[i, : int(lengths[i])].clone(), not bool(ended[i])) for i in range(total)]


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
