"""The gradients' norms, and the factor that follows from them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

from ral.training.balance import GradientBalance
from tests.training.test_trainer import G, spread, trained


def measured(balance: GradientBalance, model: nn.Linear, along: Tensor, across: Tensor) -> dict[str, float]:
    """Figures of two losses that are linear in the weight and have these gradients."""
    token, attention = (model.weight * along).sum(), (model.weight * across).sum()
    balance.measure(model, token, attention, token + attention)
    found = balance.finish(Accelerator(cpu=True))
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


def test_norms_are_those_of_the_whole_step(model: nn.Linear) -> None:
    """Of the sum over micro-batches, in which what differs cancels; a mean of their norms would be 1 and 1."""
    balance = GradientBalance(share=None)
    for sign in (1.0, -1.0):
        token, attention = model.weight[0, 0], sign * model.weight[0, 1]
        balance.measure(model, token, attention, token + attention)
    found = {name: float(mean.total) for name, mean in balance.finish(Accelerator(cpu=True)).items()}
    assert found == {"grad/token_norm": 2.0, "grad/attention_norm": 0.0, "grad/attention_to_token": 0.0}


def test_the_step_is_trained_with_the_factor_that_its_own_gradients_give(model: nn.Linear) -> None:
    balance = GradientBalance(share=0.1)
    for _ in range(2):  # micro-batches
        token, attention = 3 * model.weight[0, 0], 2 * model.weight[0, 1]
        balance.measure(model, token, attention, token + balance.factor * attention).backward()
    balance.finish(Accelerator(cpu=True))
    assert balance.factor == pytest.approx(0.15)
    torch.testing.assert_close(model.weight.grad, torch.tensor([[6.0, 0.6]]))


@pytest.fixture
def sharded(tmp_path: Path) -> Iterator[Any]:
    """The model as FSDP2 shares it out, in a group of one process."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = nn.Linear(2, 1, bias=False)
        nn.init.zeros_(model.weight)
        yield fully_shard(model)
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("distils", [False, True])
def test_shards_are_trained_alike_with_one_sum_of_gradients_or_with_two(sharded: Any, distils: bool) -> None:
    """By hand: two micro-batches with gradients 3 of the token loss and 2 of the attention term; at a share of 0.1 the factor is
    0.1 · 6 / 4. Only with further terms in the loss is the token loss's gradient kept beside the parameters' own.
    """
    balance, accelerator = GradientBalance(share=0.1, distils=distils), Accelerator(cpu=True)
    optimizer = torch.optim.SGD(sharded.parameters())
    state: Any = SimpleNamespace(stateful_callbacks={})
    balance.on_train_begin(None, state, None, model=sharded, optimizer=optimizer)  # type: ignore[arg-type]
    for _ in range(2):
        along, across = sharded(torch.tensor([[3.0, 0.0]])), sharded(torch.tensor([[0.0, 2.0]]))
        token, attention = along.sum(), across.sum()
        loss = balance.measure(sharded, token, attention, token + balance.factor * attention)
        assert float(loss.detach()) == float((token + attention).detach())
        loss.backward()
    assert (len(balance._token), len(balance._attention)) == (int(distils), 1)
    figures = {name: float(mean.total) for name, mean in balance.finish(accelerator).items()}
    assert figures["grad/token_norm"] == pytest.approx(6)
    assert figures["grad/attention_norm"] == pytest.approx(0.6)
    torch.testing.assert_close(sharded.weight.grad.full_tensor(), torch.tensor([[6.0, 0.6]]))


def test_a_step_does_not_know_the_gradients_of_the_one_before(model: nn.Linear) -> None:
    balance = GradientBalance(share=None)
    for _ in range(2):
        assert measured(balance, model, torch.ones(1, 2), torch.ones(1, 2))["grad/token_norm"] == pytest.approx(2**0.5)


@pytest.mark.parametrize("freeze_vision", [True, False])
def test_accumulation_changes_neither_norms_nor_factor_nor_update(tmp_path: Path, freeze_vision: bool) -> None:
    changes: dict[str, Any] = {
        "attention_anchor": "group", "attention_share": 0.3, "gradient_norm_steps": 1, "max_steps": 3,
        "reward_funcs": spread, "freeze_vision": freeze_vision,
    }  # fmt: skip
    whole, expected = trained(tmp_path / "whole", per_device_train_batch_size=4 * G, **changes)
    parts, metrics = trained(
        tmp_path / "parts", per_device_train_batch_size=G, gradient_accumulation_steps=4, **changes
    )
    for row, other in zip(metrics, expected, strict=True):
        for name in ("grad/token_norm", "grad/attention_norm", "grad/attention_to_token", "grad_norm"):
            assert row[name] == pytest.approx(other[name], rel=1e-5), name
        assert row["grad/attention_to_token"] == pytest.approx(0.3)
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, atol=2e-5, rtol=0)
