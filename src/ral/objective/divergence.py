"""Divergences between distributions over keys or tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

#: Elements worked on at once (float32: 2 MiB, which stays in a CPU's cache).
CHUNK_ELEMENTS = 2**19


def jensen_shannon(p: Tensor, q: Tensor) -> Tensor:
    """JSD(p ‖ q) in nats along the last dimension: 0 for equal rows, ln 2 for rows with disjoint support.

    The gradient is exactly ∂/∂p = ½·ln(p/m): what flows through m cancels, as p + q = 2m. At p = q, where m is bitwise p,
    value and gradient are exactly zero and not a rounding error. Zeros are safe: x·ln(x/m) → 0 as x → 0, and nothing flows
    into an entry that is zero. The backward pass needs p and q alone; nothing else of their size is kept.

    Args:
        p, q: `[..., K]` non-negative, rows summing to 1 (or to 0: an all-zero row gives 0 against an all-zero row).

    Returns:
        `[...]`.
    """
    return _JensenShannon.apply(p, q)  # type: ignore[no-any-return]


class _JensenShannon(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, p: Tensor, q: Tensor) -> Tensor:
        ctx.save_for_backward(p, q)
        parts = [(a * _log_ratio(a, b) + b * _log_ratio(b, a)).sum(dim=-1) / 2 for a, b in _chunks(p, q)]
        return torch.cat(parts).view(p.shape[:-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        p, q = ctx.saved_tensors
        of_p, of_q = ctx.needs_input_grad
        return _gradient(p, q, grad) if of_p else None, _gradient(q, p, grad) if of_q else None


def _chunks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The rows of `[..., K]` tensors of one shape but for K, as many at a time as fit into a chunk of the first."""
    step = max(1, CHUNK_ELEMENTS // tensors[0].shape[-1])
    return zip(*(x.reshape(-1, x.shape[-1]).split(step) for x in tensors), strict=True)


def _log_ratio(x: Tensor, other: Tensor) -> Tensor:
    """ln(x/m) with the mean m of both; 0 where x is 0.

    The sum of both is divided by, not their mean, which is 0 for the smallest numbers there are. The quotient is kept above
    the smallest normal number: a device may take what is below for 0.
    """
    ratio = (x / (x + other)).mul_(2).clamp_(min=torch.finfo(x.dtype).tiny)
    return ratio.masked_fill_(x <= 0, 1.0).log_()


def _gradient(x: Tensor, other: Tensor, grad: Tensor) -> Tensor:
    """½·ln(x/m) times the gradient `[...]` of the divergence."""
    result = x.new_empty(x.shape)
    for out, a, b, upstream in _chunks(result, x, other, grad[..., None] / 2):
        torch.mul(_log_ratio(a, b), upstream, out=out)
    return result


def kullback_leibler(p: Tensor, q: Tensor) -> Tensor:
    """KL(p ‖ q) = Σ p · ln(p/q) in nats along the last dimension; infinite where q is 0 and p is not.

    Zeros of p are safe: they add nothing, and nothing flows into them.

    Args:
        p, q: `[..., K]` non-negative, rows summing to 1 (or p all zero: that gives 0). q is constant to autograd.

    Returns:
        `[...]`.
    """
    seen = p > 0
    logs = torch.where(seen, p, 1.0).log() - torch.where(seen, q.detach(), 1.0).log()
    return (p * logs).sum(dim=-1)


#: By name, as settings have them: (policy rows, target rows) → divergence.
DIVERGENCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"jsd": jensen_shannon, "kl": kullback_leibler}


def generalised_jensen_shannon(student_logps: Tensor, teacher_logps: Tensor, beta: float) -> Tensor:
    """GKD's divergence (arXiv 2306.13649, eq. 1) along the last dimension, from log-probabilities.

    β = 0 is KL(teacher ‖ student), β = 1 is KL(student ‖ teacher); between them
    β·KL(teacher ‖ m) + (1−β)·KL(student ‖ m) with m = β·teacher + (1−β)·student.

    Where both are bitwise equal, value and gradient are exactly zero: as in `jensen_shannon`, what flows through m cancels, so
    its logarithms are constants to autograd; at the ends of β, ± Σ(student − teacher), which is 0, completes the gradient.

    Args:
        student_logps, teacher_logps: `[..., V]` finite log-probabilities.

    Returns:
        `[...]`.

    Raises:
        ValueError: β outside [0, 1].
    """
    if not 0 <= beta <= 1:
        raise ValueError(f"beta must be in [0, 1], got {beta}")
    teacher, student = teacher_logps.exp(), student_logps.exp()
    if beta == 0:
        return (teacher * (teacher_logps - student_logps) + (student - teacher)).sum(dim=-1)
    if beta == 1:
        return (student * (student_logps - teacher_logps) - (student - teacher)).sum(dim=-1)
    with torch.no_grad():
        gap = teacher_logps - student_logps
        # ln m relative to the larger of the two, by which neither a large gap overflows nor a small one is rounded away
        above = torch.log1p(torch.where(gap > 0, 1 - beta, beta) * torch.expm1(-gap.abs()))
        to_teacher, to_student = above + (-gap).clamp(min=0), above + gap.clamp(min=0)  # ln m/teacher, ln m/student
    return -(beta * teacher * to_teacher + (1 - beta) * student * to_student).sum(dim=-1)
