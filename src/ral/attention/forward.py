"""`forward_group`: one forward pass over a prompt and all its completions gives log-probabilities and policy rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ral.attention.carried import Carried
from ral.attention.heads import Heads, heads_of, selected
from ral.attention.layout import GroupLayout, PackedLayout
from ral.attention.models import (
    capture_with_gradient,
    family,
    make_capturable,
    resolve_layers,
    rope_positions,
    token_inputs,
    vision_features,
    vision_tower,
    visual_token_ids,
    why_repeated,
)
from ral.attention.packed import KERNELS, Kernel, PackedPass
from ral.attention.repeated import RepeatedPass
from ral.attention.rows import Query, attention_rows, head_mean_attention, policy_rows
from ral.errors import DataError
from ral.families.family import MODALITIES
from ral.families.tiles import Tile, interior

#: Logits formed at once, in elements (float32: 256 MiB).
LOGIT_CHUNK_ELEMENTS = 2**26


@dataclass(frozen=True)
class Prompt:
    """One prompt ready for packing: all its values that do not change between passes.

    Attributes:
        input_ids: `[P]`. position_ids: `[3, P]` (M-RoPE) or `[P]`.
        grids: (t, h, w) of every image, then of every video, in *tokens* (after the spatial merge).
        places: `[N]` where the N visual tokens stand, in the order of `grids`.
        features: the vision tower's output by modality, or None when it is to be computed with gradient on every pass.
        inputs: the processor's dict, on the host.
        together: `[P]` set number of tokens that see each other in both directions (-1: none), or None.
        parts: what the visual tokens show where pictures are cut into several grids; `grids` is empty then.
    """

    input_ids: Tensor
    position_ids: Tensor
    grids: tuple[tuple[int, int, int], ...]
    places: Tensor
    features: dict[str, Any] | None
    inputs: Mapping[str, Any]
    together: Tensor | None = None
    parts: tuple[Tile, ...] = ()

    @cached_property
    def tiles(self) -> tuple[Tile, ...]:
        """What of which picture each visual token shows, in the order of `places`; empty where it is not known."""
        shapes = ((medium, h, w) for medium, (t, h, w) in enumerate(self.grids) for _ in range(t))
        return self.parts or tuple(Tile(n, h, w, medium=medium) for n, (medium, h, w) in enumerate(shapes))

    @cached_property
    def visual(self) -> Tensor:
        """`[P]` bool, true on visual tokens."""
        return torch.zeros_like(self.input_ids, dtype=torch.bool).index_fill(0, self.places, True)

    @cached_property
    def interior(self) -> Tensor:
        """`[P]` bool, true on visual tokens off the edge of their picture; none where it is not known what they show."""
        inside = torch.zeros_like(self.visual)
        if self.tiles:
            inside[self.places] = torch.from_numpy(interior(self.tiles)).to(inside.device)
        return inside

    @cached_property
    def next_position(self) -> int:
        """Position of the first completion token: after the prompt's largest position, which may be a video's in time."""
        return int(self.position_ids.max()) + 1

    def to(self, device: torch.device) -> Prompt:
        """The prompt with its tokens on a device; what the host knows of it stays known there."""
        moved = replace(
            self,
            input_ids=self.input_ids.to(device),
            position_ids=self.position_ids.to(device),
            places=self.places.to(device),
            together=None if self.together is None else self.together.to(device),
        )
        vars(moved)["next_position"] = self.next_position
        return moved


@dataclass(frozen=True)
class GroupOutput:
    """Result of the packed forward for one group of G completions of at most R tokens after a prompt of P tokens.

    Attributes:
        logps: `[G, R]` log-probability of each completion token (0 on padding), at the given temperature.
        entropy: `[G, R]` entropy of the token distribution, detached (nats).
        mask: `[G, R]` bool, true on real tokens.
        layers: layer → policy rows p^t `[G, R, P+R]`, of the mean over all heads or over the chosen ones.
        own: layer → `[G, R]` attention of each token to itself, detached; rows exclude it and are renormalised.
        visual: `[P]` bool.
        extra: further per-token statistics `[G, R]` by name, from `token_statistics`.
        heads: layer → attention of every head `[H, G, R, P+R]`, if requested.
        interior: `[P]` bool, visual tokens off the edge of their picture.
    """

    logps: Tensor
    entropy: Tensor
    mask: Tensor
    layers: dict[int, Tensor]
    own: dict[int, Tensor]
    visual: Tensor
    extra: dict[str, Tensor]
    heads: dict[int, Tensor] = field(default_factory=dict)
    interior: Tensor | None = None

    @property
    def attention(self) -> Tensor:
        """Policy rows `[G, R, P+R]` of the last captured layer in `layers`."""
        return next(reversed(self.layers.values()))

    @torch.no_grad()
    def alpha(self, layer: int) -> Tensor:
        """Attention `[G, R, P+R]` of a captured layer, the mean over the rows' heads, the token itself included; 0 on padding."""
        rows, own = self.layers[layer], torch.where(self.mask, self.own[layer], 0.0)
        alpha = rows * (1 - own[..., None])
        alpha[..., len(self.visual) :].diagonal(dim1=1, dim2=2).copy_(own)
        return alpha


