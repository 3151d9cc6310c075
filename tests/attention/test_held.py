"""What a layer is said to hold is what the prompt of a rollout leaves in it."""

from __future__ import annotations

import pytest
import torch
from experiments.families.zoo import tiny

from ral.attention import prepare_prompt
from ral.attention.held import Held, held_by_layers
from ral.attention.models import make_capturable
from ral.rollouts.batch import Entry, prefill


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "qwen3_5", "falcon_h1", "deepseek_v3", "gemma4", "qwen3_vl_moe"])
def test_it_is_what_rollouts_hold(kind: str) -> None:
    """Keys and values of 1 and 2 tokens differ by those of a token; states are the same."""
    model, _ = tiny(kind)
    make_capturable(model)
    prompts = [prepare_prompt(model, {"input_ids": torch.arange(1, n)[None]}) for n in (5, 6)]
    with torch.no_grad():
        short, long = (prefill(model, [Entry(i, prompts[i])], 2, 4, None, False).prefix for i in (0, 1))
    for layer, held in enumerate(held_by_layers(model)):
        keys, values = (
            [p.layers[layer][part].numel() if layer in p.layers else 0 for p in (short, long)] for part in (0, 1)
        )
        states = short.states.get(layer)
        numbers = (
            0 if states is None else sum(x[0].numel() for x in (*states.conv.values(), *states.recurrent.values()))
        )
        assert held == Held(keys[1] - keys[0], values[1] - values[0], numbers)


def test_three_of_four_layers_of_a_hybrid_hold_a_state_and_no_token() -> None:
    held = held_by_layers(tiny("qwen3_5_text")[0])
    # 2 + 2 heads of 8 for queries and keys and 4 of 8 for values, four columns of them; 4 heads of 8 × 8.
    assert held == (*[Held(state=64 * 4 + 4 * 8 * 8)] * 3, Held(keys=16, values=16))
