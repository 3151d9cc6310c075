"""Where the anchor `evidence` takes its evidence from, by the name that `evidence_from` gives.

A source is a function of one micro-batch of scored groups. To add one, write the function, put it into `SOURCES`, and its name into
`ral.objective.evidence_settings.EvidenceSource`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ral.attention import Prompt, forward_groups
from ral.config import RALConfig
from ral.data.answer_boxes import in_pixels, require_stated_spaces, stated_space
from ral.data.record import Record
from ral.data.record_errors import name_in_errors
from ral.data.spans import token_at
from ral.data.stated_boxes import stated_boxes
from ral.evaluate.looking import prompt_and_rest
from ral.families.tiles import Tile
from ral.objective.needs import Needs
from ral.rollouts.group import ScoredGroup, Targets
from ral.training.evidence import answer_tokens, places_of, require_evidence, with_control

#: Least fall of an answer's log-probability, in nats, for which a block of an image counts as needed.
SMALLEST_FALL = 0.1

#: What is known of the evidence of each group, with settings, processor and policy.
Source = Callable[[RALConfig, Any, nn.Module, Sequence[ScoredGroup]], list[Targets]]


def require_sources(needs: Needs, args: RALConfig, processor: Any, records: Sequence[Record]) -> None:
    """Raise DataError unless some record says where its evidence is, and ConfigError unless boxes have a scale; if the run needs it."""
    if needs.evidence:
        require_evidence(records)
    if needs.stated_boxes:
        require_stated_spaces(records, processor, args.evidence_box_space)


def trained_rows(group: ScoredGroup, args: RALConfig, processor: Any) -> Tensor:
    """`[G, R]` bool, the rows that look at the evidence: those that `evidence_rows` names, of rewarded completions."""
    mask = group.mask
    if args.evidence_rows == "answer":
        rows = answer_tokens(group.texts, group.ids, processor, args.scorer, args.think)
    elif args.evidence_rows == "first":
        rows = mask & (torch.arange(mask.shape[1]) < args.evidence_first)
    else:
        rows = mask
    if args.evidence_reward is not None:
        rows = rows & (group.reward.cpu() >= args.evidence_reward)[:, None]
    return rows.to(args.device)


def from_data(args: RALConfig, processor: Any, policy: nn.Module, groups: Sequence[ScoredGroup]) -> list[Targets]:
    """The boxes or spans of the records; no pass of any model."""
    grounded = [group for group in groups if group.record.grounded]
    places = []
    for group in grounded:
        with name_in_errors(group.record):
            places.append(places_of(group.record, group.prompt, processor, args.num_frames, args.fps))
    records = [group.record for group in grounded]
    known = iter(with_control(places, records, args.evidence_control))
    found = []
    for group in groups:
        rows = trained_rows(group, args, processor)
        if not group.record.grounded:
            found.append(Targets(answer=rows))
            continue
        one = next(known)
        with name_in_errors(group.record):
            density = one.density(args) if args.evidence_target == "mixture" else None
            found.append(Targets(evidence=one.mask(), answer=rows, density=density))
    return found


def from_completion(args: RALConfig, processor: Any, policy: nn.Module, groups: Sequence[ScoredGroup]) -> list[Targets]:
    """The boxes that each completion states: its later rows should look where the last of them is; no pass of any model.

    Rows before the first box are not trained. Boxes are of the first image or video, in what the model writes boxes in
    (`ral.data.answer_boxes`); what lies outside is cut off, and what cannot be a box is left out and counted.

    Raises ConfigError where nothing says in what the model writes boxes.
    """
    found = []
    for group in groups:
        with name_in_errors(group.record):
            found.append(_stated(args, processor, group))
    return found


def _stated(args: RALConfig, processor: Any, group: ScoredGroup) -> Targets:
    rows, record = trained_rows(group, args, processor), group.record
    if not (record.images or record.videos):
        return Targets(answer=rows)
    places = places_of(record, group.prompt, processor, args.num_frames, args.fps)
    space = stated_space(record, processor, args.evidence_box_space)
    tokenizer, length = getattr(processor, "tokenizer", processor), len(group.prompt.input_ids)
    evidence = torch.zeros(*rows.shape, length, dtype=torch.bool, device=args.device)
    mixture = args.evidence_target == "mixture"
    density = torch.zeros(evidence.shape, device=args.device) if mixture else None
    said, kept = torch.zeros_like(rows), list[bool]()
    for g, ids in enumerate(group.ids):
        for stated in stated_boxes(tokenizer.decode(ids, skip_special_tokens=False)):
            box = in_pixels(stated, space, record, processor, group.prompt.inputs)
            kept.append(box is not None)
            if box is None:
                continue
            later = slice(token_at(tokenizer, ids, stated.end) + 1, len(ids))
            boxes = tuple(replace(box, medium=picture) for picture in places.first)
            [shown] = with_control([replace(places, boxes=boxes)], [record], args.evidence_control)
            mask = shown.mask()
            assert mask is not None
            evidence[g, later], said[g, later] = mask.to(args.device), True
            if density is not None:
                smooth = shown.density(args)
                assert smooth is not None
                density[g, later] = smooth.to(args.device)
    left_out = torch.tensor([float(kept.count(False)), float(len(kept))])
    if not bool(said.any()):
        return Targets(answer=rows, boxes_left_out=left_out)
    return Targets(evidence=evidence, answer=rows & said, density=density, boxes_left_out=left_out)


def from_masking(args: RALConfig, processor: Any, policy: nn.Module, groups: Sequence[ScoredGroup]) -> list[Targets]:
    """The visual tokens that the answer needs, by the fall of its log-probability when they are masked; one pass of the policy.

    The best rewarded completion with a readable answer stands for its group. Every picture is cut into blocks
    (`evidence_blocks`), and each block in turn is hidden from the completion and the prompt's last token. A block is worth its
    fall, as a share of the largest, and nothing where the answer becomes likelier. Evidence is unknown where no block matters
    (`SMALLEST_FALL`), without visual tokens, and without an answer.
    """
    trials = [_trial(args, processor, group) for group in groups]
    first = [trial.prompt for trial in trials]
    written = [[trial.tokens] * len(trial.bias) for trial in trials]
    outputs = forward_groups(
        policy,
        first,
        written,
        layers=(),
        temperature=args.temperature,
        look_bias=[trial.bias for trial in trials],
        kernel=args.attention_kernel,
    )
    found = []
    for group, trial, output in zip(groups, trials, outputs, strict=True):
        rows = trained_rows(group, args, processor)
        logps = (output.logps.double() * trial.answer).sum(dim=1)
        fall = (logps[0] - logps[1:]).clamp(min=0)
        if not len(fall) or float(fall.max()) < SMALLEST_FALL:
            found.append(Targets(answer=rows))
            continue
        worth = (fall / fall.max()).float() @ trial.bias[1:].isinf().float()
        evidence = worth.new_zeros(len(group.prompt.input_ids))
        evidence[: len(worth)] = worth
        found.append(Targets(evidence=evidence, answer=rows))
    return found


@dataclass(frozen=True)
class Trial:
    """One completion behind a prompt whose blocks are hidden in turn.

    Attributes:
        prompt: without its last token, which opens `tokens` `[1 + R]`, followed by the completion.
        bias: `[1 + blocks, P − 1]`, −inf on what is hidden; nothing in the first row. answer: `[1 + R]` bool.
    """

    prompt: Prompt
    tokens: Tensor
    bias: Tensor
    answer: Tensor


def _trial(args: RALConfig, processor: Any, group: ScoredGroup) -> Trial:
    answers = answer_tokens(group.texts, group.ids, processor, args.scorer, args.think)
    best = int(torch.where(answers.any(dim=1), group.reward.cpu(), float("-inf")).argmax())
    prompt, last = prompt_and_rest(group.prompt, len(group.prompt.input_ids) - 1)
    ids = group.ids[best].to(last.device)
    answer = torch.nn.functional.pad(answers[best, : len(ids)], (1, 0)).to(last.device)
    hidden = _blocks(group.prompt.tiles, args.evidence_blocks) if bool(answer.any()) else []
    bias = torch.zeros(1 + len(hidden), len(prompt.input_ids), device=last.device)
    for row, block in zip(bias[1:], hidden, strict=True):
        row[group.prompt.places[torch.from_numpy(block).to(last.device)]] = float("-inf")
    return Trial(prompt, torch.cat([last, ids]), bias, answer)


def _blocks(tiles: Sequence[Tile], side: int) -> list[NDArray[np.bool_]]:
    """Masks `[N]` that share out the visual tokens: `side` × `side` blocks of every picture, by the centres of tokens."""
    numbers = []
    for tile in tiles:
        y, x = ((centres * side).astype(int) for centres in tile.centres())
        block = (tile.picture * side + y[:, None]) * side + x
        numbers.append(tile.flat(1 + block) - 1)  # a newline shows nothing and is in no block
    number = np.concatenate(numbers) if numbers else np.zeros(0, dtype=int)
    return [number == block for block in np.unique(number[number >= 0])]


SOURCES: dict[str, Source] = {"data": from_data, "completion": from_completion, "masking": from_masking}