class TokenStatistics(Protocol):
    """A further statistic of the token distribution, computed chunk by chunk beside the log-probabilities."""

    def __call__(self, logits: Tensor, hidden: Tensor, rows: slice) -> dict[str, Tensor]:
        """`logits [n, V]` and `hidden [n, d]` of completion tokens `rows` (counted through the row) → name → `[n]`."""


def prepare_prompt(
    model: nn.Module, prompt_inputs: Mapping[str, Any], features: dict[str, Any] | None = None
) -> Prompt:
    """Strip padding, check the visual tokens against the grids, compute positions and (frozen) vision features.

    Args:
        prompt_inputs: the processor's dict for one prompt (`input_ids [1, P]`, `pixel_values`, `image_grid_thw`, …).
        features: the vision tower's output if it is known already.

    Raises:
        ValueError: more than one prompt. DataError: a number of visual tokens other than the model expects.
    """
    base = make_capturable(model)
    # On the host, where values are looked at without waiting for the device.
    inputs = {k: v.cpu() if isinstance(v, Tensor) else v for k, v in prompt_inputs.items()}
    input_ids = inputs["input_ids"]
    if input_ids.ndim != 2 or input_ids.shape[0] != 1:
        raise ValueError(f"prompt_inputs must hold one prompt (input_ids [1, P]), got {list(input_ids.shape)}")
    input_ids = input_ids[0]
    if inputs.get("attention_mask") is not None:
        input_ids = input_ids[inputs["attention_mask"][0].bool()]
    grids = _check_visual_tokens(base, input_ids, inputs)
    # Images before videos, as their grids are.
    kinds = family(base).kinds(base.config, input_ids)
    places = [(kinds == 1 + number).nonzero()[:, 0] for number in range(len(MODALITIES))]
    if features is None and not any(p.requires_grad for p in vision_tower(base).parameters()):
        with torch.no_grad():
            features = vision_features(model, inputs)
    prompt = Prompt(
        input_ids,
        rope_positions(base, input_ids, inputs),
        grids,
        torch.cat([*places, input_ids[:0]]),
        features,
        inputs,
        family(base).together(base, input_ids),
        _check_tiles(getattr(prompt_inputs, "tiles", ()), sum(map(len, places))),
    )
    return prompt.to(base.device)


def _check_tiles(tiles: tuple[Tile, ...], tokens: int) -> tuple[Tile, ...]:
    """The tiles that came beside the processor's tensors, if they are of all visual tokens."""
    if tiles and (expected := sum(tile.tokens for tile in tiles)) != tokens:
        raise DataError(
            f"the prompt holds {tokens} visual tokens, but its pictures are {expected}: the processor does not belong to this "
            "model, or the prompt was truncated. Use the model's own processor and do not truncate prompts."
        )
    return tiles


