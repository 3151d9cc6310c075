"""Which pixels a visual token stands for: a few pixels are changed, and the token that reacts most has to show them."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from experiments.families.processors import PROCESSORS, model_for
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel

from ral.attention import prepare_prompt, vision_features
from ral.data.boxes import box_masks, tile_mask
from ral.data.prompt import encode_prompt
from ral.data.record import Box, Record
from ral.errors import ConfigError, DataError
from ral.evaluate.looking import as_maps, look
from ral.families import family_of_processor
from ral.families.tiles import Encoded, Tile, raster
from ral.training.evidence import evidence_tokens

#: Every processor that there is: those of one architecture each, without twins.
KINDS = ("internvl", "llava", "deepseek_vl", "janus", "gemma3", "gemma4", "idefics3", "smolvlm", "mistral3", "llava_onevision", "llava_next", "aya_vision",
         "cohere2_vision", "ovis2", "llama4", "lfm2_vl", "exaone4_5", "video_llama_3", "ernie4_5_vl_moe", "glm4v", "qwen3_5")  # fmt: skip


def made(kind: str) -> tuple[Any, PreTrainedModel]:
    """Processor and model, whose vision tower mixes its tokens little."""
    if kind == "smolvlm":
        pytest.importorskip("num2words")
    built = PROCESSORS[kind]()
    return built[0], model_for(kind, built, local=True).requires_grad_(False)


def picture(size: tuple[int, int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)


def encoded(processor: Any, *arrays: np.ndarray, **more: Any) -> Encoded:
    images = tuple(Image.fromarray(array) for array in arrays)
    record = Record("0", "what is it? <image>" * len(arrays), "a", problem_type="free-form", images=images)
    return encode_prompt(processor, record, think=False, template="plain", **more)


def seen(model: PreTrainedModel, inputs: dict[str, Tensor]) -> np.ndarray:
    """Features `[N, d]` of the visual tokens."""
    output = vision_features(model, inputs)["image"]
    found = output.last_hidden_state if output.get("pooler_output") is None else output.pooler_output
    parts = [found] if isinstance(found, Tensor) else found
    return torch.cat([part.reshape(-1, part.shape[-1]) for part in parts]).numpy()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(60, 100), (150, 40)], ids=str)
def test_the_token_that_reacts_shows_the_pixels_that_changed(kind: str, size: tuple[int, int]) -> None:
    (processor, model), array, reach = made(kind), picture(size), 4
    inputs = encoded(processor, array)
    prompt = prepare_prompt(model, inputs)
    assert sum(tile.tokens for tile in prompt.tiles) == len(prompt.places) > 0
    base, generator = seen(model, inputs), np.random.default_rng(1)
    hits = tries = 0
    for _ in range(8):
        x, y = generator.uniform(0.06, 0.94, 2)
        column, row = int(x * size[0]), int(y * size[1])
        changed = array.copy()
        spot = np.s_[max(row - reach, 0) : row + reach, max(column - reach, 0) : column + reach]
        changed[spot] = 255 - changed[spot]
        moved = np.linalg.norm(seen(model, encoded(processor, changed)) - base, axis=1)
        box = Box(column - reach - 1, row - reach - 1, column + reach + 1, row + reach + 1)
        start = 0
        for tile in prompt.tiles:
            part, start = moved[start : start + tile.tokens], start + tile.tokens
            left, top, right, bottom = tile.box
            if not tile.columns or not (left <= x < right and top <= y < bottom):
                continue
            best_row, best_column = np.unravel_index(tile.grid(part).argmax(), (tile.rows, tile.columns))
            cell = [left + (right - left) * (best_column + d) / tile.columns for d in (0, 1)]
            level = [top + (bottom - top) * (best_row + d) / tile.rows for d in (0, 1)]
            tries += 1
            hits += bool(cell[0] * size[0] <= box.x1 and cell[1] * size[0] >= box.x0
                         and level[0] * size[1] <= box.y1 and level[1] * size[1] >= box.y0)  # fmt: skip
    assert hits >= 0.8 * tries, f"{hits} of {tries}; by chance about one in {len(prompt.places)}"


@pytest.mark.parametrize("kind", KINDS)
def test_maps_boxes_and_evidence_of_two_pictures(kind: str) -> None:
    (processor, model), sizes = made(kind), [(100, 60), (150, 40)]
    arrays = [picture(size, seed) for seed, size in enumerate(sizes)]
    inputs = encoded(processor, *arrays)
    prompt = prepare_prompt(model, inputs)
    assert sorted({tile.picture for tile in prompt.tiles}) == [0, 1]
    (found,) = look(model, [prompt], [torch.tensor([5, 6, 7])], [1])
    layer = next(one for one in reversed(found.layers) if one is not None)
    assert len(layer.maps) == 2
    assert 0 < layer.visual_share < 1
    box = Box(90.0, 2.0, 140.0, 38.0, medium=1)
    record = Record("0", "<image> <image>", "a", images=tuple(map(Image.fromarray, arrays)), boxes=(box,))
    inside = evidence_tokens(record, prompt, processor)
    assert inside is not None
    shown = as_maps(inside[prompt.places].double().numpy(), prompt)
    assert not shown[0].any(), "the first picture has no box"
    columns = (np.arange(shown[1].shape[1]) + 0.5) / shown[1].shape[1]
    per_column = shown[1].sum(axis=0)
    end = min(
        140, 150 * max(tile.box[2] for tile in prompt.tiles if tile.picture == 1)
    )  # or where the model's sight ends
    assert (per_column * columns).sum() / per_column.sum() == pytest.approx((90 + end) / 2 / 150, abs=0.12)


def test_an_encoded_prompt_goes_to_any_model_and_keeps_its_tiles() -> None:
    processor, model = made("internvl")
    inputs = encoded(processor, picture((100, 60)))
    assert inputs.tiles
    assert model(**inputs).logits.isfinite().all(), "only tensors that the model takes"
    assert pickle.loads(pickle.dumps(inputs)).tiles == copy.copy(inputs).tiles == inputs.tiles


@pytest.mark.parametrize("kind", ["internvl", "idefics3", "mistral3"])
def test_pixels_are_bounded_by_the_familys_own_knob(kind: str) -> None:
    processor, model = made(kind)
    counts = [
        len(prepare_prompt(model, encoded(processor, picture((300, 200)), max_pixels=pixels)).places)
        for pixels in (256, 1024, 2304)
    ]
    assert counts == sorted(set(counts)), "more pixels, more tokens"


def test_what_a_family_does_not_have_is_refused() -> None:
    processor, _ = PROCESSORS["gemma3"]()
    with pytest.raises(ConfigError, match=r"max_pixels.* has no bound on pixels"):
        encoded(processor, picture((40, 40)), max_pixels=1024)
    clip = Record("0", "<video>?", "a", videos=("clip.mp4",), origin="row 7")  # type: ignore[arg-type]
    assert not family_of_processor(processor).reads_video
    with pytest.raises(DataError, match=r"row 7"):
        encode_prompt(processor, clip, think=False, template="plain")


shares = st.lists(st.integers(1, 19), min_size=2, max_size=2, unique=True).map(
    lambda ends: sorted(e / 20 for e in ends)
)
tiles = st.builds(
    lambda rows, columns, x, y, newline: Tile(0, rows, columns, (x[0], y[0], x[1], y[1]), newline),
    st.integers(1, 5), st.integers(1, 5), shares, shares, st.booleans(),
)  # fmt: skip


@settings(max_examples=50)
@given(parts=st.lists(tiles, min_size=1, max_size=3), seed=st.integers(0, 99))
def test_a_map_has_all_the_weight(parts: list[Tile], seed: int) -> None:
    every = [*parts, Tile(0, 3, 3)]
    weights = np.random.default_rng(seed).random(sum(tile.tokens for tile in every))
    showing = np.concatenate([tile.flat(np.ones((tile.rows, tile.columns))) for tile in every])
    (canvas,) = raster(weights, every)
    assert canvas.sum() == pytest.approx((weights * showing).sum())


@settings(max_examples=50)
@given(grid=st.tuples(st.integers(1, 6), st.integers(1, 6)), x=shares, y=shares)
def test_a_picture_of_one_grid_has_the_tokens_of_its_boxes(
    grid: tuple[int, int], x: list[float], y: list[float]
) -> None:
    box = Box(90 * x[0], 70 * y[0], 90 * x[1], 70 * y[1])
    (expected,) = box_masks([grid], [box], [(90, 70)])
    assert np.array_equal(tile_mask([Tile(0, *grid)], [box], [(90, 70)]), expected.ravel())


def test_a_box_on_two_tiles_marks_both_and_a_sliver_none() -> None:
    """Two tiles side by side of 2×2 tokens on a picture of 80×40, and the whole of it in 2×2."""
    parts = [Tile(0, 2, 2, (0, 0, 0.5, 1)), Tile(0, 2, 2, (0.5, 0, 1, 1), newline=True), Tile(0, 2, 2)]
    found = tile_mask(parts, [Box(20, 0, 62, 20)], [(80, 40)])
    assert found.tolist() == [
        False,
        True,
        False,
        False,
        *[True, False, False],
        *[False] * 3,
        *[True, True, False, False],
    ]
