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
    into an entry that is zero. The backward pass needs p and q alone; nothing else of their size is kept. A row whose value counts
    for nothing (an upstream gradient of 0) gets a gradient of 0, whatever it holds.

    Args:
        p, q: `[..., K]` non-negative, rows summing to 1 (or to 0: an all-zero row gives 0 against an all-zero row).

    Returns:
        `[...]`.
    """
    return _OfRows.apply(p, q, _jsd, _jsd_slope)  # type: ignore[no-any-return]


def kullback_leibler(p: Tensor, q: Tensor) -> Tensor:
    """KL(p ‖ q) = Σ p · ln(p/q) in nats along the last dimension, with ∂/∂p = ln(p/q) + 1.

    Numbers below the smallest normal one (1e-38) count as that: a 0 in rows of attention is a weight that was rounded off, and its
    infinity would take the whole step with it. So p = 1 against q = 0 is 87 nats. Zeros of p are safe: they add nothing, and nothing
    flows into them. Memory, and rows that count for nothing, are as in `jensen_shannon`.

    Args:
        p, q: `[..., K]` non-negative, rows summing to 1 (or p all zero: that gives 0). q is constant to autograd.

    Returns:
        `[...]`.
    """
    return _OfRows.apply(p, q.detach(), _kl, _kl_slope)  # type: ignore[no-any-return]


#: Of rows `[n, K]` and `[n, K]`: their divergences `[n]`, or the slopes `[n, K]` of these in the first.
Rowwise = Callable[[Tensor, Tensor], Tensor]


class _OfRows(torch.autograd.Function):
    """A divergence row by row, from its value and its slope in the first argument; in the second it is the same function."""

    @staticmethod
    def forward(ctx: Any, p: Tensor, q: Tensor, value: Rowwise, slope: Rowwise) -> Tensor:
        ctx.save_for_backward(p, q)
        ctx.slope = slope
        return torch.cat([value(a, b) for a, b in _chunks(p, q)]).view(p.shape[:-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        p, q = ctx.saved_tensors
        of_p, of_q, *_ = ctx.needs_input_grad
        found = _gradient(p, q, grad, ctx.slope) if of_p else None, _gradient(q, p, grad, ctx.slope) if of_q else None
        return *found, None, None


def _gradient(x: Tensor, other: Tensor, grad: Tensor, slope: Rowwise) -> Tensor:
    """The slopes in x times the gradient `[...]` of the divergence. Where that is 0 so is this, also if the slope is no number."""
    result = x.new_empty(x.shape)
    for out, a, b, upstream in _chunks(result, x, other, grad[..., None]):
        torch.mul(slope(a, b), upstream, out=out).masked_fill_(upstream == 0, 0.0)
    return result


def _jsd(a: Tensor, b: Tensor) -> Tensor:
    return (a * _log_ratio(a, b) + b * _log_ratio(b, a)).sum(dim=-1) / 2


def _jsd_slope(a: Tensor, b: Tensor) -> Tensor:
    return _log_ratio(a, b).div_(2)


def _kl(a: Tensor, b: Tensor) -> Tensor:
    return (a * _log_quotient(a, b)).sum(dim=-1)


def _kl_slope(a: Tensor, b: Tensor) -> Tensor:
    return (_log_quotient(a, b) + 1).masked_fill_(a <= 0, 0.0)


def _log_quotient(a: Tensor, b: Tensor) -> Tensor:
    """ln(a/b), each kept above the smallest normal number."""
    smallest = torch.finfo(a.dtype).tiny
    return a.clamp(min=smallest).log_() - b.clamp(min=smallest).log_()


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


#: By name, as settings have them: (policy rows, target rows) → divergence. Rows that count for nothing must get no gradient.
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
