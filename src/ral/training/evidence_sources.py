"""Where the anchor `evidence` takes its evidence from, by the name that `evidence_from` gives.

A source is a function of one micro-batch of scored groups. To add one, write the function, put it into `SOURCES`, and its name into
`ral.objective.evidence_settings.EvidenceSource`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ral.config import RALConfig
from ral.data.answer_boxes import in_pixels, require_stated_spaces, stated_space
from ral.data.record import Record
from ral.data.record_errors import name_in_errors
from ral.data.spans import token_at
from ral.data.stated_boxes import stated_boxes
from ral.objective.needs import Needs
from ral.rollouts.group import ScoredGroup, Targets
from ral.training.evidence import places_of, require_evidence, require_media, trained_rows, with_control
from ral.training.evidence_by_masking import from_masking

#: What is known of the evidence of each group, with settings, processor and policy.
Source = Callable[[RALConfig, Any, nn.Module, Sequence[ScoredGroup]], list[Targets]]


def require_sources(needs: Needs, args: RALConfig, processor: Any, records: Sequence[Record]) -> None:
    """Raise DataError unless some record has what the run learns from, and ConfigError unless boxes that it states have a scale.

    What it learns from are places of evidence in the records, images, or videos; see `Needs`.
    """
    if needs.evidence:
        require_evidence(records)
    if needs.media:
        require_media(records, needs.media, args)
    if needs.stated_boxes:
        require_stated_spaces(records, processor, args.evidence_box_space)


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
    (`ral.data.answer_boxes`); what lies outside is cut off. What cannot be a box, and one on what the processor crops, is left out
    and counted.

    Raises ConfigError where nothing says in what the model writes boxes.
    """
    found = []
    for group in groups:
        with name_in_errors(group.record):
            found.append(_stated(args, processor, group))
    return found


def _stated(args: RALConfig, processor: Any, group: ScoredGroup) -> Targets:
    rows, record = trained_rows(group, args, processor), group.record
    if not record.has_media:
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
            boxes = [] if box is None else [replace(box, medium=picture) for picture in places.first]
            [shown] = with_control([places.with_boxes(boxes)], [record], args.evidence_control)
            mask = shown.mask()
            kept.append(mask is not None)
            if mask is None:
                continue
            later = slice(token_at(tokenizer, ids, stated.end) + 1, len(ids))
            evidence[g, later], said[g, later] = mask.to(args.device), True
            if density is not None:
                smooth = shown.density(args)
                assert smooth is not None
                density[g, later] = smooth.to(args.device)
    left_out = torch.tensor([float(kept.count(False)), float(len(kept))])
    if not bool(said.any()):
        return Targets(answer=rows, boxes_left_out=left_out)
    return Targets(evidence=evidence, answer=rows & said, density=density, boxes_left_out=left_out)


SOURCES: dict[str, Source] = {"data": from_data, "completion": from_completion, "masking": from_masking}