def _check_visual_tokens(model: Any, input_ids: Tensor, inputs: Mapping[str, Any]) -> tuple[tuple[int, int, int], ...]:
    """Token grids, of images before videos; the counts must be those the vision tower will yield."""
    grids: list[tuple[int, int, int]] = []
    kinds = family(model).kinds(model.config, input_ids)
    for kind in family(model).placeholders(model.config):
        shapes = family(model).token_grids(model.config, kind, inputs)
        if shapes is None:
            continue
        found = int((kinds == 1 + MODALITIES.index(kind)).sum())
        expected = sum(t * h * w for t, h, w in shapes)
        if found != expected:
            raise DataError(
                f"the prompt holds {found} {kind} tokens but the model expects {expected} for grids (time, rows, columns) of "
                f"{shapes} tokens: the processor does not belong to this model, or the prompt was truncated. Use the model's "
                "own processor and do not truncate prompts."
            )
        grids += shapes
    return tuple(grids)


def forward_groups(
    model: nn.Module,
    prompts: Sequence[Prompt],
    completions: Sequence[Sequence[Tensor]],
    *,
    layers: Sequence[int] = (-1,),
    heads: Heads = None,
    query: Query = "token",
    temperature: float = 1.0,
    look_bias: Sequence[Tensor | None] | None = None,
    bias_layers: Sequence[int] | None = None,
    token_statistics: TokenStatistics | None = None,
    per_head: bool = False,
    kernel: Kernel = "sdpa",
    repeated: bool | None = None,
) -> list[GroupOutput]:
    """One packed forward of several groups.

    Args:
        model: the policy, possibly wrapped (PEFT, DDP, FSDP).
        prompts: one per group. completions: per group, G 1-D LongTensors of completion tokens, each non-empty.
        layers: decoder layers whose policy rows are wanted (may be empty: then no attention is recomputed).
        heads: the heads of each that rows are the mean of, a list for one layer, or one list a layer; None: of all heads.
        query: see `head_mean_attention`.
        temperature: divides the logits before log-probabilities and entropy.
        look_bias: per group `[G, P]` added to the completion queries' scores, or None.
        bias_layers: decoder layers that feel it; None: every layer.
        token_statistics: further statistics of the token distribution.
        per_head: also return the attention of every head; for evaluation, as it is H times as large.
        kernel: what computes the attention: `sdpa`, or `flex` (no gradient on CPU).
        repeated: give every completion a row of its own, with a copy of the prompt; None: as the model asks for.

    Raises:
        ValueError: an empty completion, or one that holds a visual token.
        UnsupportedModelError: see `make_capturable`. ConfigError: a layer or a head that the model does not have.
    """
    base = make_capturable(model)
    device = prompts[0].input_ids.device
    groups = tuple(
        GroupLayout(len(p.input_ids), tuple(len(y) for y in ys), p.together)
        for p, ys in zip(prompts, completions, strict=True)
    )
    targets = torch.cat([y for ys in completions for y in ys])
    _check_completions(base, groups, targets)
    targets = targets.to(device)
    completions = _split(targets, completions)
    capture = resolve_layers(base, layers)
    chosen = heads_of(base, capture, heads if layers else None)
    biased = None if bias_layers is None else resolve_layers(base, bias_layers)
    head = _LogProbHead(base, targets, temperature, token_statistics)
    features = [p.features if p.features is not None else vision_features(model, p.inputs) for p in prompts]
    with head.attached(), capture_with_gradient(base, capture):
        if repeated if repeated is not None else why_repeated(base) is not None:
            rows = RepeatedPass(groups, look_bias, biased, capture, query)
            _run_repeated(model, base, rows, prompts, completions, features, head)
            return _unpack_repeated(rows, prompts, head.result, chosen, per_head)
        layout = PackedLayout(groups, look_bias, biased)
        row = PackedPass(layout, KERNELS[kernel](layout, device), capture)
        _run_packed(model, base, row, prompts, completions, features, head)
        return _unpack(row, prompts, head.result, query, chosen, per_head)


