"""The state of decoding, joined for a step over several batches and cut to the rows that still run."""

from __future__ import annotations

from math import prod
from types import SimpleNamespace

import pytest
import torch
from torch.profiler import profile
from transformers import DynamicCache

from ral.attention import repeated
from ral.attention.fork import States
from ral.attention.prefix import SharedPrefix
from ral.attention.repeated import CachedRows


def states(rows: int, first: int) -> States:
    """Two states of `rows` completions whose values name their row."""
    numbers = torch.arange(first, first + rows, dtype=torch.float32)
    return States(
        {0: numbers[:, None, None].expand(rows, 2, 3)}, {0: numbers[:, None].expand(rows, 4)}, recording=False
    )


def numbers(of: States) -> list[list[float]]:
    return [of.conv[0][:, 0, 0].tolist(), of.recurrent[0][:, 0].tolist()]


def test_states_of_several_batches_are_joined_and_split_again() -> None:
    parts = [states(2, 0), states(3, 2), states(1, 5)]
    whole = States.together(parts)
    assert numbers(whole) == [[0, 1, 2, 3, 4, 5]] * 2
    again = whole.split([2, 3, 1])
    assert [numbers(part) for part in again] == [[[0, 1]] * 2, [[2, 3, 4]] * 2, [[5]] * 2]
    assert [part.conv[0].shape for part in again] == [part.conv[0].shape for part in parts]
    assert not any(part.is_recording_past(0) for part in (whole, *again)), "the last step's state may be overwritten"
    assert States.empty().is_recording_past(0), "the prompt's may not: every completion starts from it"
    alone = states(4, 0)
    assert States.together([alone]) is alone
    assert alone.split([4]) == [alone]


def test_a_shared_prefix_is_cut_to_prompts_and_rows() -> None:
    """Of two prompts with three completions each the second stays, with two."""
    layers = {0: (torch.arange(2.0)[:, None, None, None].expand(2, 1, 5, 4),) * 2}
    prefix = SharedPrefix(layers, torch.ones(2, 5, dtype=torch.bool), 3, states={0: states(6, 0)})
    cut = prefix.of(torch.tensor([1]), torch.tensor([3, 5]))
    assert (cut.width, type(cut.width)) == (2, int)
    assert [part[:, 0, 0, 0].tolist() for part in cut.layers[0]] == [[1], [1]]
    assert numbers(cut.states[0]) == [[3, 5]] * 2
    assert cut.seen.shape == (1, 5)


def test_the_repeated_way_sees_one_more_token_with_every_step() -> None:
    rows = CachedRows(DynamicCache(), torch.tensor([[False, True], [True, True]]), 1)
    masks = [rows.arguments()["attention_mask"].tolist() for _ in range(2)]
    assert masks == [[[0, 1, 1], [1, 1, 1]], [[0, 1, 1, 1], [1, 1, 1, 1]]]


def test_a_look_bias_has_the_precision_of_the_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention in bfloat16 takes no mask in float32. A window's cache holds the last keys alone."""
    monkeypatch.setattr(repeated, "ordinary", lambda module, q, k, v, mask, **_: mask)
    rows = CachedRows(DynamicCache(), torch.ones(1, 4, dtype=torch.bool), 1, bias=torch.tensor([[1.0, 2.0, 3.0]]))
    q, keys = (torch.zeros(1, 2, n, 4, dtype=torch.bfloat16) for n in (1, 2))
    mask = rows.attend(SimpleNamespace(layer_idx=0), q, keys, keys, None)
    assert mask is not None
    assert mask.dtype == torch.bfloat16
    assert mask.flatten().tolist() == [3, 0]


def test_a_step_does_not_copy_the_prompts_of_several_completions() -> None:
    """Models hold keys token by token; a product over several prompts would bring them into the order of heads every time."""
    prompts, heads, tokens, channels, width = 3, 2, 50, 8, 4
    keys, values = torch.randn(2, prompts, tokens, heads, channels).transpose(2, 3)
    seen = torch.ones(prompts, tokens, dtype=torch.bool)
    query, key, value = torch.randn(3, prompts * width, heads, 1, channels)

    def copied(prefix: SharedPrefix) -> tuple[int, torch.Tensor]:
        """The most numbers that one copy of a step has, and the step's output."""
        with profile(record_shapes=True) as found:
            output = prefix.attend(0, query, key, value, 0.3)
        return max(prod(e.input_shapes[0]) for e in found.events() if e.name == "aten::copy_"), output

    as_held = SharedPrefix({0: (keys, values)}, seen, width, padded=False)
    most, expected = copied(as_held)
    assert most == keys.numel(), "a copy of all keys, which is to be avoided"
    laid_out = SharedPrefix({0: (keys, values)}, seen, width, padded=False).laid_out()
    most, output = copied(laid_out)
    assert most < keys.numel()
    torch.testing.assert_close(output, expected)
