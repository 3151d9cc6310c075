"""Chosen heads: rows and gradients against a few lines of their own, and against the model's own eager attention."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from experiments.families.zoo import tiny
from torch import Tensor

from ral.attention import forward_group
from ral.attention.heads import TopHeads, per_layer, selected
from ral.attention.rows import attention_rows
from ral.errors import ConfigError
from tests.tiny import completions, prompt, tiny_model, twin

HEADS, KV_HEADS, G, R, P, D = 6, 2, 2, 3, 5, 4


def plain(q: Tensor, k_prompt: Tensor, k_own: Tensor, heads: Sequence[int]) -> Tensor:
    """p^t of the mean over some heads, one query at a time: the token itself is left out."""
    out = torch.zeros(G, R, P + R, dtype=q.dtype)
    for g in range(G):
        for r in range(R):
            mean = torch.zeros(P + r + 1, dtype=q.dtype)
            for head in heads:
                kv = head // (HEADS // KV_HEADS)
                mean = mean + (torch.cat([k_prompt[kv], k_own[kv, g, : r + 1]]) @ q[head, g, r]).softmax(0)
            out[g, r, : P + r] = mean[:-1] / mean[:-1].sum()
    return out


@pytest.mark.parametrize("heads", [[4], [0, 5], [2, 1, 0], [5, 3, 1]], ids=str)
def test_rows_and_gradients_of_heads_that_share_keys(heads: list[int]) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = ((HEADS, G, R, D), (KV_HEADS, P, D), (KV_HEADS, G, R, D))
    inputs = [torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes]
    mask = torch.ones(G, R, dtype=torch.bool)
    ours, _ = attention_rows(*selected(*inputs, heads), mask, scaling=1.0, query="token")
    theirs = plain(*inputs, heads)
    torch.testing.assert_close(ours, theirs, atol=1e-14, rtol=0)
    upstream = torch.randn(ours.shape, generator=generator, dtype=torch.float64)
    for mine, other in zip(
        torch.autograd.grad(ours, inputs, upstream), torch.autograd.grad(theirs, inputs, upstream), strict=True
    ):
        torch.testing.assert_close(mine, other, atol=1e-13, rtol=1e-10)


@pytest.mark.parametrize("repeated", [False, True], ids=["packed", "repeated"])
@pytest.mark.parametrize("kind", ["qwen2_5_vl", "qwen3_5"])
def test_one_head_of_a_layer_is_that_head_of_the_models_own_attention(kind: str, repeated: bool) -> None:
    model, inputs = (tiny_model(), prompt()) if kind == "qwen2_5_vl" else tiny(kind)
    y = completions((4,))[0] % 80
    eager = twin(model)
    ids = torch.cat([inputs["input_ids"], y[None]], dim=1)
    whole = inputs | {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    whole["mm_token_type_ids"] = torch.nn.functional.pad(inputs["mm_token_type_ids"], (0, len(y)))
    out = eager(**whole, output_attentions=True, use_cache=False)
    own = [layer for layer in out.attentions if layer is not None][-1][0]
    length = inputs["input_ids"].shape[1]
    for heads in ([2], [3, 0]):
        found = forward_group(model, inputs, [y], attention_heads=heads, repeated=repeated)
        alpha = own[heads].mean(0)[length:]
        torch.testing.assert_close(found.alpha(next(iter(found.layers)))[0], alpha, atol=2e-6, rtol=0)


def test_the_mean_of_all_stays_bit_for_bit_and_a_list_of_all_equals_it() -> None:
    model, ys = tiny_model(), completions()
    default = forward_group(model, prompt(), ys)
    none = forward_group(model, prompt(), ys, attention_heads=None)
    assert torch.equal(default.attention, none.attention)
    every = forward_group(model, prompt(), ys, attention_heads=[0, 1, 2, 3])
    torch.testing.assert_close(every.attention, default.attention, atol=1e-6, rtol=0)
    assert torch.equal(every.logps, default.logps)


def test_each_layer_has_heads_of_its_own() -> None:
    model, ys = tiny_model(), completions()
    both = forward_group(model, prompt(), ys, attention_layers=[0, -1], attention_heads=[[1, 2], [3]])
    for layer, heads in ((0, [1, 2]), (2, [3])):
        alone = forward_group(model, prompt(), ys, attention_layers=[layer], attention_heads=heads)
        torch.testing.assert_close(both.layers[layer], alone.attention, atol=1e-6, rtol=0)


def test_wrong_heads_are_refused_by_number() -> None:
    model, ys = tiny_model(), completions()
    with pytest.raises(ConfigError, match="contains 4, but layer 2 of the model has 4 heads, 0 to 3"):
        forward_group(model, prompt(), ys, attention_heads=[1, 4])
    for wrong, layers in (([[0], [1]], 1), ([0], 2), ([[0]], 2), ([0, [1]], 2)):
        with pytest.raises(ConfigError, match="does not name the heads of"):
            per_layer(wrong, layers)
    for wrong in ([], [[]], [1, 1], [-1], [[0, -2]]):
        with pytest.raises(ConfigError, match="one head at least, each once"):
            per_layer(wrong, 1)


def test_what_measured_heads_are_ranked_by_is_said_in_full() -> None:
    assert TopHeads.of({"top": 3, "by": "visual"}) == TopHeads(3, "visual", 32)
    for wrong in ({"top": 3}, {"top": 0, "by": "visual"}, {"top": True, "by": "visual"}, {"top": 3, "by": "size"},
                  {"top": 3, "by": "evidence", "of": 2}, {"top": 3, "by": "evidence", "records": 0}):  # fmt: skip
        with pytest.raises(ConfigError, match=r"write \{top: 8, by: evidence\}"):
            TopHeads.of(wrong)