def _run_packed(
    model: nn.Module,
    base: Any,
    row: PackedPass,
    prompts: Sequence[Prompt],
    completions: Sequence[Sequence[Tensor]],
    features: Sequence[dict[str, Any]],
    head: _LogProbHead,
) -> None:
    device = prompts[0].input_ids.device
    ids = _pack_ids(prompts, completions)[None]
    head.places = 0, torch.tensor(row.layout.predictors(), device=device)
    starts = accumulate((group.total for group in row.layout.groups), initial=0)
    places = [start + prompt.places for start, prompt in zip(starts, prompts, strict=False)]
    model(
        position_ids=_pack_positions(prompts, row.layout.groups),
        # A prepared 4-D mask is passed through as it is; the packed attention builds its own from the layout.
        attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device),
        use_cache=False,
        packed=Carried(row),
        **family(base).per_token(base, ids, row.layout.in_prompt(device)),
        **token_inputs(model, ids, places, features),
    )


def _run_repeated(
    model: nn.Module,
    base: Any,
    rows: RepeatedPass,
    prompts: Sequence[Prompt],
    completions: Sequence[Sequence[Tensor]],
    features: Sequence[dict[str, Any]],
    head: _LogProbHead,
) -> None:
    ids, mask = rows.ids([p.input_ids for p in prompts], completions)
    head.places = rows.predictors(ids.device)
    every = [
        one for one, group in zip(zip(prompts, features, strict=True), rows.groups, strict=True) for _ in group.lengths
    ]
    places = [i * ids.shape[1] + prompt.places for i, (prompt, _) in enumerate(every)]
    model(
        attention_mask=mask.long(),
        position_ids=rows.positions([p.position_ids for p in prompts], ids.shape[1]),
        use_cache=False,
        packed=Carried(rows),
        **family(base).per_token(base, ids, rows.in_prompt(ids)),
        **token_inputs(model, ids, places, [found for _, found in every]),
    )


def forward_group(
    model: nn.Module,
    prompt_inputs: Mapping[str, Any],
    completions: Sequence[Tensor],
    *,
    attention_layers: Sequence[int] = (-1,),
    attention_heads: Heads = None,
    attention_query: Query = "token",
    temperature: float = 1.0,
    features: dict[str, Any] | None = None,
    look_bias: Tensor | None = None,
    kernel: Kernel = "sdpa",
    repeated: bool | None = None,
) -> GroupOutput:
    """Compute log-probabilities and policy rows of G completions of one prompt, in one packed forward pass.

    Args:
        prompt_inputs: the processor's dict for ONE prompt. completions: G 1-D LongTensors.
        features: the prompt's vision features, if known (`vision_features`); a frozen tower need run only once.
        look_bias: `[G, P]`, see `forward_groups`, as are the others.

    Returns:
        `GroupOutput`: `logps, mask [G, R]`, `attention [G, R, P+R]` whose rows sum to 1.
    """
    prompt = prepare_prompt(model, prompt_inputs, features)
    bias = None if look_bias is None else [look_bias]
    outputs = forward_groups(
        model,
        [prompt],
        [completions],
        layers=attention_layers,
        heads=attention_heads,
        query=attention_query,
        temperature=temperature,
        look_bias=bias,
        kernel=kernel,
        repeated=repeated,
    )
    return outputs[0]


def _check_completions(model: Any, groups: tuple[GroupLayout, ...], targets: Tensor) -> None:
    if any(length == 0 for group in groups for length in group.lengths):
        raise ValueError("a completion is empty; a sampled completion holds at least its end-of-sequence token")
    visual = visual_token_ids(model)
    if visual and bool(torch.isin(targets, torch.tensor(visual, device=targets.device)).any()):
        raise ValueError(
            f"a completion holds a visual placeholder token ({visual}): the model would expect image features for it. "
            "Ban these tokens when sampling, as ral's own samplers do."
        )


def _split(targets: Tensor, completions: Sequence[Sequence[Tensor]]) -> list[list[Tensor]]:
    """The completions as pieces of `targets`, which went to the device in one piece."""
    pieces = iter(targets.split([len(y) for ys in completions for y in ys]))
    return [[next(pieces) for _ in ys] for ys in completions]


def _pack_ids(prompts: Sequence[Prompt], completions: Sequence[Sequence[Tensor]]) -> Tensor:
    return torch.cat([piece for p, ys in zip(prompts, completions, strict=True) for piece in (p.input_ids, *ys)])


