"""Positions as the checkpoints were trained, for any mix of images and videos, and what depends on them.

The oracle, `tests/families/trained.py`, was compared with the code of transformers 4.49.0 (`experiments/positions.py`).
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedModel

from ral.attention import forward_group, prepare_prompt
from ral.attention.models import rope_positions
from ral.rollouts.sampling import Sampling, sample
from tests.families.trained import trained_positions
from tests.tiny import IMAGE, PATCH_VALUES, VIDEO, VISION_START, completions, tiny_model

KINDS = ("qwen2_vl", "qwen2_5_vl")


def mixed(kind: str, media: list[tuple[bool, int, int, int, float]], words: int, seed: int = 0) -> dict[str, Any]:
    """A prompt of (video?, t, h, w, seconds) blocks in this order, with up to `words` words before each; sizes in tokens."""
    generator = torch.Generator().manual_seed(seed)
    ids: list[int] = []
    grids: dict[str, list[tuple[int, int, int]]] = {"image": [], "video": []}
    for video, t, h, w, _ in media:
        n = int(torch.randint(0, words + 1, (), generator=generator))
        t = t if video else 1
        ids += torch.randint(0, 90, (n,), generator=generator).tolist() + [VIDEO if video else IMAGE] * (t * h * w)
        grids["video" if video else "image"].append((t, 2 * h, 2 * w))
    ids += torch.randint(0, 90, (words,), generator=generator).tolist()
    inputs: dict[str, Any] = {"input_ids": torch.tensor([ids])}
    for modality, pixels in (("image", "pixel_values"), ("video", "pixel_values_videos")):
        if shapes := grids[modality]:
            inputs[f"{modality}_grid_thw"] = torch.tensor(shapes)
            cells = sum(t * h * w for t, h, w in shapes)
            inputs[pixels] = torch.randn(cells, PATCH_VALUES, generator=generator)
    seconds = [every for video, *_, every in media if video]
    if seconds and kind == "qwen2_5_vl":
        inputs["second_per_grid_ts"] = torch.tensor(seconds)
    inputs["mm_token_type_ids"] = (inputs["input_ids"] == IMAGE).int() + 2 * (inputs["input_ids"] == VIDEO).int()
    return inputs


blocks = st.lists(
    st.tuples(
        st.booleans(), st.integers(1, 12), st.integers(1, 4), st.integers(1, 4), st.floats(0.0625, 3.0, width=32)
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=60)
@given(kind=st.sampled_from(KINDS), media=blocks, words=st.integers(0, 5))
def test_they_are_those_of_transformers_4_49(
    kind: str, media: list[tuple[bool, int, int, int, float]], words: int
) -> None:
    config, inputs = CONFIGS[kind], mixed(kind, media, words)
    ids = inputs["input_ids"][0]
    assert torch.equal(rope_positions(config, ids, inputs), trained_positions(config.config, ids, inputs)[:, 0])


CONFIGS: dict[str, PreTrainedModel] = {kind: tiny_model(kind) for kind in KINDS}


#: What `get_rope_index` of transformers 4.49.0 gives for `PINNED`, by family and seconds per patch of the two videos.
PUBLISHED: dict[tuple[str, tuple[float, float] | None], tuple[list[int], ...]] = {
    ("qwen2_vl", None): (
        [0, 1, 2, 2, 3, 3, 4, 4, 5, 6, 7, 7, 7, 7, 7, 7, 10, 11, 12, 13, 14, 15, 16, 17, 18],
        [0, 1, 2, 2, 2, 2, 2, 2, 5, 6, 7, 7, 8, 8, 9, 9, 10, 11, 11, 11, 11, 11, 11, 17, 18],
        [0, 1, 2, 3, 2, 3, 2, 3, 5, 6, 7, 8, 7, 8, 7, 8, 10, 11, 11, 11, 11, 11, 11, 17, 18],
    ),
    ("qwen2_5_vl", None): (
        [0, 1, 2, 2, 4, 4, 6, 6, 7, 8, 9, 9, 9, 9, 9, 9, 12, 13, 15, 17, 19, 21, 23, 24, 25],
        [0, 1, 2, 2, 2, 2, 2, 2, 7, 8, 9, 9, 10, 10, 11, 11, 12, 13, 13, 13, 13, 13, 13, 24, 25],
        [0, 1, 2, 3, 2, 3, 2, 3, 7, 8, 9, 10, 9, 10, 9, 10, 12, 13, 13, 13, 13, 13, 13, 24, 25],
    ),
    ("qwen2_5_vl", (2.5, 0.7)): (
        [0, 1, 2, 2, 7, 7, 12, 12, 13, 14, 15, 15, 15, 15, 15, 15, 18, 19, 20, 21, 23, 24, 26, 27, 28],
        [0, 1, 2, 2, 2, 2, 2, 2, 13, 14, 15, 15, 16, 16, 17, 17, 18, 19, 19, 19, 19, 19, 19, 27, 28],
        [0, 1, 2, 3, 2, 3, 2, 3, 13, 14, 15, 16, 15, 16, 15, 16, 18, 19, 19, 19, 19, 19, 19, 27, 28],
    ),
    ("qwen2_5_vl", (30.0, 0.1)): (
        [
            0,
            1,
            2,
            2,
            62,
            62,
            122,
            122,
            123,
            124,
            125,
            125,
            125,
            125,
            125,
            125,
            128,
            129,
            129,
            129,
            129,
            129,
            130,
            131,
            132,
        ],
        [0, 1, 2, 2, 2, 2, 2, 2, 123, 124, 125, 125, 126, 126, 127, 127, 128, 129, 129, 129, 129, 129, 129, 131, 132],
        [0, 1, 2, 3, 2, 3, 2, 3, 123, 124, 125, 126, 125, 126, 125, 126, 128, 129, 129, 129, 129, 129, 129, 131, 132],
    ),
}
#: A word, a video of 3 × (1, 2) tokens, a word, an image of (3, 2), a video of 6 × (1, 1), two words; a start before each.
PINNED: dict[str, Any] = {
    "input_ids": torch.tensor(
        [[5, VISION_START, *[VIDEO] * 6, 6, VISION_START, *[IMAGE] * 6, VISION_START, *[VIDEO] * 6, 7, 8]]
    ),
    "image_grid_thw": torch.tensor([[1, 6, 4]]),
    "video_grid_thw": torch.tensor([[3, 2, 4], [6, 2, 2]]),
}


@pytest.mark.parametrize(("kind", "seconds"), PUBLISHED)
def test_they_are_the_numbers_that_transformers_4_49_gave(kind: str, seconds: tuple[float, float] | None) -> None:
    """Five times 0.7 s are 3.5 s, position 7, in float32 as there, and less in float64."""
    ids, inputs = PINNED["input_ids"][0], dict(PINNED)
    inputs["mm_token_type_ids"] = (inputs["input_ids"] == IMAGE).int() + 2 * (inputs["input_ids"] == VIDEO).int()
    if seconds:
        inputs["second_per_grid_ts"] = torch.tensor(seconds)
    expected = list(PUBLISHED[kind, seconds])
    assert rope_positions(CONFIGS[kind], ids, inputs).tolist() == expected
    assert trained_positions(CONFIGS[kind].config, ids, inputs)[:, 0].tolist() == expected


def test_time_is_rounded_down_once_from_a_product_in_float() -> None:
    """0.7 s are 1.4 positions: 0, 1, 2, 4, 5. Text goes on behind the largest, which is not the video's side."""
    inputs = mixed("qwen2_5_vl", [(True, 5, 1, 2, 0.7)], words=0)
    inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([[7, 8]])], dim=1)
    model = CONFIGS["qwen2_5_vl"]
    assert model.config.vision_config.tokens_per_second == 2
    prompt = prepare_prompt(model, inputs)
    assert prompt.position_ids[0].tolist() == [0, 0, 1, 1, 2, 2, 4, 4, 5, 5, 6, 7]
    assert prompt.position_ids[2].tolist() == [0, 1] * 5 + [6, 7]
    assert prompt.next_position == 8
    ends_in_it = prepare_prompt(model, inputs | {"input_ids": inputs["input_ids"][:, :-2]})
    assert ends_in_it.next_position == 6


