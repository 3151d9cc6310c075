"""One architecture of each way of running a group, against transformers' eager attention; `experiments.families` has them all."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch
from experiments.families.check import (
    PAGE,
    TOLERANCES,
    completions,
    differences,
    gradients_apart,
    read,
    rollout_is_exact,
    way_of,
    with_table,
)
from experiments.families.zoo import KINDS, tiny
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import PreTrainedModel

from ral.attention import forward_group, forward_groups, prepare_prompt
from ral.attention.models import attention_layers, make_capturable, repeat_prompts, resolve_layers, why_repeated
from ral.attention.sight import Sight
from ral.errors import ConfigError
from ral.families import family_of, known_types, registry
from ral.rollouts.sampling import Sampling, sample

#: An architecture of each way, and what is special about it.
SHOWN = {
    "gemma3": "packed",  # windows in some layers; the tokens of an image see each other
    "llama4": "packed",  # chunks, experts
    "paligemma": "packed",  # everything in a prompt sees everything in it
    "deepseek_v3": "packed",  # compressed keys, experts, values of another width than keys
    "granite": "packed",  # logits divided behind the head
    "gemma4_text": "packed",  # logits capped behind the head, keys shared between layers
    "qwen3_5": "forked",  # gated delta rule, images
    "nemotron_h": "forked",  # Mamba, and layers that are neither
    "lfm2": "forked",  # short convolutions
    "gemma2": "repeated",  # capped scores
    "gpt_oss": "repeated",  # sinks
    "gpt2": "repeated",  # no family knows it
}


@pytest.mark.parametrize(("kind", "way"), SHOWN.items())
def test_it_is_what_transformers_computes(kind: str, way: str) -> None:
    model, inputs = tiny(kind)
    found = differences(model, inputs)
    assert way_of(model) == way
    assert {name: value for name, value in found.items() if value > 2 * TOLERANCES[name]} == {}


@pytest.mark.parametrize("kind", ["gemma3_text", "llama4", "qwen3_5_text", "falcon_h1", "lfm2", "gemma2", "gpt2"])
def test_rollouts_are_a_full_forward_per_token(kind: str) -> None:
    assert rollout_is_exact(*tiny(kind))


@pytest.mark.parametrize("kind", ["qwen3_5_text", "gemma2"])
def test_prompts_that_enter_as_rows_end_change_no_completion(kind: str) -> None:
    """Parts of different lengths in one batch: their states are joined for a step, or their caches take a pass each."""
    model, _ = tiny(kind)
    drawn = torch.Generator().manual_seed(0)
    prompts = [
        prepare_prompt(model, {"input_ids": torch.randint(0, 80, (1, length), generator=drawn)})
        for length in (5, 19, 11, 8)
    ]
    sampling = Sampling(12, (99, *range(25)), temperature=1.5)  # many ends

    def found(rows: int | None) -> list[list[list[int]]]:
        generators = [torch.Generator().manual_seed(i) for i in range(len(prompts))]
        return [[y.ids.tolist() for y in group] for group in sample(model, prompts, 3, sampling, generators, rows=rows)]

    assert found(4) == found(7) == found(None)


def test_the_table_is_of_every_known_architecture_and_exact() -> None:
    lines = read()
    assert [line.kind for line in lines] == list(KINDS)
    assert set(known_types()) <= set(KINDS)
    assert all(line.exact for line in lines), "run python -m experiments.families.check"
    assert len(lines) >= 55
    assert sum(line.way != "repeated" for line in lines) >= 45
    for line in lines:
        model, _ = tiny(line.kind)
        family = family_of(model.config)
        assert line.images == ("image" in family.placeholders(model.config))
        assert (line.video, line.geometry) == (family.reads_video, family.has_geometry)
        assert (line.way == "repeated") == (why_repeated(model) is not None)


def test_the_page_shows_the_table_as_it_was_written() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert with_table(page, read()) == page


def test_the_pages_example_makes_an_unknown_architecture_share_its_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    [example] = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    assert len(example.splitlines()) <= 30
    model, inputs = tiny("gpt2")
    assert way_of(model) == "repeated"
    monkeypatch.setattr(registry, "_BY_TYPE", dict(registry._BY_TYPE))
    exec(example, {"__name__": "mine"})
    assert way_of(model) == "packed"
    found = differences(model, inputs)
    assert {name: value for name, value in found.items() if value > TOLERANCES[name]} == {}
    assert rollout_is_exact(*tiny("gpt2"))


# --- windows and chunks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sight", "seen"),
    [(Sight(window=3), [3, 4, 5]), (Sight(chunk=4), [4, 5]), (Sight(window=9), [0, 1, 2, 3, 4, 5])],
)
def test_what_token_five_sees(sight: Sight, seen: list[int]) -> None:
    keys = torch.arange(6)
    hidden = sight.hides(torch.tensor(5), keys)
    assert keys[~hidden].tolist() == seen
    assert sight.reaches(6) == (seen == keys.tolist())


# --- layers that have no attention --------------------------------------------------------------------------------


def test_minus_one_is_the_last_layer_that_has_attention() -> None:
    """Nemotron-H: Mamba, attention, experts, Mamba. Granite's hybrid: Mamba and attention in turn."""
    nemotron, granite = (make_capturable(tiny(kind)[0]) for kind in ("nemotron_h", "granitemoehybrid"))
    assert attention_layers(nemotron) == [1]
    assert resolve_layers(nemotron, [-1]) == (1,)
    assert resolve_layers(granite, [-1, -2]) == (3, 1)
    with pytest.raises(ConfigError, match=r"contains 2, a layer without attention; those with it are \[1\]"):
        resolve_layers(nemotron, [2])
    with pytest.raises(ConfigError, match="contains -2, but the model has 4 decoder layers, 1 of them with attention"):
        resolve_layers(nemotron, [-2])


