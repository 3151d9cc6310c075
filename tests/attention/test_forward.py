"""Parity of the packed forward with the model run the ordinary way, one completion at a time, with eager attention."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import BloomConfig, BloomForCausalLM

from ral.attention import UnsupportedModelError, forward, forward_group, forward_groups, prepare_prompt
from tests.families.trained import as_trained
from tests.tiny import IMAGE, TEXT_KINDS, VISION_KINDS, completions, prompt, tiny_model, twin


def ordinary(
    model, inputs, ys: list[Tensor], query: str = "token", layer: int = -1
) -> tuple[list[Tensor], list[Tensor]]:
    """Log-probs `[R_g]` and policy rows `[R_g, P+R_g]` of every completion from `output_attentions=True`."""
    logps, rows = [], []
    prompt_length = inputs["input_ids"].shape[1]
    for y in ys:
        full = {**inputs, "input_ids": torch.cat([inputs["input_ids"], y[None]], dim=1)}
        full["attention_mask"] = torch.ones_like(full["input_ids"])
        if "mm_token_type_ids" in full:
            full["mm_token_type_ids"] = torch.nn.functional.pad(inputs["mm_token_type_ids"], (0, len(y)))
        out = model(**as_trained(model.config, full), output_attentions=True, use_cache=False)
        lp = out.logits[0, prompt_length - 1 : -1].float().log_softmax(-1).gather(-1, y[:, None])[:, 0]
        mean = out.attentions[layer][0].float().mean(0)
        p = []
        for t in range(prompt_length, prompt_length + len(y)):
            row = mean[t if query == "token" else t - 1]
            earlier = row * (torch.arange(len(row), device=row.device) < t)
            p.append(earlier / earlier.sum())
        logps.append(lp)
        rows.append(torch.stack(p))
    return logps, rows


def assert_parity(model, reference, inputs, ys, query="token", layer=-1, logp_tol=1e-5, row_tol=1e-6, grad_tol=1e-4):
    """Forward values and the gradient of a functional of both outputs."""
    out = forward_group(model, inputs, ys, attention_query=query, attention_layers=[layer])
    logps, rows = ordinary(reference, inputs, ys, query, layer)
    prompt_length = inputs["input_ids"].shape[1]
    generator = torch.Generator().manual_seed(3)
    ours, theirs = torch.zeros(()), torch.zeros(())
    for g, y in enumerate(ys):
        n = len(y)
        assert out.mask[g].tolist() == [True] * n + [False] * (out.mask.shape[1] - n)
        torch.testing.assert_close(out.logps[g, :n], logps[g], atol=logp_tol, rtol=0)
        torch.testing.assert_close(out.attention[g, :n, : prompt_length + n], rows[g], atol=row_tol, rtol=0)
        assert not out.attention[g, :n, prompt_length + n :].any()
        assert not out.attention[g, n:].any()
        a, b = torch.randn(n, generator=generator), torch.randn(rows[g].shape, generator=generator)
        ours = ours + (out.logps[g, :n] * a).sum() + (out.attention[g, :n, : prompt_length + n] * b).sum()
        theirs = theirs + (logps[g] * a).sum() + (rows[g] * b).sum()
    assert_same_gradients(model, reference, ours, theirs, grad_tol)


def assert_same_gradients(model, reference, ours: Tensor, theirs: Tensor, tolerance: float) -> None:
    names = [n for n, p in model.named_parameters() if p.requires_grad]
    for m, loss in ((model, ours), (reference, theirs)):
        m.zero_grad()
        loss.backward()
    a, b = (dict(m.named_parameters()) for m in (model, reference))
    scale = torch.cat([b[n].grad.flatten() for n in names if b[n].grad is not None]).norm()
    checked = 0
    for n in names:
        if b[n].grad is None:
            assert a[n].grad is None or not a[n].grad.any(), n
            continue
        assert (a[n].grad - b[n].grad).norm() <= tolerance * max(b[n].grad.norm(), 1e-3 * scale), n
        checked += 1
    assert checked > 10


@pytest.mark.parametrize("media", ["image", "images", "video", "mixed", "text"])
@pytest.mark.parametrize("kind", VISION_KINDS)
def test_parity_with_eager_attention_on_vision_models(kind, media):
    model = tiny_model(kind)
    assert_parity(model, twin(model), prompt(media, model=kind), completions())


@pytest.mark.parametrize("kind", TEXT_KINDS)
def test_parity_with_eager_attention_on_text_models(kind):
    model = tiny_model(kind)
    assert_parity(model, twin(model), prompt("text"), completions())


@pytest.mark.parametrize("lengths", [(1,), (6,), (1, 1), (5, 3, 7, 1, 2, 4, 6, 5)])
def test_parity_for_group_sizes_and_unequal_lengths(lengths):
    model = tiny_model()
    assert_parity(model, twin(model), prompt("image"), completions(lengths))


@pytest.mark.parametrize("layer", [0, 1, -1])
@pytest.mark.parametrize("query", ["token", "predictor"])
def test_parity_for_layers_and_queries(layer, query):
    model = tiny_model()
    assert_parity(model, twin(model), prompt("image"), completions(), query=query, layer=layer)


@pytest.mark.parametrize("reentrant", [False, True])
def test_parity_under_gradient_checkpointing(reentrant):
    model = tiny_model()
    reference = twin(model)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    model.enable_input_require_grads()  # a reentrant checkpoint needs an input with a gradient
    model.train()
    assert_parity(model, reference, prompt("image"), completions())
    assert model.get_decoder().layers[-1].gradient_checkpointing, "the exemption must not outlive the call"


def test_parity_with_lora():
    model = tiny_model()
    reference = twin(model)
    lora = LoraConfig(r=4, target_modules=["q_proj", "k_proj", "v_proj", "gate_proj"], init_lora_weights=False)
    torch.manual_seed(0)
    model = get_peft_model(model, lora)
    torch.manual_seed(0)
    reference = get_peft_model(reference, lora)
    reference.load_state_dict(model.state_dict())
    assert_parity(model, reference, prompt("image"), completions())


def test_parity_in_bfloat16():
    model = tiny_model(initializer_range=0.1).bfloat16()
    inputs, ys = prompt("image"), completions()
    out = forward_group(model, inputs, ys)
    logps, rows = ordinary(twin(model), inputs, ys)
    assert out.logps.dtype == out.attention.dtype == torch.float32
    for g, y in enumerate(ys):
        torch.testing.assert_close(out.logps[g, : len(y)], logps[g], atol=0.08, rtol=0.05)
        torch.testing.assert_close(out.attention[g, : len(y), : rows[g].shape[1]], rows[g], atol=0.02, rtol=0)


def test_parity_with_chunks_smaller_than_everything(monkeypatch):
    """Log-probs and rows chunked down to one token at a time, with recomputation in the backward pass."""
    from ral.attention import rows

    monkeypatch.setattr(forward, "LOGIT_CHUNK_ELEMENTS", 150)
    monkeypatch.setattr(rows, "CHUNK_ELEMENTS", 100)
    model = tiny_model()
    assert_parity(model, twin(model), prompt("image"), completions())


def test_permuting_completions_permutes_the_result():
    model, inputs, ys = tiny_model(), prompt("image"), completions()
    order = [2, 0, 1]
    out = forward_group(model, inputs, ys)
    permuted = forward_group(model, inputs, [ys[i] for i in order])
    torch.testing.assert_close(permuted.logps, out.logps[order], atol=1e-6, rtol=0)
    prompt_length = inputs["input_ids"].shape[1]
    torch.testing.assert_close(
        permuted.attention[..., :prompt_length], out.attention[order][..., :prompt_length], atol=1e-7, rtol=0
    )


def test_a_compiled_model_gives_the_same_and_is_not_compiled_for_every_length():
    """The first row is compiled for its length, the second for all lengths."""
    compiled: list[torch.fx.GraphModule] = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph

    model, inputs = tiny_model("qwen2", num_hidden_layers=2), prompt("text")
    reference = twin(model, "sdpa")
    quick = torch.compile(model, backend=backend)
    counts = []
    for seed, lengths in enumerate([(5, 3), (9, 4), (20, 1), (1, 2)]):
        ys = completions(lengths, seed=seed)
        ours, theirs = forward_group(quick, inputs, ys), forward_group(reference, inputs, ys)
        torch.testing.assert_close(ours.logps, theirs.logps, atol=1e-5, rtol=0)
        torch.testing.assert_close(ours.attention, theirs.attention, atol=1e-6, rtol=0)
        counts.append(len(compiled))
    losses = (out.logps.sum() + out.attention.square().sum() for out in (ours, theirs))
    assert_same_gradients(model, reference, *losses, 1e-4)
    assert 0 < counts[0] < counts[1] == counts[-1]


def test_groups_in_one_row_equal_groups_alone():
    """Several prompts of different kinds packed into one row: nothing crosses a group."""
    model = tiny_model()
    kinds, lengths = ("image", "text", "video", "images"), ((2, 4), (3, 1), (5, 5), (1, 6))
    inputs = [prompt(kind, seed=i) for i, kind in enumerate(kinds)]
    ys = [completions(n, seed=i) for i, n in enumerate(lengths)]
    together = forward_groups(model, [prepare_prompt(model, i) for i in inputs], ys)
    for got, i, y in zip(together, inputs, ys, strict=True):
        alone = forward_group(model, i, y)
        torch.testing.assert_close(got.logps, alone.logps, atol=1e-5, rtol=0)
        torch.testing.assert_close(got.attention, alone.attention, atol=1e-6, rtol=0)


def test_padding_in_the_prompt_changes_nothing():
    model, inputs, ys = tiny_model(), prompt("image"), completions()
    padded = dict(inputs)
    for name in ("input_ids", "attention_mask", "mm_token_type_ids"):
        padded[name] = torch.nn.functional.pad(inputs[name], (4, 0), value=7 if name == "input_ids" else 0)
    torch.testing.assert_close(forward_group(model, padded, ys).logps, forward_group(model, inputs, ys).logps)


def test_entropy_and_temperature():
    model, inputs, ys = tiny_model(), prompt("image"), completions((4,))
    out = forward_group(model, inputs, ys, temperature=0.7)
    full = {**inputs, "input_ids": torch.cat([inputs["input_ids"], ys[0][None]], dim=1)}
    full["attention_mask"] = torch.ones_like(full["input_ids"])
    full["mm_token_type_ids"] = torch.nn.functional.pad(inputs["mm_token_type_ids"], (0, 4))
    p = torch.distributions.Categorical(logits=twin(model)(**full).logits[0, -5:-1] / 0.7)
    torch.testing.assert_close(out.logps[0], p.log_prob(ys[0]), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.entropy[0], p.entropy(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("query", ["token", "predictor"])
def test_look_bias_is_added_to_the_logits_of_completion_queries(query):
    """A bias of -inf-like size on a prompt position removes it from every completion row, and only from those."""
    model, inputs, ys = tiny_model(), prompt("image"), completions((4, 4))
    bias = torch.zeros(2, inputs["input_ids"].shape[1])
    bias[1, 3] = -1e4
    plain, biased = (
        forward_group(model, inputs, ys, attention_query=query),
        forward_group(model, inputs, ys, attention_query=query, look_bias=bias),
    )
    torch.testing.assert_close(biased.attention[0], plain.attention[0])
    first = 1 if query == "predictor" else 0  # the first predictor is a prompt token
    assert not biased.attention[1, first:, 3].any()
    assert (plain.attention[1, :, 3] > 0).all()
    if query == "predictor":
        torch.testing.assert_close(biased.attention[1, 0], plain.attention[1, 0])


def test_a_look_bias_reaches_the_layers_it_is_meant_for():
    """Below the first biased layer nothing changes; from it on, everything does."""
    model, inputs, ys = tiny_model(), prompt("image"), completions((4, 4))
    base = [prepare_prompt(model, inputs)], [ys]
    bias = [torch.randn(2, inputs["input_ids"].shape[1], generator=torch.Generator().manual_seed(0))]
    (plain,) = forward_groups(model, *base, layers=(0, 1, 2))
    (middle,) = forward_groups(model, *base, layers=(0, 1, 2), look_bias=bias, bias_layers=(-2,))
    assert torch.equal(plain.layers[0], middle.layers[0])
    assert all((plain.layers[layer] - middle.layers[layer]).abs().max() > 1e-3 for layer in (1, 2))
    (every,) = forward_groups(model, *base, look_bias=bias, bias_layers=(0, 1, 2))
    (default,) = forward_groups(model, *base, look_bias=bias)
    assert torch.equal(every.logps, default.logps)


def test_trainable_vision_tower_gets_its_gradient():
    model, inputs, ys = tiny_model(), prompt("image"), completions()
    forward_group(model, inputs, ys).logps.sum().backward()
    assert model.model.visual.patch_embed.proj.weight.grad.norm() > 0
    model.model.visual.requires_grad_(False)
    assert prepare_prompt(model, inputs).features is not None


def test_refusals():
    with pytest.raises(UnsupportedModelError, match=r"BloomForCausalLM .*AttentionInterface"):
        forward_group(BloomForCausalLM(BloomConfig(hidden_size=8, n_layer=1, n_head=1)), prompt("text"), completions())
    model = tiny_model()
    inputs = prompt("image")
    with pytest.raises(ValueError, match="one prompt"):
        forward_group(model, {"input_ids": torch.zeros(2, 3, dtype=torch.long)}, completions())
    with pytest.raises(ValueError, match="5 image tokens but the model expects 6"):
        forward_group(
            model,
            {
                **inputs,
                "input_ids": inputs["input_ids"].clone().index_fill_(1, torch.tensor([8]), 3),
            },
            completions(),
        )
    with pytest.raises(ValueError, match="visual placeholder"):
        forward_group(model, inputs, [torch.tensor([1, IMAGE])])
    with pytest.raises(ValueError, match="empty"):
        forward_group(model, inputs, [torch.tensor([], dtype=torch.long)])
    with pytest.raises(ValueError, match="a layer twice"):
        forward_groups(model, [prepare_prompt(model, inputs)], [completions()], layers=(2, -1))
    with pytest.raises(ValueError, match="3 decoder layers"):
        forward_group(model, inputs, completions(), attention_layers=[5])
