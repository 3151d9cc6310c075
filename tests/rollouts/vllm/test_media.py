"""Media as a server is sent them."""

from __future__ import annotations

import base64
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import msgpack
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from transformers import Gemma3Config

from ral.attention import Prompt, prepare_prompt
from ral.attention.models import rope_positions
from ral.data.prompt import encode_prompt
from ral.data.record import Record
from ral.errors import DataError
from ral.rollouts.vllm.media import RAW_VIEW, encoded_items, request_media
from ral.testbed import load_start
from ral.testbed.episodes import episode_records
from ral.testbed.rings import ring_records
from tests.attention.test_video import as_qwen3, fitted


def tensor(written: list[Any]) -> torch.Tensor:
    """As vLLM's decoder reads `[dtype, shape, bytes]`."""
    dtype, shape, (code, data) = written
    assert code == RAW_VIEW
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).view(getattr(torch, dtype)).view(shape)


def decoded(data: str) -> dict[str, tuple[list[Any], torch.Tensor]]:
    item = msgpack.unpackb(base64.b64decode(data))
    return {name: (element["field"], tensor(element["data"])) for name, element in item.items()}


def prompt_of(kind: str, record: Record, **shown: Any) -> tuple[Any, Prompt]:
    _, processor = load_start()
    processor = as_qwen3(processor) if kind == "qwen3_vl" else processor
    model = fitted(kind, processor).requires_grad_(False)
    inputs = encode_prompt(processor, record, think=True, template="plain", **shown)
    return model, prepare_prompt(model, inputs)


def test_two_images_are_the_policys_features_with_their_places() -> None:
    one, two = ring_records(2, seed=0)
    record = replace(one, problem="<image><image> which?", images=one.images + two.images)
    model, prompt = prompt_of("qwen2_5_vl", record)
    body = request_media(model.config, record, prompt)
    features = body["features"]
    assert body["token_ids"] == prompt.input_ids.tolist()
    places = [
        p
        for where in features["mm_placeholders"]["image"]
        for p in range(where["offset"], where["offset"] + where["length"])
    ]
    assert places == prompt.places.tolist()
    assert len(set(features["mm_hashes"]["image"])) == 2
    items = [decoded(data) for data in features["kwargs_data"]["image"]]
    assert prompt.features is not None
    own = torch.cat(list(prompt.features["image"].pooler_output))
    assert torch.equal(torch.cat([item["image_embeds"][1] for item in items]), own)
    for item in items:
        (kind, how), embeds = item["image_embeds"]
        assert (kind, how) == ("flat", {"keep_on_cpu": False, "slices": [[0, len(embeds), None]], "dim": 0})
        (kind, how), grid = item["image_grid_thw"]
        assert (kind, how) == ("batched", {"keep_on_cpu": True})
        assert int(grid.prod()) // 4 == len(embeds)


def test_a_trained_tower_sends_the_processors_patches() -> None:
    [record] = ring_records(1, seed=0)
    model, frozen = prompt_of("qwen2_5_vl", record)
    [item] = encoded_items(model.config, record, replace(frozen, features=None))
    assert torch.equal(item.fields["pixel_values"][1], frozen.inputs["pixel_values"])


@pytest.mark.parametrize("trained", [False, True])
def test_frames_of_qwen3_are_images_between_their_times(trained: bool, tmp_path: Path) -> None:
    pytest.importorskip("minigrid")
    [record] = episode_records(1, 0, picks=[2], cache=tmp_path)
    model, prompt = prompt_of("qwen3_vl", record, num_frames=6)
    prompt = replace(prompt, features=None) if trained else prompt
    [(t, h, w)] = prompt.grids
    assert t == 3
    items = list(encoded_items(model.config, record, prompt))
    assert [item.modality for item in items] == ["image"] * t
    assert [p for item in items for p in range(item.start, item.start + item.length)] == prompt.places.tolist()
    assert all(item.fields["image_grid_thw"][1].tolist() == [1, 2 * h, 2 * w] for item in items)
    if trained:
        sent = torch.cat([item.fields["pixel_values"][1] for item in items])
        assert torch.equal(sent, prompt.inputs["pixel_values_videos"])
    else:
        assert prompt.features is not None
        output = prompt.features["video"]
        levels = [
            torch.cat(list(output.pooler_output)),
            *(torch.cat(list(level)) for level in output.deepstack_features),
        ]
        sent = torch.cat([item.fields["image_embeds"][1] for item in items])
        assert torch.equal(sent, torch.cat(levels, dim=-1)), "the features of all levels side by side"


def clip(steps: list[int] | None = None, seconds: float = 1.0, patches: int = 3) -> tuple[Any, Record, Prompt]:
    """A prompt of one video of one token a frame, at times in so many seconds or at these positions."""
    model, _ = load_start()
    patches = len(steps) if steps else patches
    ids = torch.tensor([1, *[model.config.video_token_id] * patches, 2])
    inputs = {"video_grid_thw": torch.tensor([[patches, 2, 2]]), "second_per_grid_ts": torch.tensor([seconds])}
    positions = rope_positions(model, ids, inputs)
    if steps:
        positions[0, 1:-1] = 1 + torch.tensor(steps)
    prompt = Prompt(
        ids,
        positions,
        ((patches, 1, 1),),
        torch.arange(1, patches + 1),
        None,
        inputs | {"pixel_values_videos": torch.zeros(4 * patches, 8)},
    )
    return model.config, Record("clip", "<video> what?", "red", videos=(Path("clip.mp4"),), origin="row 3"), prompt


@given(seconds=st.floats(0.03125, 40, width=32), patches=st.integers(1, 40))
@example(seconds=1.0499999523162842, patches=16)  # 4.2 a patch: the 5th stands at 21, the 15th at 62
def test_the_server_counts_the_policys_positions_in_time(seconds: float, patches: int) -> None:
    """All of them, or the record is refused, as in float32 they may be rounded so that no distance gives them."""
    config, record, prompt = clip(seconds=seconds, patches=patches)
    try:
        [item] = encoded_items(config, record, prompt)
    except DataError:
        stands = list(enumerate((prompt.position_ids[0, 1:-1] - 1).tolist()))[1:]
        assert max(Fraction(own, k) for k, own in stands) >= min(Fraction(own + 1, k) for k, own in stands)
        return
    sent = item.fields["second_per_grid_ts"][1].item()
    counted = (torch.arange(patches).double() * (sent * config.vision_config.tokens_per_second)).long()
    assert counted.equal(prompt.position_ids[0, 1:-1] - 1)


def test_positions_that_no_distance_gives_are_refused() -> None:
    config, record, prompt = clip([0, 1, 5])
    with pytest.raises(DataError, match=r"row 3: its frames stand at positions in time that no even distance gives"):
        list(encoded_items(config, record, prompt))


def test_other_families_send_the_image_itself_and_no_video() -> None:
    config = Gemma3Config()
    picture = Image.new("RGB", (9, 5), "red")
    record = Record("a", "<image> what?", "red", images=(picture,), origin="row 1")
    ids = torch.tensor([1, 7, 7, 7, 2])
    prompt = Prompt(ids, torch.arange(5), (), torch.arange(1, 4), None, {})
    body = request_media(config, record, prompt)
    assert body["token_ids"] == [1, 7, 2], "one placeholder, which the server repeats"
    [part] = body["content_parts"]
    assert part["url"].startswith("data:image/png;base64,")
    video = Record("a", "<video> what?", "red", videos=(Path("clip.mp4"),), origin="row 2")
    with pytest.raises(DataError, match=r"row 2: has a video.*set rollout_engine to transformers"):
        request_media(config, video, prompt)