# --- forked state -------------------------------------------------------------------------------------------------


def step(model: Any, base: PreTrainedModel, inputs: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
    out = forward_group(model, inputs, completions())
    weights = torch.linspace(-1, 1, out.logps.numel()).view_as(out.logps)
    ((out.logps * weights).sum() + (out.attention**2).sum()).backward()
    return out.logps.detach(), {name: p.grad for name, p in base.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", ["qwen3_5_text", "falcon_h1"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_changes_nothing(kind: str, reentrant: bool) -> None:
    plain, inputs = tiny(kind)
    kept = copy.deepcopy(plain)
    kept.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    kept.enable_input_require_grads()
    kept.train()
    logps, _ = step(plain, plain, inputs)
    again, _ = step(kept, kept, inputs)
    torch.testing.assert_close(again, logps, atol=1e-5, rtol=0)
    assert gradients_apart(kept, plain) < 1e-4


def test_a_copy_is_its_own_and_an_adapter_gets_the_states_gradient() -> None:
    model, inputs = tiny("qwen3_5_text")
    before = forward_group(model, inputs, completions()).logps.detach()
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    assert torch.equal(forward_group(twin, inputs, completions()).logps, before)
    torch.manual_seed(0)
    adapted: Any = get_peft_model(twin, LoraConfig(r=2, target_modules=["in_proj_qkv", "q_proj"]))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
    shared, apart = copy.deepcopy(adapted), copy.deepcopy(adapted)
    repeat_prompts(apart)
    assert (why_repeated(shared), why_repeated(apart)) == (None, "its packed row differs")
    logps, _ = step(shared, shared, inputs)
    again, _ = step(apart, apart, inputs)
    torch.testing.assert_close(again, logps, atol=1e-5, rtol=0)
    assert gradients_apart(shared, apart) < 1e-4
    assert any(
        "lora_A" in name and "in_proj_qkv" in name and p.grad.any()
        for name, p in shared.named_parameters()
        if p.grad is not None
    )


@pytest.mark.parametrize("kind", ["gemma3", "qwen3_5", "gpt2"])
def test_groups_of_one_row_do_not_see_each_other(kind: str) -> None:
    model, first = tiny(kind)
    _, second = tiny(kind)
    second = second | {"input_ids": second["input_ids"].roll(1, dims=1)} if kind == "gpt2" else second
    prompts, ys = [prepare_prompt(model, one) for one in (first, second)], [completions(), completions((2, 6))]
    for together, inputs, group in zip(forward_groups(model, prompts, ys), (first, second), ys, strict=True):
        alone = forward_group(model, inputs, group)
        torch.testing.assert_close(together.logps, alone.logps, atol=1e-5, rtol=0)
        torch.testing.assert_close(together.attention, alone.attention, atol=1e-6, rtol=0)


# --- repeated -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("query", ["token", "predictor"])
def test_the_repeated_way_is_the_packed_one_with_a_look_bias_too(query: Any) -> None:
    model, inputs = tiny("mistral")
    length = inputs["input_ids"].shape[1]
    bias = [torch.randn(3, length, generator=torch.Generator().manual_seed(0))]
    how: dict[str, Any] = {"layers": (0, -1), "query": query, "look_bias": bias, "bias_layers": (-1,), "per_head": True}
    prompts = [prepare_prompt(model, inputs)]
    (packed,), (apart,) = (forward_groups(model, prompts, [completions()], repeated=r, **how) for r in (False, True))
    torch.testing.assert_close(apart.logps, packed.logps, atol=1e-5, rtol=0)
    torch.testing.assert_close(apart.entropy, packed.entropy, atol=1e-5, rtol=0)
    for layer in (0, 3):
        torch.testing.assert_close(apart.layers[layer], packed.layers[layer], atol=1e-6, rtol=0)
        torch.testing.assert_close(apart.alpha(layer), packed.alpha(layer), atol=1e-6, rtol=0)
        seen = packed.mask[None, ..., None]
        torch.testing.assert_close(apart.heads[layer] * seen, packed.heads[layer] * seen, atol=1e-6, rtol=0)


def test_a_look_bias_is_sampled_under_alike() -> None:
    shared, inputs = tiny("mistral")
    apart, _ = tiny("mistral")
    repeat_prompts(apart)
    bias = [5 * torch.randn(2, inputs["input_ids"].shape[1], generator=torch.Generator().manual_seed(0))]
    greedy = Sampling(10, (99,), temperature=0)
    found = [
        [y.ids.tolist() for y in sample(model, [prepare_prompt(model, inputs)], 2, greedy, look_bias=bias)[0]]
        for model in (shared, apart)
    ]
    assert found[0] == found[1]
    assert found[0][0] != found[0][1], "each completion feels its own bias"
