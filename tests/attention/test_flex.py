"""FlexAttention on a packed row against SDPA block by block: the same outputs, attention rows and gradients."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn.attention import flex_attention as torch_flex

from ral.attention import GroupOutput, flex, forward_group, forward_groups, prepare_prompt
from ral.attention.flex import FlexRow, KernelError, refuse_untrainable
from ral.attention.layout import GroupLayout, PackedLayout
from ral.attention.packed import KERNELS
from ral.attention.sight import Sight
from tests.attention.test_forward import assert_same_gradients
from tests.attention.test_layout import CPU, GROUPS, labels
from tests.tiny import completions, prompt, tiny_model

#: Prompts of a row and the lengths of their completions; the second case has blocks of several completions in SDPA.
ROWS = {
    "one group": [("image", (5, 3, 7))],
    "several groups": [("images", (1, 2, 1, 6)), ("text", (3, 1)), ("video", (4, 4))],
}


@pytest.fixture
def backward_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lifts torch's refusal of a backward pass on CPU: the mathematics of its reference has one, its kernels do not."""
    monkeypatch.setattr(torch_flex, "_validate_device", lambda *tensors: None)


def outputs(model: nn.Module, row: list[tuple[str, tuple[int, ...]]], kernel: str, biased: bool) -> list[GroupOutput]:
    """Every layer's rows; `biased`: all groups but the second are under a look bias, in the last two layers of three."""
    prompts = [prepare_prompt(model, prompt(kind, seed=i)) for i, (kind, _) in enumerate(row)]
    ys = [completions(lengths, seed=i) for i, (_, lengths) in enumerate(row)]
    generator = torch.Generator().manual_seed(7)
    bias = [
        None if i == 1 else 2 * torch.randn(len(y), len(p.input_ids), generator=generator)
        for i, (p, y) in enumerate(zip(prompts, ys, strict=True))
    ]
    looks = {"look_bias": bias, "bias_layers": (1, 2)} if biased else {}
    return forward_groups(model, prompts, ys, layers=(0, 1, 2), kernel=kernel, **looks)


def functional(outputs: list[GroupOutput]) -> Tensor:
    """A number that every log-probability and every attention weight moves."""
    generator = torch.Generator().manual_seed(3)
    values = [x for output in outputs for x in (output.logps, *output.layers.values())]
    return torch.stack([(x * torch.randn(x.shape, generator=generator).to(x.device)).sum() for x in values]).sum()


@torch.no_grad()
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_flex_equals_sdpa(row, biased):
    model = tiny_model()
    for ours, theirs in zip(*(outputs(model, row, kernel, biased) for kernel in ("flex", "sdpa")), strict=True):
        torch.testing.assert_close(ours.logps, theirs.logps, atol=1e-5, rtol=0)
        for layer, rows in theirs.layers.items():
            torch.testing.assert_close(ours.layers[layer], rows, atol=1e-6, rtol=0)


@pytest.mark.parametrize("adapted", [False, True], ids=["full", "lora and checkpoints"])
def test_gradients_equal_those_of_sdpa(adapted, backward_on_cpu):
    model: nn.Module = tiny_model()
    if adapted:
        torch.manual_seed(0)
        lora = LoraConfig(r=4, target_modules=["q_proj", "k_proj", "v_proj"], init_lora_weights=False)
        model = get_peft_model(model, lora)
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.train()
    reference = copy.deepcopy(model)
    row = ROWS["several groups"]
    ours, theirs = functional(outputs(model, row, "flex", True)), functional(outputs(reference, row, "sdpa", True))
    assert_same_gradients(model, reference, ours, theirs, 1e-4)


