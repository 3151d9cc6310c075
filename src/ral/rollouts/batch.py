"""The batch that a rollout decodes: completions that entered together share a `Part`, and a step advances all parts."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from ral.attention import Prompt, vision_features
from ral.attention.carried import Carried
from ral.attention.models import family, pretrained, token_inputs, why_repeated
from ral.attention.prefix import ROOM, Prefixes, Record, SharedPrefix
from ral.attention.repeated import CachedRows

#: Rows leave the batch once this share of it can; dropping them copies the others' keys and values.
DROP_SHARE = 0.25
#: Devices on which the completions' memory is allocated before it is used, so that every step has the same shapes.
ALLOCATED_ON = {"cuda"}


@dataclass(frozen=True, eq=False)
class Entry:
    """A prompt whose completions are wanted.

    Attributes:
        number: by which the caller knows it. generator: of its random numbers; None: torch's global one.
        look_bias: `[G, P]` added to the attention logits of its completions, or None.
    """

    number: int
    prompt: Prompt
    generator: torch.Generator | None = None
    look_bias: Tensor | None = None

    @property
    def length(self) -> int:
        return len(self.prompt.input_ids)


@dataclass
class Part:
    """Completions that entered the batch together: what the device holds of them, and what the host knows.

    Attributes:
        entries: their prompts. written: for each of these the tokens of its completions.
        axes: of positions, none, or the three of M-RoPE.
        rows: for each prompt that is still decoded, its number among `entries` and the numbers of its completions in the batch.
        start: `[N]` positions of the first tokens. uniform: `[R, N]` random numbers. tokens: `[N, R]` drawn so far.
        logits: `[N, V]` of the next tokens. length: tokens drawn of each row. newest: `[N]` the last of them.
    """

    entries: Sequence[Entry]
    prefix: SharedPrefix | CachedRows
    axes: Sequence[int]
    start: Tensor
    uniform: Tensor | None
    tokens: Tensor
    logits: Tensor
    length: int = 0
    newest: Tensor = field(init=False)

    def __post_init__(self) -> None:
        width = self.prefix.width
        self.written: list[list[list[int]]] = [[[] for _ in range(width)] for _ in self.entries]
        self.running = [[True] * width for _ in self.entries]
        self.rows = [(b, list(range(width))) for b in range(len(self.entries))]

    @property
    def size(self) -> int:
        """N."""
        return len(self.start)

    def asked(self) -> Tensor:
        """`[N, P]` the prompt of every row; a shorter one is filled up with its last token."""
        prompts = [self.entries[b].prompt.input_ids for b, rows in self.rows for _ in rows]
        longest = max(map(len, prompts))
        return torch.stack([torch.cat([ids, ids[-1:].expand(longest - len(ids))]) for ids in prompts])

    def write(self, newest: Sequence[int], ends: frozenset[int], longest: int) -> Iterator[int]:
        """Take the newest tokens over to the host; yields the numbers of the prompts whose last completion ended here."""
        for (b, rows), tokens in zip(self.rows, _parts_of(newest, self.prefix.width), strict=True):
            running, written = self.running[b], self.written[b]
            before = any(running)
            for row, token in zip(rows, tokens, strict=True):
                if running[row]:
                    written[row].append(token)
                    running[row] = token not in ends and len(written[row]) < longest
            if before and not any(running):
                yield b

    def keep_running(self) -> bool:
        """Drop rows once enough of them can go; false where none runs any more.

        Every prompt keeps as many rows, so ended ones stay where another prompt has more that run.
        """
        open_rows = [(b, rows) for b, rows in self.rows if any(self.running[b])]
        width = max((sum(self.running[b][row] for row in rows) for b, rows in open_rows), default=0)
        if width == 0:
            return False
        if self.size - len(open_rows) * width >= DROP_SHARE * self.size:
            self._keep(width)
        return True

    def _keep(self, width: int) -> None:
        prompts, places, kept = [], [], []
        for i, (b, rows) in enumerate(self.rows):
            if any(self.running[b]):
                best = sorted(range(len(rows)), key=lambda j: not self.running[b][rows[j]])[:width]
                prompts.append(i)
                places += [i * len(rows) + j for j in best]
                kept.append((b, [rows[j] for j in best]))
        self.rows = kept
        device = self.start.device
        at = torch.tensor(places, device=device)
        lengths = {self.entries[b].length for b, _ in kept}
        padded = lengths != {max(entry.length for entry in self.entries)}
        self.prefix = self.prefix.of(torch.tensor(prompts, device=device), at, padded)
        self.start, self.newest, self.tokens = self.start[at], self.newest[at], self.tokens[at]
        self.uniform = None if self.uniform is None else self.uniform[:, at]

    def make_room(self, longest: int) -> None:
        """Allocate the memory of the next token, twice what there is and `longest` at most."""
        if isinstance(self.prefix, SharedPrefix) and self.prefix.room is not None:
            there = len(self.prefix.room.empty)
            if self.length > there:
                self.prefix = self.prefix.with_room(min(max(2 * there, ROOM), longest))


def _parts_of(values: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    return (values[i : i + size] for i in range(0, len(values), size))


def prefill(
    model: nn.Module,
    entries: Sequence[Entry],
    num_generations: int,
    longest: int,
    bias_layers: tuple[int, ...] | None,
    random: bool,
) -> Part:
    """One left-padded pass over the prompts of `entries`: what their completions start from."""
    prompts = [entry.prompt for entry in entries]
    base, device = pretrained(model), prompts[0].input_ids.device
    most = max(entry.length for entry in entries)

    def left_padded(values: Tensor) -> Tensor:
        return nn.functional.pad(values, (most - values.shape[-1], 0))

    features = [p.features if p.features is not None else vision_features(model, p.inputs) for p in prompts]
    mask = torch.stack([left_padded(torch.ones_like(p.input_ids)) for p in prompts])
    # The padding token's value is irrelevant; 0 is never a visual placeholder.
    ids = torch.stack([left_padded(p.input_ids) for p in prompts])
    record, shared = Record(), why_repeated(model) is None
    how: dict[str, Any] = {"use_cache": False, "record": Carried(record)} if shared else {"use_cache": True}
    places = [(i + 1) * most - entry.length + entry.prompt.places for i, entry in enumerate(entries)]
    outputs = model(
        attention_mask=mask,
        position_ids=torch.stack([left_padded(p.position_ids) for p in prompts], dim=-2),
        **({"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(base.forward).parameters else {}),
        **how,
        **family(base).per_token(base, ids, torch.ones_like(mask, dtype=torch.bool)),
        **token_inputs(model, ids, places, features),
    )
    own = torch.arange(len(prompts), device=device).repeat_interleave(num_generations)
    looks = [left_padded(entry.look_bias.to(device)) for entry in entries if entry.look_bias is not None]
    bias = torch.cat(looks) if looks else None
    prefix: SharedPrefix | CachedRows
    if shared:
        states = {i: state.each(lambda held: held[own], recording=False) for i, state in record.states.items()}
        padded = any(entry.length < most for entry in entries)
        prefix = SharedPrefix(
            record.layers, mask.bool(), num_generations, bias, bias_layers, states=states, padded=padded
        )
        allocated = device.type in ALLOCATED_ON and not states
        prefix = prefix.with_room(min(ROOM, longest)) if allocated else prefix.laid_out()
    else:
        outputs.past_key_values.reorder_cache(own)
        prefix = CachedRows(outputs.past_key_values, mask.bool()[own], num_generations, bias, bias_layers)
    start = torch.tensor([p.next_position for p in prompts], device=device)
    start, logits = (x.repeat_interleave(num_generations, dim=0) for x in (start, outputs.logits[:, -1]))
    tokens = torch.zeros(len(own), longest, dtype=torch.long, device=device)
    uniform = None
    if random:
        drawn = [
            torch.rand(longest, num_generations, generator=entry.generator, dtype=torch.float64) for entry in entries
        ]
        uniform = torch.cat(drawn, dim=1).to(device)
    return Part(entries, prefix, prompts[0].position_ids.shape[:-1], start, uniform, tokens, logits)


def advance(model: nn.Module, batch: Sequence[Part]) -> None:
    """The logits of the next tokens, by one pass over the newest ones of the whole batch.

    Parts that hold a copy of the prompt for each completion take a pass each: their caches are apart.
    """
    if len(batch) > 1 and any(isinstance(part.prefix, CachedRows) for part in batch):
        for part in batch:
            advance(model, [part])
        return
    newest = torch.cat([part.newest for part in batch])
    logits = next_logits(model, batch, newest)
    for part, own in zip(batch, logits.split([part.size for part in batch]), strict=True):
        part.logits = own


def next_logits(model: nn.Module, batch: Sequence[Part], newest: Tensor) -> Tensor:
    """`[ΣN, V]` behind the newest tokens `[ΣN]`. With allocated room it is one function of `newest` for all steps."""
    for part in batch:
        if isinstance(part.prefix, SharedPrefix) and part.prefix.room is not None:
            part.prefix.room.step()
    first = batch[0].prefix
    prefix = first if isinstance(first, CachedRows) else Prefixes(part.prefix for part in batch)  # type: ignore[misc]
    positions = torch.cat([part.start + _place(part) for part in batch])
    outputs = model(
        input_ids=newest[:, None],
        position_ids=positions[:, None].expand(*batch[0].axes, -1, 1),
        **prefix.arguments(),
    )
    return outputs.logits[:, -1]  # type: ignore[no-any-return]


def _place(part: Part) -> Tensor | int:
    """Which of its tokens the newest one is, counted from 0."""
    room = part.prefix.room if isinstance(part.prefix, SharedPrefix) else None
    return part.length - 1 if room is None else room.place


def all_newest(batch: Sequence[Part]) -> list[list[int]]:
    """The newest tokens of every part, on the host: the one value of a step that it waits for."""
    tokens = iter(torch.cat([part.newest for part in batch]).tolist())
    return [list(islice(tokens, part.size)) for part in batch]
