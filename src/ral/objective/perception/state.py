"""What the rivals see of a group, and what one of them is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import wraps
from typing import Protocol

from torch import Tensor

from ral.objective.terms import MAX_LOG_RATIO, Term


class PerceptionSettings(Protocol):
    """The settings of a run (`PerceptionFields`) that the rivals read."""

    @property
    def perception_coef(self) -> float: ...
    @property
    def perception_entropy_coef(self) -> float: ...
    @property
    def perception_top(self) -> float: ...
    @property
    def perception_floor(self) -> float: ...


@dataclass(frozen=True)
class OldTokens:
    """The tokens of one group under the policy that sampled them. Detached.

    Attributes:
        logps: `[G, R]`. masked_logps: `[G, R]` under a masked image; None unless the rival asks for it.
        attention: `[G, R, P+R]`, what each token gives to all tokens before it and to itself, mean over heads and trained layers;
            None unless the rival asks for rows.
        visual: `[P]` bool. mask: `[G, R]` bool.
    """

    logps: Tensor
    masked_logps: Tensor | None
    attention: Tensor | None
    visual: Tensor
    mask: Tensor


#: How much the advantage of each token counts, `[G, R]` ≥ 0; padding counts for nothing.
Factors = Callable[[OldTokens, PerceptionSettings], Tensor]


def on_images(factors: Factors) -> Factors:
    """These factors for prompts with visual tokens. Other prompts depend on no image: all of their tokens count as they are."""

    @wraps(factors)
    def with_text(tokens: OldTokens, settings: PerceptionSettings) -> Tensor:
        if not bool(tokens.visual.any()):
            return tokens.mask.to(tokens.logps.dtype)
        return factors(tokens, settings)

    return with_text


class PerceptionTerm(Protocol):
    """A further term of the token loss, for prompts with visual tokens; others have no log-probabilities under a masked image."""

    def __call__(self, logps: Tensor, masked_logps: Tensor, weights: Tensor, settings: PerceptionSettings) -> Term:
        """All `[G, R]`: log-probabilities with gradient, those under a masked image (detached), weights of tokens."""


@dataclass(frozen=True)
class Perception:
    """A rival: factors on advantages (see `on_images`), or a term of its own, and what it needs.

    Attributes:
        masked: one more pass per rollout batch, with a masked image. rows: the attention rows of the trained layers.
    """

    factors: Factors | None = None
    term: PerceptionTerm | None = None
    masked: bool = False
    rows: bool = False


def k3(logps: Tensor, other: Tensor, bound: float = MAX_LOG_RATIO) -> Tensor:
    """The estimate of KL(π ‖ other) from π's own tokens, other/π − ln(other/π) − 1, elementwise; small ones keep their digits."""
    gap = (other - logps).clamp(-bound, bound)
    return gap.expm1() - gap


def top_tokens(values: Tensor, mask: Tensor, share: float) -> Tensor:
    """`[G, R]` bool: of each completion the `share` of its tokens, rounded up, with the highest values.

    The share is taken as the decimal that it was written as: 0.15 of 100 tokens are 15, though the float is above that. Tokens
    that are as high as the last of these are among them, too, so that no place decides: all tokens where all are equal.
    """
    exact = Fraction(share).limit_denominator(10**9)
    kept = -(-mask.sum(dim=1, keepdim=True) * exact.numerator // exact.denominator)
    ordered = values.masked_fill(~mask, float("-inf")).sort(dim=1, descending=True).values
    return mask & (values >= ordered.gather(1, kept.clamp(min=1) - 1))
