"""The map at the row that predicts the answer, against eager attention; and which row that is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from experiments.families.zoo import tiny
from transformers import PreTrainedModel

from ral.attention import prepare_prompt
from ral.data.spans import answer_token
from ral.evaluate.looking import look
from ral.testbed.model import build_processor
from tests.families.trained import as_trained
from tests.tiny import IMAGE, VIDEO, VISION_KINDS, completions, prompt, tiny_model, twin


def eager_row(model: PreTrainedModel, inputs: dict, ids: torch.Tensor, token: int) -> list[torch.Tensor]:
    """Per layer, the head mean [P + R] of the row that predicts completion token `token`, by transformers' own forward."""
    length = inputs["input_ids"].shape[1]
    whole = torch.cat([inputs["input_ids"], ids[None]], dim=1)
    everything = inputs | {"input_ids": whole, "attention_mask": torch.ones_like(whole)}
    everything["mm_token_type_ids"] = (whole == IMAGE).int() + 2 * (whole == VIDEO).int()
    with torch.no_grad():
        attentions = twin(model)(**as_trained(model.config, everything), output_attentions=True).attentions
    return [layer[0].mean(0)[length + token - 1] for layer in attentions]


@pytest.mark.parametrize("kind", VISION_KINDS)
@pytest.mark.parametrize("medium", ["image", "images", "video", "mixed"])
def test_the_maps_are_those_of_eager_attention(kind: str, medium: str) -> None:
    model, tokens = tiny_model(kind), (3, 0, 6)
    prompts = [prompt(medium, seed=seed, model=kind) for seed in (0, 1, 2)]
    written = completions()
    expected = [eager_row(model, p, ids, t) for p, ids, t in zip(prompts, written, tokens, strict=True)]
    found = look(model, [prepare_prompt(model, p) for p in prompts], written, tokens)
    for seen, rows, inputs, token in zip(found, expected, prompts, tokens, strict=True):
        assert seen.token == token
        assert len(seen.layers) == len(rows) == 3
        ids = inputs["input_ids"][0]
        for layer, row in zip(seen.layers, rows, strict=True):
            weights = np.concatenate([map_.ravel() for map_ in layer.maps])
            placed = torch.cat([row[: len(ids)][ids == IMAGE], row[: len(ids)][ids == VIDEO]])
            np.testing.assert_allclose(weights, placed.numpy(), atol=1e-6)
            assert layer.visual_share == pytest.approx(float(placed.sum()), abs=1e-5)


def test_every_image_and_every_temporal_patch_has_its_own_grid() -> None:
    model = tiny_model()
    shapes = {"image": [(2, 3)], "images": [(2, 3), (3, 2)], "video": [(2, 2)] * 3, "mixed": [(2, 2), (2, 3), (2, 3)]}
    for medium, expected in shapes.items():
        (seen,) = look(model, [prepare_prompt(model, prompt(medium))], completions((2,)), [0])
        assert [map_.shape for map_ in seen.layers[0].maps] == expected


def test_a_prompt_without_an_image_is_refused() -> None:
    model = tiny_model()
    with pytest.raises(ValueError, match="nothing to look at"):
        look(model, [prepare_prompt(model, prompt("text"))], completions((2,)), [0])


@pytest.mark.parametrize(
    ("completion", "answer", "first"),
    [
        ("<think>row 2 col 3</think><answer>purple</answer>", "purple", "purple"),
        ("<think>row 2 col 3</think><answer> purple </answer>", "purple", " purple"),
        ("<think><answer>red</answer></think><answer>blue</answer>", "blue", "blue"),
        ("<think>blue is not blue</think><answer>blue</answer>", "blue", "blue"),
        ("blue", "blue", "blue"),
    ],
)
def test_the_row_is_that_before_the_answers_first_token(completion: str, answer: str, first: str) -> None:
    tokenizer = build_processor().tokenizer
    ids = torch.tensor(tokenizer.encode(completion + "<|im_end|>"))
    token = answer_token(tokenizer, ids, answer)
    assert token is not None
    assert tokenizer.decode(ids[token : token + 1]) == first
    assert tokenizer.decode(ids[:token]).endswith("<answer>" if "<answer>" in completion else "")
    assert answer not in tokenizer.decode(ids[token + 1 :])


def test_text_of_several_bytes_before_the_answer_does_not_move_the_row() -> None:
    tokenizer = build_processor().tokenizer
    ids = torch.tensor(tokenizer.encode("<think>赤い輪 🔴🔴</think><answer>赤い</answer>"))
    token = answer_token(tokenizer, ids, "赤い")
    assert token is not None
    assert tokenizer.decode(ids[:token]).endswith("</think><answer>")


def test_an_answer_that_is_not_in_the_completion_has_no_row() -> None:
    tokenizer = build_processor().tokenizer
    assert answer_token(tokenizer, torch.tensor(tokenizer.encode("red blue")), "green") is None


def test_chosen_heads_are_looked_at_beside_the_mean_of_all() -> None:
    model, inputs, ids = tiny_model(), prompt("image"), completions((3,))[0]
    (plain,) = look(model, [prepare_prompt(model, inputs)], [ids], [2])
    (found,) = look(model, [prepare_prompt(model, inputs)], [ids], [2], per_head=True, heads={1: [3, 0]})
    assert plain.chosen is None
    assert plain.at(1) is plain.layers[1]
    expected = sum(found.layers[1].heads[head].maps[0] for head in (3, 0)) / 2
    np.testing.assert_allclose(found.at(1).maps[0], expected, atol=1e-7)
    np.testing.assert_array_equal(found.layers[1].maps[0], plain.layers[1].maps[0])


def test_a_hybrid_is_looked_at_in_the_layers_that_have_attention() -> None:
    model, inputs = tiny("qwen3_5")
    ids = completions((3,))[0] % 80
    (found,) = look(model, [prepare_prompt(model, inputs)], [ids], [1])
    assert [layer is None for layer in found.layers] == [True, True, True, False]
    whole = torch.cat([inputs["input_ids"], ids[None]], dim=1)
    everything = inputs | {"input_ids": whole, "attention_mask": torch.ones_like(whole)}
    everything["mm_token_type_ids"] = (whole == IMAGE).int()
    with torch.no_grad():
        (attention,) = (a for a in twin(model)(**everything, output_attentions=True).attentions if a is not None)
    row = attention[0].mean(0)[inputs["input_ids"].shape[1]][(whole == IMAGE)[0]]
    np.testing.assert_allclose(np.concatenate([m.ravel() for m in found.at(3).maps]), row.numpy(), atol=1e-6)
