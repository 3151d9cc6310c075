"""Rollouts from a real vLLM server, where one is at hand.

RAL_VLLM is the address of a server, started as `docs/scaling.md` says, on the model that `python -m tests.rollouts.vllm.served FOLDER`
writes: the embedded one with an output embedding of its own.
"""

from __future__ import annotations

import os
import socket
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from peft import LoHaConfig, LoraConfig
from PIL import Image

from ral.config import ConfigError, RALConfig
from ral.data.media import load_video
from ral.data.record import Record
from ral.files import read_jsonl
from ral.rollouts.vllm import ServerError, merged_state
from ral.testbed import load_start
from ral.testbed.episodes import encode_video, episode_records
from ral.testbed.rings import ring_records
from ral.training.trainer import RALTrainer
from tests.rollouts.vllm.served import untied

URL = os.environ.get("RAL_VLLM", "")
with_server = pytest.mark.skipif(not URL, reason="RAL_VLLM names no vLLM server")
TEXT = Record("text", "what colour is the grass?", "green", origin="text")


def lengths(completions: list[str], **columns: object) -> list[float]:
    return [float(sum(map(ord, text)) % 7) for text in completions]


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
    assert not banned & {int(token) for group in groups for ids in group.scored.ids for token in ids}
    assert all(ids[-1] == 500 or len(ids) == 16 for group in groups for ids in group.scored.ids)


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


def test_no_server_is_said_before_training(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match=r"no vLLM server answers at http://127.0.0.1:9.*vllm serve"):
        trainer(tmp_path, "http://127.0.0.1:9")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>",
            r"no vLLM server answers at http.* \(Expecting value.*vllm serve",
        ),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
            r"does not list a model as vLLM does, but answers \{\}; start one",
        ),
        (b"SSH-2.0-OpenSSH\r\n", r"no vLLM server answers at http.*SSH-2.0.*vllm serve"),
        (b"HTTP/1.1 503 Loading\r\nContent-Length: 4\r\n\r\nwait", r"refuses /v1/models: wait"),
    ],
)
def test_another_server_is_one_line_too(answer: bytes, said: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(answer)

        answering = threading.Thread(target=serve)
        answering.start()
        with pytest.raises(ServerError, match=said):
            trainer(tmp_path, f"http://127.0.0.1:{listening.getsockname()[1]}")
        answering.join()


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
