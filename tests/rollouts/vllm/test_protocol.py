"""What a server is asked, and what is made of its answers; the stub speaks the protocol."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ral.attention.models import special_visual_token_ids
from ral.data.record import Record
from ral.errors import ConfigError
from ral.rollouts.vllm.server import BANNED
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
    once = ["/collective_rpc", *CACHES, GENERATE, GENERATE]
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
    assert metrics["eval_completion_length"] == 6


def test_a_server_adds_no_look_bias(tmp_path: Path, stub: Stub) -> None:
    run = texts(tmp_path, stub)
    with pytest.raises(ConfigError, match="a bias on attention, which vLLM cannot add"):
        run.engine.sample([TEXT], [run.prepare(TEXT)], 1, run._sampling(), look_bias=[torch.zeros(1, 1)])
    assert not stub.asked(GENERATE)


def test_an_image_is_one_placeholder_and_lies_beside(tmp_path: Path, stub: Stub) -> None:
    run = texts(tmp_path, stub)
    [image] = ring_records(1, seed=0)
    prompt = run.prepare(image)
    ids, visual = prompt.input_ids.tolist(), prompt.visual.tolist()
    sent = [token for i, token in enumerate(ids) if not (visual[i] and visual[i - 1])]
    assert len(sent) < len(ids)
    stub.prompts[tuple(sent)] = ids
    run.engine.sample([image], [prompt], 2, run._sampling())
    [body] = stub.asked(GENERATE)
    assert body["token_ids"] == sent
    [part] = body["content_parts"]
    assert part["type"] == "image_url"
    assert part["url"].startswith("data:image/png;base64,")