def plain_logps(model: PreTrainedModel, inputs: dict[str, Any], y: Tensor) -> Tensor:
    """Of a completion behind its prompt, from the model called as a whole with the trained positions."""
    ids = torch.cat([inputs["input_ids"][0], y])
    kinds = torch.nn.functional.pad(inputs["mm_token_type_ids"], (0, len(y)))
    full = inputs | {"input_ids": ids[None], "mm_token_type_ids": kinds}
    logits = model(**full, position_ids=trained_positions(model.config, ids, inputs), use_cache=False).logits[0]
    return logits[-len(y) - 1 : -1].log_softmax(-1).gather(-1, y[:, None])[:, 0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(4))
@torch.no_grad()
def test_log_probabilities_behind_random_mixes_are_the_plain_models(kind: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    media = [
        (bool(number(0, 1)), number(1, 8), number(1, 3), number(1, 3), 0.1 + number(0, 20) / 7)
        for _ in range(number(1, 4))
    ]
    model, inputs, ys = CONFIGS[kind], mixed(kind, media, words=3, seed=seed), completions((4, 6), seed)
    out = forward_group(model, inputs, ys)
    for g, y in enumerate(ys):
        torch.testing.assert_close(out.logps[g, : len(y)], plain_logps(model, inputs, y), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_rollouts_go_on_behind_the_largest_position(kind: str) -> None:
    """Greedy tokens equal a full forward per token, where the prompt ends in a video that outruns its sides."""
    model, inputs = CONFIGS[kind], mixed(kind, [(False, 1, 2, 2, 0.0), (True, 9, 2, 2, 2.5)], words=0)
    (ours,) = sample(model, [prepare_prompt(model, inputs)], 1, Sampling(8, (99,), temperature=0))
    theirs = torch.tensor([], dtype=torch.long)
    for _ in range(len(ours[0].ids)):
        ids = torch.cat([inputs["input_ids"][0], theirs])
        kinds = torch.nn.functional.pad(inputs["mm_token_type_ids"], (0, len(theirs)))
        full = inputs | {"input_ids": ids[None], "mm_token_type_ids": kinds}
        logits = model(**full, position_ids=trained_positions(model.config, ids, inputs), use_cache=False).logits
        logits[0, -1, 90:94] = -torch.inf  # what must not be sampled
        theirs = torch.cat([theirs, logits[0, -1].argmax()[None]])
    assert torch.equal(ours[0].ids, theirs)
