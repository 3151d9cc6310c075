"""Divergences against scipy, TRL and their formulas, and where they could break: zeros and equality."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from scipy.special import rel_entr
from torch import Tensor

from ral.objective import divergence
from ral.objective.divergence import generalised_jensen_shannon, jensen_shannon, kullback_leibler


def distributions(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64, sharpness: float = 2.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (sharpness * torch.randn(shape, generator=generator, dtype=torch.float64)).softmax(-1).to(dtype)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 1e-7)])
def test_jensen_shannon_is_scipys_distance_squared(dtype: torch.dtype, tolerance: float) -> None:
    p, q = distributions(40, 30, seed=1, dtype=dtype), distributions(40, 30, seed=2, dtype=dtype)
    p[:20, :7], q[:20, 5:12] = 0, 0  # one-sided and common zeros
    p, q = p / p.sum(-1, keepdim=True), q / q.sum(-1, keepdim=True)
    expected = jensenshannon(p.double().numpy(), q.double().numpy(), axis=-1) ** 2
    np.testing.assert_allclose(jensen_shannon(p, q).numpy(), expected, atol=tolerance)
    torch.testing.assert_close(jensen_shannon(p, q), jensen_shannon(q, p))


def test_its_gradient_is_that_of_the_formula() -> None:
    p, q = (distributions(3, 6, seed=seed).requires_grad_() for seed in (1, 2))
    assert torch.autograd.gradcheck(jensen_shannon, [p, q])
    scores = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: jensen_shannon(s.softmax(-1), q.detach()), [scores])


@pytest.mark.parametrize("bound", [1, 70, 10**6])
def test_neither_chunks_nor_the_backward_of_its_own_change_a_bit(bound: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the formula as autograd sees it; only p and q are kept for the backward pass."""
    p, q = (distributions(5, 4, 30, seed=seed, dtype=torch.float32) for seed in (1, 2))
    p[:2, :, :3] = q[1:3, :, 2:5] = 0
    p.requires_grad_()
    m = (p + q).detach() / 2
    log_p, log_q = ((torch.where(x > 0, x / m, 1.0)).log().detach() for x in (p, q))
    plain = (p * log_p + q * log_q).sum(-1) / 2
    monkeypatch.setattr(divergence, "CHUNK_ELEMENTS", bound)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        ours = jensen_shannon(p, q)
    assert [x.data_ptr() for x in kept] == [p.data_ptr(), q.data_ptr()]
    assert torch.equal(ours, plain)
    upstream = torch.randn(ours.shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(*(torch.autograd.grad(value, p, upstream)[0] for value in (ours, plain)))


@given(st.integers(0, 10_000), st.integers(1, 200), st.floats(0.1, 20), st.sampled_from([torch.float32, torch.float64]))
@settings(max_examples=60)
def test_at_equality_value_and_gradient_are_exactly_zero(
    seed: int, keys: int, sharpness: float, dtype: torch.dtype
) -> None:
    p = distributions(4, keys, seed=seed, dtype=dtype, sharpness=sharpness).requires_grad_()
    divergence = jensen_shannon(p, p.detach().clone())
    assert not divergence.any()
    [gradient] = torch.autograd.grad(divergence.sum(), p)
    assert not gradient.any()


def test_disjoint_supports_are_ln_2_apart() -> None:
    p, q = torch.tensor([0.3, 0.7, 0, 0]), torch.tensor([0, 0, 0.6, 0.4])
    assert jensen_shannon(p, q) == pytest.approx(math.log(2))


def test_zeros_give_finite_gradients_and_none_into_the_zero() -> None:
    p = torch.tensor([[0.5, 0.5, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]], requires_grad=True)
    q = torch.tensor([[0.0, 0.5, 0.5, 0.0], [1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    divergence = jensen_shannon(p, q)
    torch.testing.assert_close(divergence, torch.tensor([0.5 * math.log(2), 0.0, 0.0]))
    [gradient] = torch.autograd.grad(divergence.sum(), p)
    assert gradient.tolist() == [[pytest.approx(0.5 * math.log(2)), 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]


def test_rows_of_a_softmax_that_underflows_have_finite_gradients() -> None:
    scores = torch.tensor([[0.0, -200.0, 3.0]], requires_grad=True)
    [gradient] = torch.autograd.grad(jensen_shannon(scores.softmax(-1), torch.tensor([[0.1, 0.8, 0.1]])).sum(), scores)
    assert torch.isfinite(gradient).all()
    assert gradient.any()


def logps(seed: int) -> Tensor:
    return distributions(2, 5, 11, seed=seed).log()


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_generalised_is_its_formula(beta: float) -> None:
    student, teacher = logps(1), logps(2)
    s, t = student.exp(), teacher.exp()

    def kl(p: Tensor, q: Tensor) -> Tensor:
        return (p * (p / q).log()).sum(-1)

    m = beta * t + (1 - beta) * s
    expected = {0.0: kl(t, s), 1.0: kl(s, t)}.get(beta, beta * kl(t, m) + (1 - beta) * kl(s, m))
    torch.testing.assert_close(generalised_jensen_shannon(student, teacher, beta), expected)


@pytest.mark.filterwarnings("ignore")  # TRL says that its experimental parts are experimental
@pytest.mark.parametrize("beta", [0.0, 0.3, 0.5, 1.0])
def test_generalised_and_its_gradient_are_trls(beta: float) -> None:
    from trl.experimental.gkd import GKDTrainer

    student = logps(1).requires_grad_()
    teacher = logps(2)
    ours = generalised_jensen_shannon(student.log_softmax(-1), teacher, beta).sum()
    theirs = GKDTrainer.generalized_jsd_loss(student, teacher, beta=beta, reduction="sum")
    torch.testing.assert_close(ours, theirs)
    for mine, other in zip(torch.autograd.grad(ours, student), torch.autograd.grad(theirs, student), strict=True):
        torch.testing.assert_close(mine, other)


def test_generalised_at_a_half_is_jensen_shannon() -> None:
    student, teacher = logps(1), logps(2)
    torch.testing.assert_close(
        generalised_jensen_shannon(student, teacher, 0.5), jensen_shannon(student.exp(), teacher.exp())
    )
    assert torch.autograd.gradcheck(lambda s: generalised_jensen_shannon(s, teacher, 0.3), [student.requires_grad_()])


@given(st.integers(0, 10_000), st.integers(1, 200), st.floats(0.1, 50), st.sampled_from([0.0, 0.1, 0.5, 1.0]))
@settings(max_examples=60)
def test_generalised_at_equality_is_exactly_zero_with_its_gradient(
    seed: int, tokens: int, sharpness: float, beta: float
) -> None:
    logits = sharpness * torch.randn(4, tokens, generator=torch.Generator().manual_seed(seed))
    student = logits.clone().requires_grad_()
    divergence = generalised_jensen_shannon(student.log_softmax(-1), logits.log_softmax(-1), beta)
    assert not divergence.any()
    [gradient] = torch.autograd.grad(divergence.sum(), student)
    assert not gradient.any()


def test_generalised_is_finite_for_tokens_that_only_one_of_the_two_knows() -> None:
    student = torch.tensor([0.0, -300.0, -300.0], requires_grad=True)
    teacher = torch.tensor([-300.0, 0.0, -300.0])
    divergence = generalised_jensen_shannon(student, teacher, 0.5)
    assert divergence.item() == pytest.approx(math.log(2))
    [gradient] = torch.autograd.grad(divergence, student)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("beta", [-0.1, 1.1])
def test_beta_outside_its_range_is_refused(beta: float) -> None:
    with pytest.raises(ValueError, match=r"beta must be in \[0, 1\]"):
        generalised_jensen_shannon(logps(1), logps(2), beta)


#: Zero, the smallest numbers there are, the smallest normal one, and ordinary ones.
EXTREMES = [0.0, 1e-45, 3e-45, 1e-40, 1.2e-38, 1e-30, 1e-7, 0.3, 1.0]


@settings(max_examples=300)
@given(
    st.lists(st.tuples(st.sampled_from(EXTREMES), st.sampled_from(EXTREMES)), min_size=1, max_size=6),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_denormals_and_zeros_give_a_finite_value_and_gradient(
    entries: list[tuple[float, float]], dtype: torch.dtype
) -> None:
    p, q = (torch.tensor([[row[i] for row in entries]], dtype=dtype).requires_grad_() for i in (0, 1))
    value = jensen_shannon(p, q)
    for gradient in torch.autograd.grad(value.sum(), [p, q]):
        assert gradient.isfinite().all()
        assert gradient.abs().max() < 60
    x, y = p.detach().double(), q.detach().double()
    m = torch.where(x + y > 0, (x + y) / 2, 1.0)
    parts = (torch.where(a > 0, a * (torch.where(a > 0, a, 1.0) / m).log(), 0.0) for a in (x, y))
    exact = float(sum(part.sum() for part in parts)) / 2
    assert float(value.detach()) == pytest.approx(exact, abs=1e-6 if dtype == torch.float32 else 0.03 * len(entries))


def test_the_smallest_number_pulls_as_its_ratio_says() -> None:
    """Alone, an entry's ratio to the mean is 2, however small it is; beside equals it is 1."""
    p = torch.tensor([1e-45, 1e-45, 1.0], requires_grad=True)
    jensen_shannon(p, torch.tensor([0.0, 1e-45, 1.0])).backward()
    torch.testing.assert_close(p.grad, torch.tensor([math.log(2) / 2, 0.0, 0.0]))


def test_kl_is_scipys_and_zeros_are_safe() -> None:
    p, q = (torch.rand(4, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) for seed in (0, 1))
    p[0, 0] = 0
    p[3] = 0
    p[:3] /= p[:3].sum(-1, keepdim=True)
    q /= q.sum(-1, keepdim=True)
    p.requires_grad_()
    found = kullback_leibler(p, q)
    torch.testing.assert_close(found, torch.from_numpy(rel_entr(p.detach().numpy(), q.numpy()).sum(-1)))
    (grad,) = torch.autograd.grad(found.sum(), p)
    assert grad.isfinite().all()
    assert float(grad[3].abs().max()) == 0
    torch.testing.assert_close(grad[1], (p[1] / q[1]).log().detach() + 1)


def test_kl_takes_a_zero_that_rounding_made_for_the_smallest_number() -> None:
    """By hand: ½·ln(½/tiny) + ½·ln(½/1) with ∂/∂p = ln(p/q) + 1; equals are exactly 0 apart, however small."""
    tiny = torch.finfo(torch.float32).tiny
    p = torch.tensor([[0.5, 0.5, 0.0], [1.0, 1e-45, 1e-41]], requires_grad=True)
    found = kullback_leibler(p, torch.tensor([[0.0, 1.0, 0.0], [1.0, 1e-45, 0.0]]))
    assert found.tolist() == [pytest.approx(math.log(0.5) - 0.5 * math.log(tiny)), 0.0]
    (grad,) = torch.autograd.grad(found.sum(), p)
    assert grad[0].tolist() == [pytest.approx(math.log(0.5 / tiny) + 1), pytest.approx(math.log(0.5) + 1), 0.0]
    assert grad[1].tolist() == [1.0, 1.0, 1.0]


def test_kl_keeps_p_and_q_alone_and_its_gradient_is_that_of_the_formula() -> None:
    p, q = (distributions(3, 6, seed=seed) for seed in (1, 2))
    p.requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        found = kullback_leibler(p, q)
    assert [x.data_ptr() for x in kept] == [p.data_ptr(), q.data_ptr()]
    upstream = torch.tensor([0.5, -2.0, 3.0], dtype=torch.float64)
    plain = (p * (p / q).log()).sum(-1)
    torch.testing.assert_close(*(torch.autograd.grad(value, p, upstream)[0] for value in (found, plain)))


@pytest.mark.parametrize("divergence_of", [jensen_shannon, kullback_leibler])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("held", [math.nan, math.inf, -math.inf, 0.0])
def test_rows_that_count_for_nothing_get_no_gradient_whatever_they_hold(
    divergence_of: Callable[[Tensor, Tensor], Tensor], dtype: torch.dtype, held: float
) -> None:
    clean, q = (distributions(4, 5, seed=seed, dtype=dtype) for seed in (1, 2))
    counted = torch.tensor([True, False, True, False])
    p = clean.clone()
    p[1], q[3] = held, held
    p.requires_grad_()
    (found,) = torch.autograd.grad(divergence_of(p, q)[counted].sum(), p)
    alone = clean[counted].requires_grad_()
    (expected,) = torch.autograd.grad(divergence_of(alone, q[counted]).sum(), alone)
    assert torch.equal(found[counted], expected)
    assert expected.any()
    assert not found[~counted].any()
