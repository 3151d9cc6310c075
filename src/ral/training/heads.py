"""Chooses a run's heads at its start: those that look best at the evidence, or at the picture, of some of its records.

The text is the same for all heads and runs: each record's own solution, in the format of an answer, behind its prompt. So a head
is chosen for where it looks, and not for what the start model happens to write.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ral.attention import Prompt, forward_groups, select_keys
from ral.attention.heads import TopHeads, head_count
from ral.attention.models import pretrained, resolve_layers
from ral.attention.rows import policy_rows
from ral.config import RALConfig
from ral.data.answer_boxes import as_asked
from ral.data.prompt import encode_completion
from ral.data.record import Record
from ral.data.record_errors import name_in_errors
from ral.data.spans import answer_span
from ral.errors import ConfigError, DataError, RunError, UsageError
from ral.models.gathering import gather_for_rollouts
from ral.rollouts.group import on_keys
from ral.rollouts.lock_step import lock_step
from ral.rollouts.sampling import evaluating
from ral.runs.chosen_heads import ChosenHeads, read_chosen_heads
from ral.training.evidence import evidence_tokens


class _Trains(Protocol):
    """The parts of `RALTrainer` that a measurement takes."""

    train_dataset: list[Record] | None
    accelerator: Accelerator
    processing_class: Any

    def prepare(self, record: Record) -> Prompt: ...
    def check(self, prompt: Prompt) -> None: ...


class MeasuredHeads(TrainerCallback):
    """Puts measured heads in the place of `attention_heads: {top: k, by: …}` before the first step.

    They are stored in the run folder. A resumed run reads them there: its model is not the start any more.
    """

    def __init__(self, trainer: _Trains):
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        if not isinstance(args, RALConfig) or not isinstance(args.attention_heads, dict):
            return
        folder = Path(str(args.output_dir))
        if state.global_step:
            if (found := read_chosen_heads(folder)) is None:
                raise RunError(
                    f"{folder}: the heads that the run chose at its start are not there; bring heads.json back to go on"
                )
        else:
            found = measure(self.trainer, model, TopHeads.of(args.attention_heads), args)
            if state.is_world_process_zero:
                found.write(folder)
        args.attention_heads = found.heads


def measure(trainer: _Trains, model: nn.Module, wanted: TopHeads, args: RALConfig) -> ChosenHeads:
    """The best heads of every layer in `args.attention_layers`, the same on all processes, which must all call this.

    Raises:
        ConfigError: more heads than there are. DataError: no record that says where to look.
    """
    base = pretrained(model)
    if wanted.top > (count := head_count(base)):
        raise ConfigError(f"attention_heads asks for the top {wanted.top} heads, but a layer of the model has {count}")
    gather_for_rollouts(trainer.accelerator, model, args.attention_layers)
    chosen = probe_records(trainer.train_dataset or (), wanted)
    layers = list(resolve_layers(base, args.attention_layers))
    total = torch.zeros(len(layers), count, dtype=torch.float64)
    looked = 0
    trainer.check(trainer.prepare(chosen[0]))
    with evaluating(model), lock_step(trainer.accelerator, model):
        for record in chosen[args.process_index :: args.world_size]:
            scores = head_scores(model, trainer.processing_class, record, trainer.prepare(record), wanted, args)
            if scores is not None:
                total, looked = total + scores.cpu(), looked + 1
    sums = torch.cat([total.flatten(), torch.tensor([looked], dtype=torch.float64)]).float().to(args.device)
    *flat, number = trainer.accelerator.reduce(sums, reduction="sum").tolist()
    if not number:
        raise DataError(
            f"attention_heads={args.attention_heads}: none of {len(chosen)} records shows its evidence to the model as it is asked, "
            "so no head can be measured; check their boxes (`ral check`), or rank by visual"
        )
    means = (torch.tensor(flat) / number).reshape(total.shape)
    best = means.argsort(dim=1, descending=True, stable=True)[:, : wanted.top]
    return ChosenHeads(
        wanted.by, int(number), layers, best.tolist(), [[round(x, 6) for x in row] for row in means.tolist()]
    )


def probe_records(records: Sequence[Record], wanted: TopHeads) -> list[Record]:
    """As many records as asked for, or all there are, spread evenly over those that heads can be ranked by.

    Raises:
        UsageError: no training data. DataError: no record with evidence, or with an image or video.
    """
    if not records:
        raise UsageError("attention_heads is to be measured, but there is no train_dataset to measure it on")
    usable = [record for record in records if (record.grounded if wanted.by == "evidence" else record.has_media)]
    if not usable:
        lacking = "says where its evidence is" if wanted.by == "evidence" else "has an image or a video"
        raise DataError(
            f"attention_heads ranks heads by {wanted.by}, but none of the {len(records):,} records {lacking}; name heads by their "
            "numbers, or give such records (docs/data.md)"
        )
    number = min(wanted.records, len(usable))
    return [usable[i * len(usable) // number] for i in range(number)]


@torch.no_grad()
def head_scores(
    model: nn.Module, processor: Any, record: Record, prompt: Prompt, wanted: TopHeads, args: RALConfig
) -> Tensor | None:
    """`[layers, H]`: the mean over the rows of the solution's tokens of each head's attention on what it is ranked by.

    By evidence, rows are the run's own, over `attention_keys`; by visual they cover all earlier positions. None where nothing of
    the record's evidence is among the prompt's tokens.
    """
    with name_in_errors(record):
        written, answer = solution(processor, record, prompt, args)
        evidence = None
        if wanted.by == "evidence":
            evidence = evidence_tokens(record, prompt, processor, args.num_frames, args.fps)
            if evidence is None:
                return None
    (output,) = forward_groups(
        model,
        [prompt],
        [[written]],
        layers=args.attention_layers,
        query=args.attention_query,
        per_head=True,
        kernel=args.attention_kernel,
    )
    length, found = len(prompt.input_ids), []
    for alpha in output.heads.values():
        rows = policy_rows(alpha[:, 0], output.mask.expand(len(alpha), -1), length)[:, answer]
        if evidence is None:
            looks = rows[..., :length][..., prompt.visual]
        else:
            covered = prompt.interior if args.attention_keys == "interior" else prompt.visual
            kept = select_keys(rows, args.attention_keys, length, covered, args.attention_skip)
            inside = on_keys(evidence, prompt, args.attention_keys, args.attention_skip)
            looks = kept[..., : len(inside)][..., inside]
        found.append(looks.sum(dim=-1).double().mean(dim=-1))
    return torch.stack(found)


def solution(processor: Any, record: Record, prompt: Prompt, args: RALConfig) -> tuple[Tensor, slice]:
    """The tokens `[R]` of an answer with the record's solution and no thinking, and those that spell the solution."""
    asked = replace(as_asked(record, processor, prompt.inputs), trace="")
    written = encode_completion(processor, asked, args.prompt)
    span = answer_span(getattr(processor, "tokenizer", processor), written, asked.solution)
    if span is None:
        raise DataError(
            f"{record.origin}: its solution {asked.solution!r} cannot be found among the tokens of its answer"
        )
    return written, span
