"""Rollouts from a real vLLM server, where one is at hand.

RAL_VLLM is the address of a server, started as `docs/scaling.md` says, on a model that `python -m tests.rollouts.vllm.served FOLDER [KIND]`
writes: the embedded one, or a random Qwen3-VL.
"""

from __future__ import annotations

import os
import socket
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoHaConfig, LoraConfig

from ral import forward_group
from ral.attention.models import special_visual_token_ids
from ral.config import ConfigError, RALConfig
from ral.data.prompt import encode_prompt
from ral.data.record import Record
from ral.files import read_jsonl
from ral.models.loading import load_model, load_processor
from ral.rollouts.vllm import ServerError
from ral.rollouts.vllm.client import Client
from ral.testbed import load_start
from ral.testbed.episodes import episode_records
from ral.testbed.rings import ring_records
from ral.training.trainer import RALTrainer

URL = os.environ.get("RAL_VLLM", "")
with_server = pytest.mark.skipif(not URL, reason="RAL_VLLM names no vLLM server")
TEXT = Record("text", "what colour is the grass?", "green", origin="text")


def lengths(completions: list[str], **columns: object) -> list[float]:
    return [float(sum(map(ord, text)) % 7) for text in completions]


def trainer(folder: Path, url: str = URL, records: list[Record] | None = None, **changes: Any) -> RALTrainer:
    served = Client(url).model if url and url == URL else None
    model, processor = (load_model(served), load_processor(served)) if served else load_start()
    settings: dict[str, Any] = {
        "rollout_engine": "vllm", "vllm_url": url, "use_cpu": True, "template": "plain", "num_generations": 4,
        "per_device_train_batch_size": 16, "max_steps": 6, "max_completion_length": 16, "learning_rate": 1e-3,
        "lr_scheduler_type": "constant", "save_strategy": "no", "disable_tqdm": True,
    }  # fmt: skip
    peft = changes.pop("peft_config", None)
    args = RALConfig(output_dir=str(folder), **settings | changes)
    data = records or [*ring_records(6, 0), TEXT, TEXT]
    return RALTrainer(model, args, data, reward_funcs=lengths, processing_class=processor, peft_config=peft)


def apart(run: RALTrainer, records: list[Record]) -> float:
    """The largest difference of a sampled token's probability at the server from the policy's own."""
    run.engine.sync_weights(run.model_wrapped, run.accelerator)
    run.engine.banned = {}  # what the server may not draw would have its share of the policy's probability
    prompts = [run.prepare(record) for record in records]
    drawn = [torch.Generator().manual_seed(i) for i in range(len(records))]
    completions = run.engine.sample(records, prompts, 4, run._sampling(), drawn)
    banned, worst = set(special_visual_token_ids(run.model)), 0.0
    for record, written in zip(records, completions, strict=True):
        inputs = encode_prompt(run.processing_class, record, run.args.prompt)
        for completion in written:
            if not banned.intersection(completion.ids.tolist()):
                own = forward_group(run.model, inputs, [completion.ids], temperature=run.args.temperature).logps[0]
                worst = max(worst, float((own.detach().exp() - completion.logps.exp()).abs().max()))
    return worst


@with_server
@pytest.mark.parametrize("way", ["adapter", "disk"])  # an adapter stands on the weights of the start
def test_the_server_samples_from_the_policy(way: str, tmp_path: Path) -> None:
    """Text, two images, videos of other lengths; before and after the weights change."""
    lora = LoraConfig(r=8, target_modules=r".*language_model.*\.(q_proj|v_proj|down_proj)", init_lora_weights=False)
    pictures = ring_records(2, 0)
    both = replace(pictures[0], problem="<image><image> which?", images=pictures[0].images + pictures[1].images)
    pytest.importorskip("minigrid")
    records = [TEXT, both, *episode_records(3, 0, picks=[2], cache=tmp_path / "videos")]
    run = trainer(tmp_path, peft_config=lora if way == "adapter" else None, vllm_transfer=way, fps=2.0)
    assert apart(run, records) < 1e-5
    with torch.no_grad():
        for parameter in run.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn_like(parameter))
    assert apart(run, records) < 1e-5


@with_server
def test_a_policy_trains_on_rollouts_of_a_server_that_follows_it(tmp_path: Path) -> None:
    trainer(tmp_path, learning_rate=1e-4).train()
    rows = [row for row in read_jsonl(tmp_path / "metrics.jsonl") if "rollout/logp_gap" in row]
    assert [row["step"] for row in rows] == [1, 3, 5]
    for row in rows:
        # What the policy gives to visual tokens, which the server must not draw, goes to the others there.
        assert row["rollout/logp_gap"] < 0.02
        assert row["rollout/importance"] == pytest.approx(1 - row["rollout/logp_gap"], abs=1e-3)


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
        (LoraConfig(target_modules=["q_proj"], modules_to_save=["input_layernorm"]), "modules_to_save"),
        (LoraConfig(target_modules=["q_proj"], bias="lora_only"), "biases"),
        (LoraConfig(target_modules=["q_proj"], lora_bias=True), "lora_bias"),
        (LoHaConfig(target_modules=["q_proj"]), "LOHA"),
    ):
        with pytest.raises(ConfigError, match=f"cannot send .*{match}.*rollout_engine=transformers"):
            trainer(tmp_path, "http://127.0.0.1:9", peft_config=refused)
    with pytest.raises(ConfigError, match="vllm_url='localhost' is no address"):
        trainer(tmp_path, "localhost")