def _pack_positions(prompts: Sequence[Prompt], groups: Sequence[GroupLayout]) -> Tensor:
    """`[3, 1, T]` or `[1, T]`: every completion continues from its prompt's last position."""
    pieces = []
    for prompt, group in zip(prompts, groups, strict=True):
        own = torch.cat([torch.arange(length) for length in group.lengths]).to(prompt.position_ids.device)
        own = own + prompt.next_position
        pieces += [prompt.position_ids, own.expand(*prompt.position_ids.shape[:-1], -1)]
    return torch.cat(pieces, dim=-1).unsqueeze(-2)


class _LogProbHead:
    """Computes log-probabilities inside the model's forward pass, from the input of the output embedding.

    A forward pre-hook on the output embedding takes the hidden states, applies the head to them in chunks that are
    recomputed in the backward pass, and leaves an empty tensor for the model's own call. So `model(...)` is called as a
    whole, which DDP, FSDP, ZeRO-3 and PEFT need, and the full logits never exist. What the model does to its logits behind
    the embedding (a cap, a factor) is the family's `final`.

    What comes of it leaves the embedding as its output, between its first and its last hook, and is taken there. So what
    gathers weights by hooks (ZeRO-3) sees the gradient come in by the output, and has the weights when it does.

    `places`: rows and columns of the hidden states `[B, T, d]` that predict the targets.
    """

    def __init__(self, model: Any, targets: Tensor, temperature: float, statistics: TokenStatistics | None):
        self.module, self.final = model.get_output_embeddings(), family(model).final(model.config)
        self.targets, self.temperature, self.statistics = targets, temperature, statistics
        self.places: tuple[Any, Tensor]
        self.result: dict[str, Tensor] = {}

    @contextmanager
    def attached(self) -> Iterator[None]:
        hooks = (
            self.module.register_forward_pre_hook(self._compute),
            self.module.register_forward_hook(self._give, prepend=True),
            self.module.register_forward_hook(self._take),
        )
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @torch.compiler.disable  # as `packed_attention`: another hook, and another number of chunks, on every call
    def _compute(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden = args[0][self.places]
        vocabulary = pretrained_vocabulary(module)
        step = max(1, LOGIT_CHUNK_ELEMENTS // vocabulary)
        recompute = torch.is_grad_enabled() and len(hidden) > step
        parts = []
        for start in range(0, len(hidden), step):
            rows = slice(start, start + step)
            if recompute:
                parts.append(checkpoint(self._statistics, hidden[rows], rows, use_reentrant=False))
            else:
                parts.append(self._statistics(hidden[rows], rows))
        self.result = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        return (args[0][:, :0], *args[1:])

    @torch.compiler.disable
    def _give(self, module: nn.Module, args: tuple[Tensor, ...], empty: Tensor) -> tuple[Tensor, ...]:
        return empty, *self.result.values()

    @torch.compiler.disable
    def _take(self, module: nn.Module, args: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> Tensor:
        empty, *values = outputs
        self.result = dict(zip(self.result, values, strict=True))
        return empty

    def _statistics(self, hidden: Tensor, rows: slice) -> dict[str, Tensor]:
        # `forward`, not the call: the hook that brought us here must not run again.
        logits = self.module.forward(hidden)
        logits = logits if self.final is None else self.final(logits)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / self.temperature
        log_norm = logits.logsumexp(dim=-1)
        chosen = logits.gather(-1, self.targets[rows, None])[:, 0]
        with torch.no_grad():
            entropy = log_norm - ((logits - log_norm[:, None]).exp() * logits).sum(dim=-1)
        result = {"logps": chosen - log_norm, "entropy": entropy}
        return result if self.statistics is None else result | self.statistics(logits, hidden, rows)


def pretrained_vocabulary(head: Any) -> int:
    """Rows of an output embedding, also when an adapter wraps it."""
    return int(head.weight.shape[0])


def _unpack(
    row: PackedPass,
    prompts: Sequence[Prompt],
    tokens: dict[str, Tensor],
    query: Query,
    chosen: Mapping[int, Sequence[int]],
    per_head: bool,
) -> list[GroupOutput]:
    """Row order → padded `[G, R]` per group, and the policy rows of every captured layer."""
    outputs = []
    row_start = token_start = 0
    for i, (prompt, group) in enumerate(zip(prompts, row.layout.groups, strict=True)):
        device = prompt.input_ids.device
        index, mask = group.grid(device)
        padded = {
            name: torch.where(mask, values[token_start : token_start + group.completion_total][index], 0.0)
            for name, values in tokens.items()
        }
        captured = {layer: _captured(row, layer, i, row_start, index, query) for layer in row.capture_layers}
        found = {
            layer: attention_rows(*selected(*qk, chosen.get(layer)), mask, query=query, **how)
            for layer, (qk, how) in captured.items()
        }
        rows, own = ({layer: pair[j] for layer, pair in found.items()} for j in (0, 1))
        heads = {layer: _per_head(qk, query, how) for layer, (qk, how) in captured.items()} if per_head else {}
        extra = {k: v for k, v in padded.items() if k not in ("logps", "entropy")}
        tokens_of = padded["logps"], padded["entropy"], mask
        outputs.append(GroupOutput(*tokens_of, rows, own, prompt.visual, extra, heads, prompt.interior))
        row_start += group.total
        token_start += group.completion_total
    return outputs


def _unpack_repeated(
    rows: RepeatedPass,
    prompts: Sequence[Prompt],
    tokens: dict[str, Tensor],
    chosen: Mapping[int, Sequence[int]],
    per_head: bool,
) -> list[GroupOutput]:
    """As `_unpack`, but from the attention of the model's own eager layers."""
    outputs, start = [], 0
    for i, (prompt, group) in enumerate(zip(prompts, rows.groups, strict=True)):
        index, mask = group.grid(prompt.input_ids.device)
        part = slice(start, start + group.completion_total)
        padded = {name: torch.where(mask, values[part][index], 0.0) for name, values in tokens.items()}
        heads = {layer: rows.captured[layer][i] for layer in rows.capture_layers}
        alpha = {
            layer: (weights[list(chosen[layer])] if layer in chosen else weights).mean(dim=0)
            for layer, weights in heads.items()
        }
        found = {layer: policy_rows(mean, mask, group.prompt_length) for layer, mean in alpha.items()}
        own = {
            layer: mean[..., group.prompt_length :].diagonal(dim1=1, dim2=2).detach() for layer, mean in alpha.items()
        }
        extra = {k: v for k, v in padded.items() if k not in ("logps", "entropy")}
        kept = heads if per_head else {}
        tokens_of = padded["logps"], padded["entropy"], mask
        outputs.append(GroupOutput(*tokens_of, found, own, prompt.visual, extra, kept, prompt.interior))
        start += group.completion_total
    return outputs


def _captured(
    row: PackedPass, layer: int, group_index: int, row_start: int, index: Tensor, query: Query
) -> tuple[tuple[Tensor, Tensor, Tensor], dict[str, Any]]:
    """Arguments of `head_mean_attention` for one group in one captured layer: query, keys, scaling and bias."""
    group = row.layout.groups[group_index]
    q, k, scaling, sight = row.captured[layer]
    prompt_end = row_start + group.prompt_length
    own = index + prompt_end
    before = torch.cat([torch.full_like(own[:, :1], prompt_end - 1), own[:, :-1]], dim=1)
    at = own if query == "token" else before
    bias = row.layout.bias(group_index, layer)
    if bias is not None:
        bias = bias.to(q.device, torch.promote_types(q.dtype, torch.float32))[:, None].expand(-1, index.shape[1], -1)
        if query == "predictor":  # the first row's query is a prompt token, which is never biased
            bias = torch.cat([torch.zeros_like(bias[:, :1]), bias[:, 1:]], dim=1)
    return (q[:, at], k[:, row_start:prompt_end], k[:, own]), {"scaling": scaling, "bias": bias, "sight": sight}


def _per_head(qk: tuple[Tensor, Tensor, Tensor], query: Query, how: dict[str, Any]) -> Tensor:
    """`[H, G, R, P+R]`: each head is a mean over one, with the keys of its group of heads."""
    q, *keys = qk
    shared = len(q) // len(keys[0])
    return torch.stack(
        [
            head_mean_attention(q[h : h + 1], *(k[h // shared : h // shared + 1] for k in keys), query=query, **how)
            for h in range(len(q))
        ]
    )
