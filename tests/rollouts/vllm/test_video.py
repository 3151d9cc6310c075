"""What a server is sent of a video."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Qwen3VLConfig

from ral.attention import Prompt
from ral.attention.models import rope_positions
from ral.data.media import load_video
from ral.data.record import Record
from ral.errors import DataError
from ral.rollouts.vllm import lossless_video, video_rates
from tests.rollouts.vllm.served import untied


def shown_at(grid: tuple[int, int, int], seconds: float, model: Any) -> Prompt:
    """A prompt of one video with this token grid and so many seconds from one temporal patch to the next, and a word."""
    (t, h, w), merge = grid, model.config.vision_config.spatial_merge_size
    ids = torch.tensor([1, *[model.config.video_token_id] * (t * h * w), 2])
    inputs = {
        "video_grid_thw": torch.tensor([[t, h * merge, w * merge]]),
        "second_per_grid_ts": torch.tensor([seconds]),
    }
    places = torch.arange(1, len(ids) - 1)
    return Prompt(ids, rope_positions(model, ids, inputs), (grid,), places, None, inputs)


def test_a_video_is_sent_at_a_rate_that_gives_the_policys_positions() -> None:
    model, _ = untied()
    video = Record("clip", "<video> what?", "red", videos=(Path("clip.mp4"),), origin="row 3")
    adjusted = 0
    for frames in range(2, 25):
        for length in range(1, 60):
            seconds = 2 * length / 8 / frames  # of so many frames from a file of 8 a second
            prompt = shown_at(((frames + 1) // 2, 1, 150), seconds, model)
            [rate] = video_rates(model.config, video, prompt)
            sent = torch.tensor(2 / float(rate))
            adjusted += int(sent != torch.tensor(seconds))
            t = len(prompt.places) // 150
            own = prompt.position_ids[0, prompt.places[::150]]
            assert ((torch.arange(t) * (sent.double() * 4)).long() + 1).equal(own)
    assert adjusted  # some times are whole numbers, but for rounding
    long = shown_at((20, 8, 8), 1.0, model)  # 76 positions in time, 8 in space
    assert list(video_rates(model.config, video, long)) == [Fraction(2)]
    assert list(video_rates(model.config, video, shown_at((2, 8, 8), 1.75, model))) == [Fraction(8, 7)]


def test_videos_of_qwen3_are_refused() -> None:
    video = Record("clip", "<video> what?", "red", videos=(Path("clip.mp4"),), origin="row 3")
    with pytest.raises(DataError, match=r"row 3: .*Qwen3-VL.*rollout_engine to transformers"):
        list(video_rates(Qwen3VLConfig(), video, shown_at((1, 2, 2), 1.0, untied()[0])))


@pytest.mark.parametrize("rate", [Fraction(1), Fraction(8, 7), Fraction(30000, 1001), Fraction(3, 400)], ids=str)
def test_frames_are_sent_without_loss_and_with_their_rate(rate: Fraction, tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (5, 36, 50, 3), dtype=np.uint8)
    path = tmp_path / "clip.avi"
    path.write_bytes(lossless_video(frames, rate))
    video = load_video(path, num_frames=100)
    assert np.array_equal(video.frames, frames)
    assert video.fps == float(rate)
    path.write_bytes(lossless_video(frames[:1], rate))
    assert np.array_equal(load_video(path, num_frames=100).frames, frames[[0, 0]])
