"""What a server is asked, and what is made of its answers; the stub speaks the protocol."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig
from safetensors import safe_open

from ral.attention.models import special_visual_token_ids
from ral.data.record import Record
from ral.errors import ConfigError
from ral.rollouts.vllm import ServerError, transfer
from ral.rollouts.vllm.server import BANNED, share
from ral.testbed.rings import ring_records
from ral.training.trainer import RALTrainer
from tests.rollouts.vllm.stub import EOS, Stub, serving
from tests.rollouts.vllm.test_server import TEXT, trainer

OTHER = Record("other", "what colour is the sky?", "blue", origin="text")
GENERATE = "/inference/v1/generate"
CACHES = ["/reset_prefix_cache", "/reset_encoder_cache"]


@pytest.fixture
def stub() -> Iterator[Stub]:
    with serving() as running:
        yield running


def texts(folder: Path, stub: Stub, **changes: Any) -> RALTrainer:
    """Two prompts of text a step, two inner updates."""
    changes = {"per_device_train_batch_size": 8, "max_steps": 4, "max_completion_length": 6, "beta": 0.0} | changes
    return trainer(folder, stub.url, [TEXT, OTHER], gradient_norm_steps=0, **changes)


def test_weights_are_sent_before_each_rollout_batch_and_all_caches_forgotten(tmp_path: Path, stub: Stub) -> None:
    run = texts(tmp_path, stub)
    run.train()
    once = ["/collective_rpc", *CACHES, "/update_weight_version", GENERATE, GENERATE, "/weight_info"]
    assert [path for path, _ in stub.requests] == ["/v1/models", *once, *once]
    assert {body["method"] for body in stub.asked("/collective_rpc")} == {"reload_weights"}
    assert len(set(stub.weights)) == 2, "the second are the weights after two updates"
    run.engine.sync_weights(run.model_wrapped, run.accelerator)
    name = next(
        name for name in sorted(dict(run.model.named_parameters())) if name.endswith("layers.0.self_attn.q_proj.weight")
    )
    trained = dict(run.model.named_parameters())[name]
    assert stub.weights[-1] == pytest.approx(float(trained.detach().double().sum()), rel=1e-6)


def test_each_prompt_has_its_own_seed_and_each_rollout_batch_another(tmp_path: Path, stub: Stub) -> None:
    texts(tmp_path, stub).train()
    seeds = [body["sampling_params"]["seed"] for body in stub.asked(GENERATE)]
    assert len(set(seeds)) == len(seeds) == 4
    with serving() as again:
        texts(tmp_path / "again", again).train()
    assert sorted(body["sampling_params"]["seed"] for body in again.asked(GENERATE)) == sorted(seeds)


def test_the_server_samples_as_the_settings_say(tmp_path: Path, stub: Stub) -> None:
    run = texts(tmp_path, stub, temperature=0.7, top_p=0.9, top_k=11, max_steps=1)
    run.train()
    asked = stub.asked(GENERATE)[0]["sampling_params"]
    assert asked | {"seed": 0, "logit_bias": {}} == {
        "n": 4, "seed": 0, "temperature": 0.7, "top_p": 0.9, "top_k": 11, "max_tokens": 6, "stop_token_ids": [EOS],
        "logit_bias": {}, "logprobs": 0, "output_kind": 2,
    }  # fmt: skip
    assert asked["logit_bias"] == {str(token): BANNED for token in special_visual_token_ids(run.model)}
    assert asked["logit_bias"], "no visual token may be drawn"


def test_the_server_is_told_further_settings_where_they_do_something(tmp_path: Path, stub: Stub) -> None:
    texts(tmp_path, stub, min_p=0.1, repetition_penalty=1.2, max_steps=1).train()
    asked = stub.asked(GENERATE)[0]["sampling_params"]
    assert (asked["min_p"], asked["repetition_penalty"]) == (0.1, 1.2)


def test_completions_are_those_of_the_answer(tmp_path: Path, stub: Stub) -> None:
    run = texts(tmp_path, stub)
    [[first, second]] = run.make_rollouts([[TEXT, OTHER]])
    assert [len(y.ids) for y in first.completions] == [6, 3, 4, 5]
    assert [y.truncated for y in first.completions] == [True, False, False, False]
    assert not torch.equal(first.completions[0].ids, second.completions[0].ids), "their seeds differ"
    for completion in first.completions:
        torch.testing.assert_close(completion.logps, -0.5 - torch.arange(len(completion.ids)) / 10)
    sampled_at = first.scored.sampling_logps
    assert sampled_at.shape == (4, 6)
    assert float(sampled_at[1, 2]) == pytest.approx(-0.7)
    assert not sampled_at[1, 3:].any(), "0 on padding"


def test_evaluation_asks_the_server_for_the_most_likely_completion(tmp_path: Path, stub: Stub) -> None:
    run = texts(tmp_path, stub)
    metrics = run.evaluate([TEXT, OTHER, TEXT])
    asked = [body["sampling_params"] for body in stub.asked(GENERATE)]
    assert [(one["n"], one["temperature"], one["seed"]) for one in asked] == [(1, 0, None)] * 3
    assert [path for path, _ in stub.requests][1:4] == ["/collective_rpc", *CACHES]
    assert sum(path == "/collective_rpc" for path, _ in stub.requests) == 1
    assert metrics["eval_completion_length"] == 6


def test_a_server_adds_no_look_bias(tmp_path: Path, stub: Stub) -> None:
    run = texts(tmp_path, stub)
    with pytest.raises(ConfigError, match="a bias on attention, which vLLM cannot add"):
        run.engine.sample([TEXT], [run.prepare(TEXT)], 1, run._sampling(), look_bias=[torch.zeros(1, 1)])
    assert not stub.asked(GENERATE)


def test_a_server_that_was_started_again_ends_the_run(tmp_path: Path, stub: Stub) -> None:
    run = texts(tmp_path, stub)
    run.engine.sync_weights(run.model_wrapped, run.accelerator)
    prompt = run.prepare(TEXT)
    run.engine.sample([TEXT], [prompt], 1, run._sampling())
    stub.version = "default"
    with pytest.raises(ServerError, match=r"serves the weights 'default', this run sent 'ral-.*-1'.*started again"):
        run.engine.sample([TEXT], [prompt], 1, run._sampling())


def test_another_run_on_the_same_server_is_noticed(tmp_path: Path, stub: Stub) -> None:
    first, second = texts(tmp_path / "1", stub), texts(tmp_path / "2", stub)
    for run in (first, second):
        run.engine.sync_weights(run.model_wrapped, run.accelerator)
    with pytest.raises(ServerError, match="another run uses it"):
        first.engine.sample([TEXT], [first.prepare(TEXT)], 1, first._sampling())


def test_all_servers_get_the_weights_and_the_prompts_are_dealt_out(tmp_path: Path, stub: Stub) -> None:
    with serving() as other:
        trainer(
            tmp_path, f"{stub.url}, {other.url}", [TEXT, OTHER], gradient_norm_steps=0, per_device_train_batch_size=8,
            max_steps=2, max_completion_length=6, beta=0.0,
        ).train()  # fmt: skip
        assert stub.weights == other.weights != []
        assert len(stub.asked(GENERATE)) == len(other.asked(GENERATE)) == 1
        assert stub.version == other.version != "default"


@given(servers=st.integers(1, 9), processes=st.integers(1, 9))
def test_every_process_has_a_server_and_every_server_a_process(servers: int, processes: int) -> None:
    dealt = [share(list(range(servers)), process, processes) for process in range(processes)]  # type: ignore[arg-type]
    assert all(dealt)
    assert {server for mine in dealt for server in mine} == set(range(servers))
    loads = [sum(server in mine for mine in dealt) for server in range(servers)]
    assert max(loads) - min(loads) <= 1


def test_servers_on_the_trainers_gpus_sleep_during_updates(tmp_path: Path, stub: Stub) -> None:
    run = texts(tmp_path, stub, vllm_sleep=True, max_steps=2)
    run.train()
    run.evaluate([TEXT, OTHER, TEXT])
    awake = ["/wake_up?tags=weights", "/collective_rpc", "/wake_up?tags=kv_cache", *CACHES, "/update_weight_version"]
    paths = [path for path, _ in stub.requests if path not in (GENERATE, "/weight_info")]
    assert paths == ["/v1/models", *awake, "/sleep?level=2", *awake, "/sleep?level=2"]
    asked = [i for i, (path, _) in enumerate(stub.requests) if path == GENERATE]
    asleep = [i for i, (path, _) in enumerate(stub.requests) if path == "/sleep?level=2"]
    assert len([i for i in asked if i < asleep[0]]) == 2
    assert max(asked) < asleep[1], "all batches of an evaluation come before its servers sleep"


def test_an_adapter_travels_alone_and_its_base_sleeps_in_memory(tmp_path: Path, stub: Stub) -> None:
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    run = texts(tmp_path, stub, peft_config=lora, vllm_transfer="adapter", vllm_sleep=True, max_steps=2)
    run.train()
    assert not stub.asked("/collective_rpc")
    [body] = stub.asked("/v1/load_lora_adapter")
    assert body["load_inplace"] is True
    assert stub.asked("/sleep?level=1"), "level 2 would forget the base"
    assert {asked["model"] for asked in stub.asked(GENERATE)} == {body["lora_name"]}
    run.engine.sync_weights(run.model_wrapped, run.accelerator)
    trained = sum(float(p.double().sum()) for p in run.model.parameters() if p.requires_grad)
    assert stub.weights[-1] == pytest.approx(trained, rel=1e-6)
    again = texts(tmp_path / "again", stub, peft_config=lora, vllm_transfer="adapter")
    again.engine.sync_weights(again.model_wrapped, again.accelerator)  # the base is still the one of the start
    stub.version = "ral-1234-7"
    with pytest.raises(ServerError, match="not those it was started on"):
        again.engine.sync_weights(again.model_wrapped, again.accelerator)


def test_an_adapter_is_needed_to_send_one(tmp_path: Path, stub: Stub) -> None:
    with pytest.raises(ConfigError, match="needs an adapter to send; train LoRA, or set vllm_transfer='disk'"):
        texts(tmp_path, stub, vllm_transfer="adapter")


def test_tied_embeddings_are_sent_under_both_names_and_in_the_precision_of_the_run(tmp_path: Path, stub: Stub) -> None:
    run = texts(tmp_path, stub, bf16=True)
    run.engine.sync_weights(run.model_wrapped, run.accelerator)
    with safe_open(tmp_path / "vllm-weights" / "model.safetensors", framework="pt") as file:
        head, embedding = (
            file.get_tensor(next(n for n in file.keys() if n.endswith(end)))  # noqa: SIM118
            for end in ("lm_head.weight", "embed_tokens.weight")
        )
    assert torch.equal(head, embedding)
    assert head.dtype == torch.bfloat16
    assert run.model.lm_head.weight.dtype == torch.float32


def test_weights_over_nccl_follow_vllms_protocol(tmp_path: Path, stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    """The group is a list here."""
    sent: list[torch.Tensor] = []
    joined: list[tuple[int, bytes]] = []

    def connect(ranks: int, identity: bytes) -> Any:
        joined.append((ranks, identity))
        return lambda tensor: sent.append(tensor.clone())

    monkeypatch.setitem(
        transfer.TRANSFERS, "nccl", lambda _, dtype: transfer.NCCLTransfer(dtype, lambda: b"\xfb" * 128, connect)
    )
    monkeypatch.setattr(transfer, "CHUNK", 400_000)
    with serving() as other:
        other.workers = 3
        run = trainer(tmp_path, f"{stub.url},{other.url}", [TEXT], vllm_transfer="nccl", bf16=True, beta=0.0)
        for _ in range(2):
            run.engine.sync_weights(run.model_wrapped, run.accelerator)
        assert joined == [(1 + 2 + 3, b"\xfb" * 128)], "once, with the workers of all servers"
        infos = [asked["init_info"] for one in (stub, other) for asked in one.asked("/init_weight_transfer_engine")]
        assert [(info["rank_offset"], info["world_size"], info["packed"]) for info in infos] == [
            (1, 6, False),
            (3, 6, False),
        ]
        assert {base64.b64decode(info["nccl_unique_id_b64"]) for info in infos} == {b"\xfb" * 128}
        for one in (stub, other):
            paths = [path for path, _ in one.requests if "weight" in path and "init" not in path]
            chunks = len(one.asked("/update_weights")) // 2
            assert chunks > 1
            once = [
                "/start_weight_update",
                *["/update_weights"] * chunks,
                "/finish_weight_update",
                "/update_weight_version",
            ]
            assert paths == once * 2
    state = run.model.state_dict()
    asked = [body["update_info"] for body in stub.asked("/update_weights")]
    described = [
        (name, shape, getattr(torch, kind))
        for update in asked
        for name, shape, kind in zip(update["names"], update["shapes"], update["dtype_names"], strict=True)
    ]
    assert [name for name, _, _ in described] == [*state, *state]
    for (name, shape, kind), tensor in zip(described, sent, strict=True):
        assert list(tensor.shape) == shape
        assert torch.equal(tensor, state[name].to(kind)), name
    assert {kind for _, _, kind in described} == {torch.bfloat16}


def test_nccl_is_refused_without_a_gpu(tmp_path: Path, stub: Stub) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    run = texts(tmp_path, stub, vllm_transfer="nccl")
    with pytest.raises(ConfigError, match="vllm_transfer='nccl' sends weights between GPUs, and this process has none"):
        run.engine.sync_weights(run.model_wrapped, run.accelerator)


def test_an_image_lies_beside_its_prompt_as_the_policy_encodes_it(tmp_path: Path, stub: Stub) -> None:
    run = texts(tmp_path, stub)
    run.engine.sync_weights(run.model_wrapped, run.accelerator)
    [image] = ring_records(1, seed=0)
    prompt = run.prepare(image)
    run.engine.sample([image], [prompt], 2, run._sampling())
    [body] = stub.asked(GENERATE)
    assert body["token_ids"] == prompt.input_ids.tolist()
    assert list(body["features"]["mm_hashes"]) == ["image"]
    assert "content_parts" not in body
