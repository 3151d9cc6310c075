"""The entropy of token distributions in the loss: the tokens that are chosen by it, and the bonus."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from accelerate import Accelerator
from torch import Tensor

from ral.attention import GroupOutput
from ral.attention.forward import TokenStatistics
from ral.config import RALConfig
from ral.rollouts.group import TrainingGroup

#: Name of the entropy with its gradient, in `GroupOutput.extra`.
TRAINED = "trained_entropy"

#: A vector of one process → those of all processes behind each other.
Gather = Callable[[Tensor], Tensor]


def with_trained_entropy(statistics: TokenStatistics | None) -> TokenStatistics:
    """These statistics of the pass that trains, and the entropy with its gradient (`GroupOutput.entropy` has none)."""

    def both(logits: Tensor, hidden: Tensor, rows: slice) -> dict[str, Tensor]:
        log_norm = logits.logsumexp(dim=-1)
        entropy = log_norm - ((logits - log_norm[:, None]).exp() * logits).sum(dim=-1)
        others = {} if statistics is None else statistics(logits, hidden, rows)
        return others | {TRAINED: entropy}

    return both


def alone(values: Tensor) -> Tensor:
    """`Gather` of a single process."""
    return values


def chosen_tokens(
    groups: Sequence[TrainingGroup], outputs: Sequence[GroupOutput], args: RALConfig, gather: Gather = alone
) -> list[Tensor | None]:
    """`[G, R]` bool per group of a micro-batch: the tokens of highest entropy (arXiv 2506.01939); None where all are chosen.

    The quantile is one of all counted tokens of the micro-batch in all processes, of the pass that trains (as in TRL).
    """
    if args.top_entropy_quantile == 1:
        return [None] * len(groups)
    pairs = [(output.entropy.float(), group.scored.weights > 0) for group, output in zip(groups, outputs, strict=True)]
    entropies = gather(torch.cat([entropy[counted] for entropy, counted in pairs]))
    if not len(entropies):  # all completions were truncated and do not count
        return [counted for _, counted in pairs]
    threshold = torch.quantile(entropies, 1 - args.top_entropy_quantile)
    return [counted & (entropy >= threshold) for entropy, counted in pairs]


def bonus_weights(
    groups: Sequence[TrainingGroup], chosen: Sequence[Tensor | None], args: RALConfig, gather: Gather = alone
) -> list[Tensor | None]:
    """`[G, R]` per group: of the mean entropy over the chosen tokens of a micro-batch in all processes; None without a bonus.

    Each micro-batch has the same share of the optimiser step, whatever the loss type: `entropy_coef` means the same for all of
    them (as in TRL, but for its mean over the tokens of each process).
    """
    if not args.entropy_coef:
        return [None] * len(groups)
    acting = [group.scored.weights > 0 if mask is None else mask for group, mask in zip(groups, chosen, strict=True)]
    tokens = gather(torch.stack([mask.sum() for mask in acting]).sum()[None].float())
    # Gradients are averaged over processes, the sum counts all of them.
    scale = len(tokens) / tokens.sum().clamp(min=1) / args.gradient_accumulation_steps
    return [mask.float() * scale for mask in acting]


def gather_all(accelerator: Accelerator, values: Tensor) -> Tensor:
    """Vectors of all processes, of any lengths, behind each other. All processes must call this."""
    padded = accelerator.pad_across_processes(values, pad_index=torch.nan)
    everything = accelerator.gather(padded)
    return everything[~everything.isnan()]
