"""The packed forward on a CUDA device: parity with eager attention, and its memory against it."""

from __future__ import annotations

import copy

import pytest
import torch

from ral.attention import forward_group
from ral.rollouts.sampling import Sampling, sample
from tests.attention.test_flex import functional, outputs
from tests.attention.test_forward import assert_same_gradients, ordinary
from tests.tiny import EOS, VISION_KINDS, completions, prompt, tiny_model, twin

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def on_gpu(inputs):
    return {name: value.cuda() for name, value in inputs.items()}


@pytest.mark.parametrize("media", ["image", "images", "text"])
@pytest.mark.parametrize("kind", VISION_KINDS)
@pytest.mark.parametrize(("dtype", "logp_tol", "row_tol"), [(torch.float32, 1e-4, 1e-5), (torch.bfloat16, 0.15, 0.03)])
def test_parity_with_eager_attention(kind, media, dtype, logp_tol, row_tol):
    model = tiny_model(kind, initializer_range=0.1).to("cuda", dtype)
    inputs, ys = on_gpu(prompt(media)), [y.cuda() for y in completions()]
    if "pixel_values" in inputs:
        inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
    out = forward_group(model, inputs, ys)
    logps, rows = ordinary(twin(model), inputs, ys)
    for g, y in enumerate(ys):
        torch.testing.assert_close(out.logps[g, : len(y)], logps[g], atol=logp_tol, rtol=0.02)
        torch.testing.assert_close(out.attention[g, : len(y), : rows[g].shape[1]], rows[g], atol=row_tol, rtol=0)
    (out.logps.sum() + out.attention.square().sum()).backward()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in model.parameters())


@pytest.mark.parametrize(("dtype", "logp_tol", "grad_tol"), [(torch.float32, 1e-3, 1e-2), (torch.bfloat16, 0.15, 0.1)])
def test_compiled_flex_attention_equals_sdpa(dtype, logp_tol, grad_tol):
    """Rows of two lengths through one compiled kernel. Heads of 16 channels, the least that triton multiplies."""
    model = tiny_model("qwen2", hidden_size=64, initializer_range=0.1).to("cuda", dtype)
    reference = copy.deepcopy(model)
    for row in ([("text", (5, 3, 7)), ("text", (40, 90))], [("text", (60, 60, 60, 61)), ("text", (1,))]):
        ours, theirs = (outputs(m, row, k, biased=True) for m, k in ((model, "flex"), (reference, "sdpa")))
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a.logps, b.logps, atol=logp_tol, rtol=0.02)
        assert_same_gradients(model, reference, functional(ours), functional(theirs), grad_tol)


def test_rollouts_and_gradient_checkpointing():
    from ral.attention import prepare_prompt

    model = tiny_model().cuda()
    prepared = [prepare_prompt(model, on_gpu(prompt(kind))) for kind in ("image", "text")]
    generators = [torch.Generator().manual_seed(i) for i in range(len(prepared))]
    groups = sample(model, prepared, 4, Sampling(6, (EOS,)), generators)
    assert all(1 <= len(c.ids) <= 6 for group in groups for c in group)
    plain = forward_group(model, on_gpu(prompt("image")), [c.ids for c in groups[0]])
    model.train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    checkpointed = forward_group(model, on_gpu(prompt("image")), [c.ids for c in groups[0]])
    torch.testing.assert_close(plain.attention, checkpointed.attention, atol=1e-5, rtol=0)


def test_rollouts_by_graphs_and_flash_kernels_are_those_without(monkeypatch):
    """In bfloat16, at which flash kernels work; logits of the two ways differ by its rounding, likeliest tokens hardly ever."""
    from ral.attention import flash, prepare_prompt
    from ral.rollouts import graphs

    model = tiny_model(hidden_size=64, initializer_range=0.1).to("cuda", torch.bfloat16)
    inputs = [
        on_gpu(prompt(kind, seed=i, words=5 + 9 * i)) for i, kind in enumerate(("image", "text", "images", "text"))
    ]
    for one in inputs:
        if "pixel_values" in one:
            one["pixel_values"] = one["pixel_values"].bfloat16()
    prepared = [prepare_prompt(model, one) for one in inputs]
    replayed, recorded = [], graphs._Graph.replay
    monkeypatch.setattr(graphs._Graph, "replay", lambda self, batch: replayed.append(1) or recorded(self, batch))
    greedy = Sampling(40, (EOS,), temperature=0)

    def tokens():
        return [c.ids for group in sample(model, prepared, 3, greedy, rows=9) for c in group]

    fast = tokens()
    assert len(replayed) > 30, "nearly every step is replayed"
    assert flash.usable(torch.zeros(1, 2, 4, 16, device="cuda", dtype=torch.bfloat16))
    monkeypatch.setattr(flash, "usable", lambda values: False)
    monkeypatch.setattr(graphs.Steps, "_recorded", lambda self, batch: None)
    slow = tokens()
    same = [int((a[: len(b)] == b[: len(a)]).long().cumprod(0).sum()) / len(b) for a, b in zip(fast, slow, strict=True)]
    assert sum(same) / len(same) > 0.7


def test_memory_is_a_fraction_of_eager_attention():
    model = tiny_model(num_hidden_layers=4).cuda()
    inputs, ys = on_gpu(prompt("text", words=2000)), [y.cuda() for y in completions((32,) * 8)]

    def peak(run) -> int:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        model.zero_grad()
        return torch.cuda.max_memory_allocated() - before

    def ours():
        out = forward_group(model, inputs, ys)
        (out.logps.sum() + out.attention.square().sum()).backward()

    def eager():
        logps, rows = ordinary(model_eager, inputs, ys)
        (sum(x.sum() for x in logps) + sum(x.square().sum() for x in rows)).backward()

    model_eager = twin(model)
    assert peak(ours) * 5 < peak(eager)
