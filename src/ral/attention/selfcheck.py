"""Compares three computations of one prompt before a run relies on them: packed, repeated, and by the model alone."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ral.attention.forward import Prompt, forward_groups
from ral.attention.models import family, has_vision, pretrained, repeat_prompts, why_repeated
from ral.errors import ConfigError
from ral.families.family import joined

logger = logging.getLogger(__name__)

#: Mean distance a token below which two passes are the same: log-probabilities in nats, rows summed over their keys.
SAME, SAME_IN_16_BITS = 1e-3, 0.05
#: Tokens of each of the two completions that are compared.
LENGTH = 8


@dataclass(frozen=True)
class Distances:
    """Mean distances a token: of log-probabilities and rows in the packed row from those of the repeated prompt (0 where the
    model is run repeated anyhow), and of the repeated prompt's log-probabilities from the model's own logits."""

    logps: float
    rows: float
    plain: float

    @classmethod
    def of(cls, values: Tensor) -> Distances:
        return cls(*values.tolist())


@torch.no_grad()
def measure(model: nn.Module, prompt: Prompt, layers: tuple[int, ...]) -> Tensor:
    """`[3]`, see `Distances`: in the precision that `model` is called in. The completions are words of the prompt.

    Every process of a sharded model has to call this.
    """
    words = prompt.input_ids[~prompt.visual]
    completions = [words[-LENGTH:], words[:LENGTH].flip(0)]
    (apart,) = forward_groups(model, [prompt], [completions], layers=layers, repeated=True)
    logps, rows = torch.zeros((), device=words.device), torch.zeros((), device=words.device)
    if why_repeated(model) is None:
        (packed,) = forward_groups(model, [prompt], [completions], layers=layers)
        logps = (packed.logps - apart.logps).abs()[apart.mask].mean()
        gaps = [(packed.layers[i] - apart.layers[i]).abs().sum(dim=-1)[apart.mask].mean() for i in apart.layers]
        rows = torch.stack([*gaps, rows]).max()
    plain = [(_plain(model, prompt, y) - apart.logps[g, : len(y)]).abs() for g, y in enumerate(completions)]
    return torch.stack([logps, rows, torch.cat(plain).mean()]).float()


def _plain(model: nn.Module, prompt: Prompt, y: Tensor) -> Tensor:
    """Log-probabilities `[R]` from the model's own logits, without anything of the packed attention."""
    base: Any = pretrained(model)
    ids = torch.cat([prompt.input_ids, y])[None]
    own = torch.arange(len(y), device=y.device) + prompt.next_position
    positions = torch.cat([prompt.position_ids, own.expand(*prompt.position_ids.shape[:-1], -1)], dim=-1)
    in_prompt = torch.arange(ids.shape[1], device=y.device)[None] < len(prompt.input_ids)
    features = prompt.features if prompt.features is not None else family(base).features(base, base, prompt.inputs)
    logits = model(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        position_ids=positions.unsqueeze(-2),
        use_cache=False,
        **family(base).per_token(base, ids, in_prompt),
        **({"mm_encoder_outputs": joined([features])} if has_vision(base) else {}),
    ).logits[0, -len(y) - 1 : -1]
    return logits.float().log_softmax(dim=-1).gather(-1, y[:, None])[:, 0]


def settle(found: Distances, models: list[nn.Module], precision: torch.dtype) -> None:
    """Go on as the model was meant to be run, or with repeated prompts where the packed row differs.

    Args:
        found: the largest of all processes. models: the policy and its frozen copy, which are run alike.

    Raises:
        ConfigError: the model's own logits are others with the prompt repeated, too.
    """
    same = SAME if torch.finfo(precision).bits > 16 else SAME_IN_16_BITS
    name = type(pretrained(models[0])).__name__
    logger.info(
        "%s on the first prompt, a token: log-probabilities are %.1g and attention rows %.1g from those of the prompt repeated, "
        "which are %.1g from the model's own",
        name, found.logps, found.rows, found.plain,
    )  # fmt: skip
    if not found.plain <= same:
        raise ConfigError(
            f"{name}: log-probabilities behind the first prompt are {found.plain:.2g} nats a token from the model's own, more than "
            f"{same}: its family (ral.families) does not say what the model does to its logits or takes with its tokens. Mend "
            "or register its family (docs/models.md), or choose another model"
        )
    if not max(found.logps, found.rows) <= same:
        logger.warning(
            "%s: in the packed row log-probabilities are %.2g and attention rows %.2g a token from those of the prompt repeated, more "
            "than %s: something in its attention is not known. The run goes on with each completion behind a copy of the prompt, "
            "which is exact and slower",
            name, found.logps, found.rows, same,
        )  # fmt: skip
        for model in models:
            repeat_prompts(model)


def repeated_cost(prompt: int, group: int, completion: int) -> float:
    """How many times as many tokens a group has with the prompt repeated: G(P+R) / (P+GR)."""
    return group * (prompt + completion) / (prompt + group * completion)
