"""Rollouts from a real vLLM server, where one is at hand.

RAL_VLLM is the address of a server, started as `docs/scaling.md` says, on the model that `python -m tests.test_vllm FOLDER`
writes: the embedded one with an output embedding of its own.
"""

from __future__ import annotations

import copy
import math
import os
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from peft import LoHaConfig, LoraConfig, get_peft_model
from PIL import Image
from transformers import Qwen3VLConfig

from ral.attention import Prompt
from ral.attention.models import rope_positions
from ral.config import ConfigError, RALConfig
from ral.data.media import load_video
from ral.data.record import DataError, Record
from ral.files import read_jsonl
from ral.objective import importance
from ral.testbed import load_start
from ral.testbed.episodes import encode_video, episode_records
from ral.testbed.rings import ring_records
from ral.trainer import RALTrainer
from ral.vllm import ServerError, lossless_video, merged_state, video_rates

URL = os.environ.get("RAL_VLLM", "")
with_server = pytest.mark.skipif(not URL, reason="RAL_VLLM names no vLLM server")
TEXT = Record("text", "what colour is the grass?", "green", origin="text")


def lengths(completions: list[str], **columns: object) -> list[float]:
    return [float(sum(map(ord, text)) % 7) for text in completions]


def untied() -> tuple[Any, Any]:
    """The embedded model, its output embedding a copy of the input's, and its processor."""
    model, processor = load_start()
    model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    return model, processor


def trainer(folder: Path, url: str = URL, records: list[Record] | None = None, **changes: Any) -> RALTrainer:
    model, processor = changes.pop("start", untied)()
    settings: dict[str, Any] = {
        "rollout_engine": "vllm", "vllm_url": url, "use_cpu": True, "template": "plain", "num_generations": 4,
        "per_device_train_batch_size": 16, "max_steps": 6, "max_completion_length": 16, "learning_rate": 1e-3,
        "lr_scheduler_type": "constant", "save_strategy": "no", "disable_tqdm": True,
    }  # fmt: skip
    peft = changes.pop("peft_config", None)
    args = RALConfig(output_dir=str(folder), **settings | changes)
    data = records or [*ring_records(6, 0), TEXT, TEXT]
    return RALTrainer(model, args, data, reward_funcs=lengths, processing_class=processor, peft_config=peft)


