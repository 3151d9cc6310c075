"""One row per completion gives what one packed row per group gives, also under a bias of each prompt's own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ral.attention import GroupOutput, forward_groups, prepare_prompt
from tests.tiny import completions, prompt, tiny_model


@pytest.mark.parametrize("layers", [None, [1]])
def test_a_bias_moves_the_rows_of_its_own_prompt(layers: list[int] | None) -> None:
    model = tiny_model("llama")
    prompts = [prepare_prompt(model, prompt("text", seed=i, words=words)) for i, words in enumerate((5, 9, 7))]
    groups = [completions([4, 2, 3][: i + 1], seed=i) for i in range(3)]
    drawn = torch.Generator().manual_seed(0)
    biases = [
        3 * torch.randn(len(ys), len(p.input_ids), generator=drawn) for p, ys in zip(prompts, groups, strict=True)
    ]

    def found(repeated: bool, bias: list[Tensor | None]) -> list[GroupOutput]:
        return forward_groups(
            model, prompts, groups, layers=(0, -1), look_bias=bias, bias_layers=layers, repeated=repeated
        )

    for bias in (biases, [None, biases[1], None]):
        for packed, rows in zip(found(False, bias), found(True, bias), strict=True):
            torch.testing.assert_close(rows.logps, packed.logps, atol=1e-5, rtol=0)
            for layer, expected in packed.layers.items():
                torch.testing.assert_close(rows.layers[layer], expected, atol=1e-6, rtol=0)
    plain, only = found(True, [None] * 3), found(True, [None, biases[1], None])
    moved = [float((a.logps - b.logps).detach().abs().max()) > 1e-3 for a, b in zip(plain, only, strict=True)]
    assert moved == [False, True, False]


@pytest.mark.parametrize("repeated", [False, True])
def test_further_statistics_of_a_token_stand_beside_its_log_probability(repeated: bool) -> None:
    model = tiny_model("llama")
    prompts = [prepare_prompt(model, prompt("text", seed=i)) for i in range(2)]
    groups = [completions([3, 1], seed=i) for i in range(2)]
    outputs = forward_groups(
        model, prompts, groups, layers=(), repeated=repeated,
        token_statistics=lambda logits, hidden, rows: {"largest": logits.log_softmax(-1).amax(-1)},
    )  # fmt: skip
    for output in outputs:
        assert output.extra.keys() == {"largest"}
        assert (output.extra["largest"] >= output.logps)[output.mask].all()
        assert not output.extra["largest"][~output.mask].any()
        assert (output.extra["largest"] < 0)[output.mask].all()