@given(GROUPS)
@settings(max_examples=40, deadline=None)
def test_a_token_sees_its_prompt_and_its_own_past(groups: tuple[GroupLayout, ...]) -> None:
    layout = PackedLayout(groups)
    tokens = labels(layout)
    place = torch.arange(len(tokens))
    seen = FlexRow.of(layout, CPU).seen.mask_mod(place, place, place[:, None], place[None, :])
    expected = [
        [k[0] == q[0] and ((k[1] == q[1] and k[2] <= q[2]) or (k[1] == -1 and q[1] != -1)) for k in tokens]
        for q in tokens
    ]
    assert seen.tolist() == expected


@given(GROUPS)
@settings(max_examples=40, deadline=None)
def test_the_bias_is_added_on_the_prompt_of_its_own_completion(groups: tuple[GroupLayout, ...]) -> None:
    biases = [None if i == 1 else torch.rand(len(g.lengths), g.prompt_length) for i, g in enumerate(groups)]
    layout = PackedLayout(groups, biases)
    tokens = labels(layout)
    place = torch.arange(len(tokens))
    row = FlexRow.of(layout, CPU)
    assert row.bias is not None
    added = row.bias(torch.zeros(()), place, place, place[:, None], place[None, :])
    for i, (group, completion, _) in enumerate(tokens):
        for j, (of, sequence, offset) in enumerate(tokens):
            if of != group:
                continue  # nobody sees it
            bias = biases[group]
            touched = bias is not None and completion >= 0 and sequence == -1
            assert added[i, j] == (bias[completion, offset] if touched else 0)


def test_rows_of_other_lengths_are_not_compiled_anew(monkeypatch):
    """Twelve lengths, each with and without a bias, are two kernels and the special cases that torch makes of them."""
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph

    dynamic = torch.compile(torch_flex.flex_attention, dynamic=True, backend=backend)
    monkeypatch.setattr(
        flex, "_on", lambda device, function: dynamic if function is torch_flex.flex_attention else function
    )
    generator = torch.Generator().manual_seed(0)
    for words in range(150, 450, 25):
        group = GroupLayout(words, (words // 9, words // 7))
        bias = torch.randn(2, words, generator=generator)
        layout = PackedLayout((group,), [bias], bias_layers=(1,))
        q, k, v = (torch.randn(1, heads, layout.total, 8, generator=generator) for heads in (4, 2, 2))
        for layer in (0, 1):
            kernels = (KERNELS[x](layout, CPU) for x in ("flex", "sdpa"))
            ours, theirs = (attend(layer, q, k, v, scale=0.3, dropout_p=0.0) for attend in kernels)
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    assert 2 <= len(compiled) <= 4


def test_what_flex_cannot_do_is_refused():
    model, inputs, ys = tiny_model(), prompt("image"), completions()
    with pytest.raises(
        NotImplementedError, match="does not support backward on CPU"
    ):  # if not, `refuse_untrainable` is out of date
        forward_group(model, inputs, ys, kernel="flex")
    with pytest.raises(KernelError, match="no backward pass on CPU; set attention_kernel to sdpa"):
        refuse_untrainable(CPU)
    layout = PackedLayout((GroupLayout(3, (2,)),))
    x = torch.randn(1, 2, layout.total, 8)
    with pytest.raises(ValueError, match="no dropout, but the model asks for"):
        KERNELS["flex"](layout, CPU)(0, x, x, x, scale=1.0, dropout_p=0.1)
    with pytest.raises(KernelError, match=r"no sliding window.*attention_kernel to sdpa"):
        KERNELS["flex"](layout, CPU)(0, x, x, x, sight=Sight(window=4), scale=1.0, dropout_p=0.0)
    KERNELS["flex"](layout, CPU)(0, x, x, x, sight=Sight(window=5), scale=1.0, dropout_p=0.0)
    seeing = PackedLayout((GroupLayout(3, (2,), torch.tensor([-1, 0, 0])),))
    with pytest.raises(KernelError, match="image tokens that see each other"):
        KERNELS["flex"](seeing, CPU)(0, x, x, x, scale=1.0, dropout_p=0.0)
