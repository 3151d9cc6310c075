"""The gradients' norms, and the factor that follows from them."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ral.training.balance import GradientBalance


def measured(balance: GradientBalance, model: nn.Linear, along: Tensor, across: Tensor) -> dict[str, float]:
    """Figures of two losses that are linear in the weight and have these gradients."""
    found = balance.measure(model, (model.weight * along).sum(), (model.weight * across).sum(), Accelerator(cpu=True))
    return {name: float(mean.total / mean.weight) for name, mean in found.items()}


@pytest.fixture
def model() -> nn.Linear:
    return nn.Linear(2, 1, bias=False)


def test_the_attention_gradient_is_brought_to_its_share(model: nn.Linear) -> None:
    balance = GradientBalance(share=0.1)
    figures = measured(balance, model, torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 2.0]]))
    assert figures == pytest.approx(
        {"grad/token_norm": 5.0, "grad/attention_norm": 0.5, "grad/attention_to_token": 0.1}
    )
    assert balance.factor == pytest.approx(0.25)
    assert model.weight.grad is None


def test_without_a_share_it_only_measures(model: nn.Linear) -> None:
    balance = GradientBalance(share=None)
    figures = measured(balance, model, torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 2.0]]))
    assert figures["grad/attention_to_token"] == pytest.approx(0.4)
    assert balance.factor == 1


def test_gradients_of_zero_leave_the_factor_as_it_is(model: nn.Linear) -> None:
    """The first inner update under `old`; and a batch whose groups are all alike, which has no ratio."""
    balance, nothing, something = GradientBalance(share=0.1), torch.zeros(1, 2), torch.ones(1, 2)
    assert measured(balance, model, something, nothing)["grad/attention_to_token"] == 0
    assert "grad/attention_to_token" not in measured(balance, model, nothing, something)
    assert balance.factor == 1
