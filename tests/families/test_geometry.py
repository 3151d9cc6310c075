"""Which pixels a visual token stands for: a few pixels are changed, and the token that reacts most has to show them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from experiments.families.zoo import VISION
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn
from transformers import (
    AddedToken,
    AutoConfig,
    AutoModelForImageTextToText,
    Gemma3ImageProcessor,
    Gemma3Processor,
    GotOcr2ImageProcessor,
    Idefics3ImageProcessor,
    Idefics3Processor,
    InternVLProcessor,
    InternVLVideoProcessor,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    PixtralImageProcessor,
    PixtralProcessor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from ral.attention import prepare_prompt, vision_features
from ral.data.boxes import box_masks, tile_mask
from ral.data.prompt import encode_prompt
from ral.data.record import Box, Record
from ral.errors import ConfigError, DataError
from ral.evaluate.looking import as_maps, look
from ral.families import family_of_processor
from ral.families.tiles import TILES, Tile, from_tensor, raster, to_tensor
from ral.testbed.model import build_tokenizer
from ral.training.evidence import evidence_tokens

TURNS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for p in m.content %}{% if p.type == 'image' %}IMAGE{% else %}"
    "{{ p.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)
SQUARE = {"height": 16, "width": 16}


def tokenizer(more: tuple[str, ...] = (), **named: str) -> Any:
    made = PreTrainedTokenizerFast(
        tokenizer_object=build_tokenizer().backend_tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>",
        extra_special_tokens=named, clean_up_tokenization_spaces=False,
    )  # fmt: skip
    made.add_tokens([AddedToken(token, special=True, normalized=False) for token in more])
    return made


def internvl() -> tuple[Any, dict[str, Any]]:
    names = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
    images = GotOcr2ImageProcessor(size=SQUARE, crop_to_patches=True, max_patches=12)
    processor = InternVLProcessor(
        images, tokenizer(video_token="<video>", **names), InternVLVideoProcessor(size=SQUARE), image_seq_length=4,
        chat_template=TURNS.replace("IMAGE", "<IMG_CONTEXT>"),
    )  # fmt: skip
    return processor, {"image_token_id": processor.image_token_id}


def gemma3() -> tuple[Any, dict[str, Any]]:
    words = tokenizer(boi_token="<boi>", eoi_token="<eoi>", image_token="<soft>")
    images = Gemma3ImageProcessor(size=SQUARE)
    processor = Gemma3Processor(images, words, image_seq_length=4, chat_template=TURNS.replace("IMAGE", "<boi>"))
    return processor, {name: getattr(words, name) for name in ("image_token_id", "boi_token_id", "eoi_token_id")}


def idefics3() -> tuple[Any, dict[str, Any]]:
    places = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    words = tokenizer(("<image>", "<fake_token_around_image>", "<global-img>", *places))
    images = Idefics3ImageProcessor(size={"longest_edge": 48}, max_image_size={"longest_edge": 16})
    processor = Idefics3Processor(images, words, image_seq_len=4, chat_template=TURNS.replace("IMAGE", "<image>"))
    return processor, {"image_token_id": processor.image_token_id}


def mistral3() -> tuple[Any, dict[str, Any]]:
    images = PixtralImageProcessor(size={"longest_edge": 32}, patch_size={"height": 4, "width": 4})
    processor = PixtralProcessor(
        images, tokenizer(("[IMG]", "[IMG_BREAK]", "[IMG_END]")), patch_size=4, spatial_merge_size=2,
        chat_template=TURNS.replace("IMAGE", "[IMG]"),
    )  # fmt: skip
    return processor, {"image_token_id": processor.image_token_id}


def llava_onevision() -> tuple[Any, dict[str, Any]]:
    canvases = [[16 * a, 16 * b] for a in range(1, 4) for b in range(1, 4)]
    processor = LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessor(size=SQUARE, image_grid_pinpoints=canvases), tokenizer(("<image>", "<video>")),
        LlavaOnevisionVideoProcessor(size=SQUARE), num_image_tokens=16, vision_feature_select_strategy="full",
        chat_template=TURNS.replace("IMAGE", "<image>"),
    )  # fmt: skip
    names = ("image_token_id", "video_token_id")
    return processor, {name: getattr(processor, name) for name in names} | {"image_grid_pinpoints": canvases}


Make = Callable[[], tuple[Any, dict[str, Any]]]
MADE: dict[str, Make] = {f.__name__: f for f in (internvl, gemma3, idefics3, mistral3, llava_onevision)}


def model_of(kind: str, processor: Any, tokens: dict[str, Any]) -> PreTrainedModel:
    sizes = VISION[kind][0]
    sizes = sizes | tokens | {"text_config": sizes["text_config"] | {"vocab_size": len(processor.tokenizer)}}
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(AutoConfig.for_model(kind, **sizes)).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1 and not parameter.any():
            nn.init.normal_(parameter, 0, 0.2)
    for name, parameter in model.named_parameters():
        if ("vision" in name or "visual" in name) and ("o_proj" in name or "out_proj" in name):
            parameter.data.mul_(0.02)  # so that a token speaks of its own pixels
    return model.requires_grad_(False)


def picture(size: tuple[int, int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)


def encoded(processor: Any, *arrays: np.ndarray, **more: Any) -> dict[str, Tensor]:
    images = tuple(Image.fromarray(array) for array in arrays)
    record = Record("0", "what is it? <image>" * len(arrays), "a", problem_type="free-form", images=images)
    return encode_prompt(processor, record, think=False, template="plain", **more)


def seen(model: PreTrainedModel, inputs: dict[str, Tensor]) -> np.ndarray:
    """Features `[N, d]` of the visual tokens."""
    found = vision_features(model, {k: v for k, v in inputs.items() if k != TILES})["image"].pooler_output
    parts = [found] if isinstance(found, Tensor) else found
    return torch.cat([part.reshape(-1, part.shape[-1]) for part in parts]).numpy()


@pytest.mark.parametrize("kind", MADE)
@pytest.mark.parametrize("size", [(100, 60), (60, 100), (150, 40)], ids=str)
def test_the_token_that_reacts_shows_the_pixels_that_changed(kind: str, size: tuple[int, int]) -> None:
    processor, tokens = MADE[kind]()
    model, array, reach = model_of(kind, processor, tokens), picture(size), 4
    inputs = encoded(processor, array)
    prompt = prepare_prompt(model, inputs)
    assert sum(tile.tokens for tile in prompt.tiles) == len(prompt.places) > 0
    base, generator = seen(model, inputs), np.random.default_rng(1)
    hits = tries = 0
    for _ in range(12):
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
    assert hits >= 0.85 * tries, f"{hits} of {tries}; by chance about one in {len(prompt.places)}"


@pytest.mark.parametrize("kind", MADE)
def test_maps_boxes_and_evidence_of_two_pictures(kind: str) -> None:
    processor, tokens = MADE[kind]()
    model, sizes = model_of(kind, processor, tokens), [(100, 60), (150, 40)]
    arrays = [picture(size, seed) for seed, size in enumerate(sizes)]
    inputs = encoded(processor, *arrays)
    prompt = prepare_prompt(model, inputs)
    assert sorted({tile.picture for tile in prompt.tiles}) == [0, 1]
    (found,) = look(model, [prompt], [torch.tensor([5, 6, 7])], [1])
    layer = found.layers[-1]
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
    assert (per_column * columns).sum() / per_column.sum() == pytest.approx(115 / 150, abs=0.12)


@pytest.mark.parametrize("kind", ["internvl", "idefics3", "mistral3"])
def test_pixels_are_bounded_by_the_familys_own_knob(kind: str) -> None:
    processor, tokens = MADE[kind]()
    model = model_of(kind, processor, tokens)
    counts = [
        len(prepare_prompt(model, encoded(processor, picture((300, 200)), max_pixels=pixels)).places)
        for pixels in (256, 1024, 2304)
    ]
    assert counts == sorted(set(counts)), "more pixels, more tokens"


def test_what_a_family_does_not_have_is_refused() -> None:
    processor, _ = gemma3()
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
def test_a_map_has_all_the_weight_and_tiles_travel_whole(parts: list[Tile], seed: int) -> None:
    assert from_tensor(to_tensor(parts)) == tuple(parts)
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
