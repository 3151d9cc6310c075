"""Evidence without labels: the blocks of a picture whose masking makes the answer less likely."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ral.attention import Prompt, forward_groups
from ral.attention.models import make_capturable, why_repeated
from ral.config import RALConfig
from ral.evaluate.looking import prompt_and_rest
from ral.families.tiles import Tile
from ral.rollouts.group import ScoredGroup, Targets
from ral.training.evidence import answer_tokens, trained_rows

#: Least fall of an answer's log-probability, in nats, for which a block of an image counts as needed.
SMALLEST_FALL = 0.1


@dataclass(frozen=True)
class Trial:
    """One completion behind a prompt whose blocks are hidden in turn.

    Attributes:
        prompt: without its last token, which opens `tokens` `[1 + R]`, followed by the completion.
        bias: `[1 + blocks, P − 1]`, −inf on what is hidden; nothing in the first row. answer: `[1 + R]` bool.
        copies: how many copies of `tokens` one pass may hold.
    """

    prompt: Prompt
    tokens: Tensor
    bias: Tensor
    answer: Tensor
    copies: int


def from_masking(args: RALConfig, processor: Any, policy: nn.Module, groups: Sequence[ScoredGroup]) -> list[Targets]:
    """The visual tokens that the answer needs, by the fall of its log-probability when they are masked, in passes of the policy.

    The best rewarded completion with a readable answer stands for its group. Every image and video is cut into blocks
    (`evidence_blocks`), and each block in turn is hidden from the completion and the prompt's last token. A block is worth its
    fall, as a share of the largest, and nothing where the answer becomes likelier. Evidence is unknown where no block matters
    (`SMALLEST_FALL`), without visual tokens, and without an answer. No pass holds more tokens than the one that trains.
    """
    repeated = why_repeated(make_capturable(policy)) is not None
    trials = [_trial(args, processor, group, repeated) for group in groups]
    found = []
    for group, trial, logps in zip(groups, trials, answer_logps(policy, trials, args), strict=True):
        rows = trained_rows(group, args, processor)
        fall = (logps[:1] - logps[1:]).clamp(min=0)
        if not len(fall) or float(fall.max()) < SMALLEST_FALL:
            found.append(Targets(answer=rows))
            continue
        worth = (fall / fall.max()).float() @ trial.bias[1:].isinf().float()
        evidence = worth.new_zeros(len(group.prompt.input_ids))
        evidence[: len(worth)] = worth
        found.append(Targets(evidence=evidence, answer=rows))
    return found


@torch.no_grad()
def answer_logps(policy: nn.Module, trials: Sequence[Trial], args: RALConfig) -> list[Tensor]:
    """`[1 + blocks]` float64 of every trial: the answer's log-probability with nothing and with each block hidden.

    A pass takes the next `copies` rows of every trial that has some left. A trial without blocks has nothing to compare and takes
    none; its result is empty.
    """
    parts = [trial.bias.split(trial.copies) if len(trial.bias) > 1 else () for trial in trials]
    found: list[list[Tensor]] = [[] for _ in trials]
    for number in range(max(map(len, parts), default=0)):
        taken = [(i, trials[i], own[number]) for i, own in enumerate(parts) if number < len(own)]
        outputs = forward_groups(
            policy,
            [trial.prompt for _, trial, _ in taken],
            [[trial.tokens] * len(bias) for _, trial, bias in taken],
            layers=(),
            temperature=args.temperature,
            look_bias=[bias for *_, bias in taken],
            kernel=args.attention_kernel,
        )
        for (i, trial, _), output in zip(taken, outputs, strict=True):
            found[i].append((output.logps.double() * trial.answer).sum(dim=1))
    return [torch.cat([trial.bias.new_zeros(0).double(), *own]) for trial, own in zip(trials, found, strict=True)]


def _trial(args: RALConfig, processor: Any, group: ScoredGroup, repeated: bool) -> Trial:
    answers = answer_tokens(group.texts, group.ids, processor, args.scorer, args.think)
    best = int(torch.where(answers.any(dim=1), group.reward.cpu(), float("-inf")).argmax())
    prompt, last = prompt_and_rest(group.prompt, len(group.prompt.input_ids) - 1)
    ids = group.ids[best].to(last.device)
    answer = torch.nn.functional.pad(answers[best, : len(ids)], (1, 0)).to(last.device)
    hidden = blocks(group.prompt.tiles, args.evidence_blocks) if bool(answer.any()) else []
    bias = torch.zeros(1 + len(hidden), len(prompt.input_ids), device=last.device)
    for row, block in zip(bias[1:], hidden, strict=True):
        row[group.prompt.places[torch.from_numpy(block).to(last.device)]] = float("-inf")
    return Trial(prompt, torch.cat([last, ids]), bias, answer, _copies(group, len(ids), repeated))


def _copies(group: ScoredGroup, length: int, repeated: bool) -> int:
    """How many copies of a completion of this length fit into the tokens of the group's own pass.

    The prompt's last token stands before each copy, not in the prompt. Where the model needs the prompt `repeated` before each
    completion, these are rows as long as the longest, and as many copies fit as there are completions.
    """
    return len(group.ids) if repeated else (1 + int(group.lengths.sum())) // (1 + length)


def blocks(tiles: Sequence[Tile], side: int) -> list[NDArray[np.bool_]]:
    """Masks `[N]` that share out the visual tokens: `side` × `side` blocks of every medium, by the centres of tokens.

    A block of a video is one place in all its pictures. Tokens that show nothing (newlines, padding) are in no block; a token at
    the edge whose centre is beside the picture is in the block next to it.
    """
    numbers = []
    for tile in tiles:
        y, x = ((centres * side).astype(int).clip(0, side - 1) for centres in tile.centres())
        medium = tile.picture if tile.medium is None else tile.medium
        block = np.where(tile.shows(), (medium * side + y[:, None]) * side + x, -1)
        numbers.append(tile.flat(1 + block) - 1)
    number = np.concatenate(numbers) if numbers else np.zeros(0, dtype=int)
    return [number == block for block in np.unique(number[number >= 0])]