@with_server
def test_a_policy_trains_on_rollouts_of_a_server_that_follows_it(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    start = {name: value.clone() for name, value in run.model.state_dict().items()}
    run.train()
    rows = list(read_jsonl(tmp_path / "metrics.jsonl"))
    first_updates = [row for row in rows if "rollout/logp_gap" in row]
    assert [row["step"] for row in first_updates] == [1, 3, 5]
    moved = max(float((value - start[name]).abs().max()) for name, value in run.model.state_dict().items())
    assert moved > 3e-3  # far enough for a server with old weights to show
    for row in first_updates:
        # What the policy gives to visual tokens, which the server must not draw, goes to the others there.
        assert row["rollout/logp_gap"] < 0.02
        assert row["rollout/importance"] == pytest.approx(1 - row["rollout/logp_gap"], abs=1e-3)
    groups = [group for micro_batch in run.groups for group in micro_batch]
    banned = {505, 506, 503, 504}
    assert not banned & {int(token) for group in groups for ids in group.ids for token in ids}
    assert all(ids[-1] == 500 or len(ids) == 16 for group in groups for ids in group.ids)


@with_server
def test_an_image_that_the_server_resizes_otherwise_is_refused(tmp_path: Path) -> None:
    large = Record("large", "<image> what is this?", "red", images=(Image.new("RGB", (96, 96)),), origin="row 3")
    with pytest.raises(ServerError, match=r"row 3: the vLLM server makes .* tokens .* processor"):
        trainer(tmp_path, records=[large] * 4, max_pixels=32 * 32).train()


def doubled(record: Record, folder: Path) -> Record:
    """An episode of four seconds at twice its size: its text stands behind it in time and in space."""
    frames = load_video(record.videos[0], fps=8.0).frames.repeat(2, axis=1).repeat(2, axis=2)
    path = folder / f"{record.id}.mp4"
    path.write_bytes(encode_video(frames))
    return replace(record, videos=(path,))


@with_server
@pytest.mark.parametrize("shown", [{"fps": 2.0}, {"num_frames": 5}, {"num_frames": 1}], ids=str)
def test_a_policy_trains_on_videos_that_the_server_sees_as_it_does(shown: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("minigrid")
    episodes = episode_records(2, 0, picks=[2], cache=tmp_path)
    records = [*(doubled(record, tmp_path) for record in episodes), *ring_records(2, 0)]
    trainer(tmp_path, records=records, max_steps=3, **shown).train()
    gaps = [row["rollout/logp_gap"] for row in read_jsonl(tmp_path / "metrics.jsonl") if "rollout/logp_gap" in row]
    assert len(gaps) == 2
    assert max(gaps) < 0.02  # 0.2 and more with times that are wrong by a factor of two


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
    for grid, seconds in (((3, 8, 8), 1.0), ((2, 8, 8), 2.0)):
        with pytest.raises(DataError, match=r"row 3: .* 9 in time and 8 in space.*rollout_engine to transformers"):
            list(video_rates(model.config, video, shown_at(grid, seconds, model)))
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


def test_no_server_is_said_before_training(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match=r"no vLLM server answers at http://127.0.0.1:9.*vllm serve"):
        trainer(tmp_path, "http://127.0.0.1:9")


def test_what_vllm_cannot_do_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"explore.*rollout_engine=transformers"):
        trainer(tmp_path, attention_anchor="explore")
    for refused, match in (
        (LoraConfig(target_modules=["q_proj"], use_dora=True), "DoRA"),
        (LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"]), "modules_to_save"),
        (LoraConfig(target_modules=["q_proj"], bias="lora_only"), "biases"),
        (LoraConfig(target_modules=["q_proj"], lora_bias=True), "lora_bias"),
        (LoraConfig(target_modules=["q_proj"], trainable_token_indices=[3]), "trainable_token_indices"),
        (LoHaConfig(target_modules=["q_proj"]), "LOHA"),
    ):
        with pytest.raises(ConfigError, match=f"cannot send .*{match}.*rollout_engine=transformers"):
            trainer(tmp_path, "http://127.0.0.1:9", peft_config=refused)
    with pytest.raises(ConfigError, match="tie_word_embeddings=False"):
        trainer(tmp_path, "http://127.0.0.1:9", start=load_start)
    with pytest.raises(ConfigError, match="vllm_url='localhost' is no address"):
        trainer(tmp_path, "localhost")


def test_an_adapter_is_sent_merged_and_stays_as_it_was() -> None:
    torch.manual_seed(0)
    base, _ = untied()
    names = set(base.state_dict())
    lora = LoraConfig(r=4, target_modules=["q_proj", "down_proj", "lm_head"], init_lora_weights=False)
    model = get_peft_model(base, lora)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    sent = merged_state(model, Accelerator(cpu=True))
    assert set(sent) == names
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    merged = copy.deepcopy(model).merge_and_unload().state_dict()
    for name, value in sent.items():
        torch.testing.assert_close(value, merged[name], rtol=0, atol=1e-6)
    moved = [name for name in names if not torch.equal(sent[name], untied()[0].state_dict()[name])]
    assert len(moved) == 7  # of two layers of the decoder and two of the vision tower, and the output embedding


@with_server
def test_an_adapter_trains_on_rollouts_of_a_server_that_follows_it(tmp_path: Path) -> None:
    lora = LoraConfig(r=8, target_modules=r".*language_model.*\.(q_proj|v_proj|down_proj)")
    run = trainer(tmp_path, peft_config=lora, learning_rate=1e-2)
    start, _ = untied()
    run.train()
    sent = merged_state(run.model, run.accelerator)
    assert max(float((value - start.state_dict()[name]).abs().max()) for name, value in sent.items()) > 3e-3
    gaps = [row["rollout/logp_gap"] for row in read_jsonl(tmp_path / "metrics.jsonl") if "rollout/logp_gap" in row]
    assert len(gaps) == 3
    assert max(gaps) < 0.02


def test_tokens_count_by_their_likelihood_under_the_policy_up_to_a_cap() -> None:
    logps = torch.tensor([[-1.0, -1.0, -3.0]], requires_grad=True)
    drawn_at = torch.tensor([[-1.0, -3.0, -1.0]])
    found = importance(logps, drawn_at, cap=2.0)
    torch.testing.assert_close(found, torch.tensor([[1.0, 2.0, math.exp(-2)]]))
    assert not found.requires_grad


if __name__ == "__main__":
    for part in untied():
        part.save_pretrained(sys.argv[1])
