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

    Args:
        student_logps, teacher_logps: `[..., V]` log-probabilities.

    Returns:
        `[...]`.

    Raises:
        ValueError: β outside [0, 1].
    """
    if not 0 <= beta <= 1:
        raise ValueError(f"beta must be in [0, 1], got {beta}")
    teacher, student = teacher_logps.exp(), student_logps.exp()
    if beta == 0:
        return (teacher * (teacher_logps - student_logps)).sum(dim=-1)
    if beta == 1:
        return (student * (student_logps - teacher_logps)).sum(dim=-1)
    weights = torch.tensor([beta, 1 - beta], dtype=student_logps.dtype, device=student_logps.device).log()
    mixture = torch.logaddexp(teacher_logps + weights[0], student_logps + weights[1])
    to_teacher = (teacher * (teacher_logps - mixture)).sum(dim=-1)
    to_student = (student * (student_logps - mixture)).sum(dim=-1)
    return beta * to_teacher + (1 - beta) * to_student
