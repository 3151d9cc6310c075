"""Divergences between distributions over keys or tokens."""

from __future__ import annotations

import torch
from torch import Tensor


def jensen_shannon(p: Tensor, q: Tensor) -> Tensor:
    """JSD(p ‖ q) in nats along the last dimension: 0 for equal rows, ln 2 for rows with disjoint support.

    The gradient is exactly ∂/∂p = ½·ln(p/m): what flows through m cancels, as p + q = 2m. So the logarithm is a constant to
    autograd, and at p = q, where m is bitwise p, value and gradient are exactly zero and not a rounding error. Zeros are
    safe: x·ln(x/m) → 0 as x → 0, and nothing flows into an entry that is zero.

    Args:
        p, q: `[..., K]` non-negative, rows summing to 1 (or to 0: an all-zero row gives 0 against an all-zero row).

    Returns:
        `[...]`.
    """
    m = (p + q) / 2
    return (_relative(p, m) + _relative(q, m)).sum(dim=-1) / 2


def _relative(x: Tensor, m: Tensor) -> Tensor:
    """x·ln(x/m) with the gradient ln(x/m); both zero where x is zero."""
    with torch.no_grad():
        positive = x > 0
        log_ratio = torch.where(positive, x / torch.where(positive, m, 1.0), 1.0).log()
    return x * log_ratio


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
