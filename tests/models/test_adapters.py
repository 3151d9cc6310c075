"""Adapters, quantised models and teachers in `ral train`, by recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import LoraConfig, PeftModel, get_peft_model

from ral.config import ConfigError
from ral.data.prompt import encode_prompt
from ral.files import read_jsonl
from ral.models.loading import load_model
from ral.recipe import load_recipe
from ral.testbed import load_start, start_checkpoint
from ral.testbed.rings import ring_records
from ral.training.launch import start_model, train
from ral.training.trainer import RALTrainer

MODEL, PROCESSOR = load_start()
ADAPTER = {"r": 4, "target_modules": "all-linear"}


def recipe(folder: Path, **changes: Any) -> Path:
    """A run of two updates on a few rings."""
    values: dict[str, Any] = {
        "model": "start",
        "data": "rings",
        "template": "plain",
        "num_generations": 8,
        "per_device_train_batch_size": 16,
        "max_completion_length": 14,
        "max_steps": 2,
        "learning_rate": 1e-2,
        "gradient_norm_steps": 1,
        "use_cpu": not torch.cuda.is_available(),
        "disable_tqdm": True,
        "output_dir": str(folder / "run"),
    }
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(values | changes), encoding="utf-8")
    return path


def trained(folder: Path, **changes: Any) -> tuple[Path, list[dict[str, Any]]]:
    run = train(load_recipe(recipe(folder, **changes)))
    return run, list(read_jsonl(run / "metrics.jsonl"))


def rings_logits(model: Any) -> torch.Tensor:
    prompt = encode_prompt(PROCESSOR, ring_records(1, seed=5)[0], think=True, template="plain")
    with torch.no_grad():
        return model.eval()(**prompt).logits


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_an_adapter_starts_at_the_reference_and_trains_without_the_vision_tower(tmp_path: Path, dora: bool) -> None:
    run, metrics = trained(tmp_path, peft={**ADAPTER, "use_dora": dora}, beta=0.04, attention_coef=10)
    # DoRA divides by the weights' norms and multiplies with them again.
    assert abs(metrics[0]["kl"]) <= (1e-6 if dora else 0)
    assert metrics[1]["kl"] > 1e-5
    assert metrics[1]["grad/attention_norm"] > 0
    before, after = MODEL.state_dict(), load_model(run).state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    projections = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    assert changed == {n for n in before if ".language_model." in n and any(f"{p}.weight" in n for p in projections)}


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_what_was_trained_is_what_is_loaded(tmp_path: Path, dora: bool) -> None:
    settings = load_recipe(recipe(tmp_path, peft={**ADAPTER, "use_dora": dora}))
    model, processor = start_model(settings)
    adapter = LoraConfig(**ADAPTER, use_dora=dora, exclude_modules=r".*visual.*")
    trainer = RALTrainer(model, settings.args, ring_records(4, seed=0), processing_class=processor, peft_config=adapter)
    trainer.train()
    trainer.save_model(str(tmp_path / "final"))
    expected = rings_logits(trainer.model)
    assert (expected - rings_logits(MODEL)).abs().max() > 1e-2
    torch.testing.assert_close(rings_logits(load_model(tmp_path)), expected, atol=1e-4, rtol=0)


def run_with(adapter: Any, folder: Path, **changes: Any) -> RALTrainer:
    """A trainer of the start model with an adapter: settings of one, or a model that holds it."""
    settings = load_recipe(recipe(folder, beta=0.04, attention_coef=0, **changes))
    model, processor = start_model(settings)
    peft = adapter if isinstance(adapter, LoraConfig) else None
    policy = adapter(model) if callable(adapter) else model
    return RALTrainer(policy, settings.args, ring_records(4, seed=0), processing_class=processor, peft_config=peft)


LANGUAGE = {"r": 4, "target_modules": "all-linear", "exclude_modules": r".*visual.*"}


@pytest.mark.parametrize("how", ["pissa", "pissa_niter_2", "olora"])
def test_an_initialisation_that_rewrites_the_base_model_is_refused(tmp_path: Path, how: str) -> None:
    with pytest.raises(ConfigError, match=rf"init_lora_weights='{how}' rewrites.*q_proj.*gaussian"):
        run_with(LoraConfig(**LANGUAGE, init_lora_weights=how), tmp_path)


@pytest.mark.parametrize("how", ["gaussian", "orthogonal", "mica"])
def test_an_initialisation_that_leaves_the_base_model_needs_no_copy_as_reference(tmp_path: Path, how: str) -> None:
    run = run_with(LoraConfig(**LANGUAGE, init_lora_weights=how), tmp_path)
    assert run.reference is not None
    assert run.reference.model is None, "the policy without its adapter"
    torch.testing.assert_close(rings_logits(run.model), rings_logits(MODEL), atol=1e-4, rtol=0)


def trained_before(model: Any) -> PeftModel:
    torch.manual_seed(1)
    policy = get_peft_model(model, LoraConfig(**LANGUAGE, init_lora_weights=False))
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            parameter.data *= 0.02  # far enough from the base model, and still able to answer
    return policy


def test_the_reference_is_the_start_where_the_adapter_already_says_something(tmp_path: Path) -> None:
    assert_reference_is_start(run_with(trained_before, tmp_path), tmp_path)


def test_the_reference_is_the_start_where_biases_are_trained(tmp_path: Path) -> None:
    assert_reference_is_start(run_with(LoraConfig(**LANGUAGE, bias="lora_only"), tmp_path), tmp_path)


def assert_reference_is_start(run: RALTrainer, folder: Path) -> None:
    start = rings_logits(run.model)
    run.train()
    assert next(row["kl"] for row in run.state.log_history if "kl" in row) == 0
    trained = rings_logits(run.model)
    assert (trained - start).abs().max() > 1e-2
    with run._reference_policy() as reference:
        assert torch.equal(rings_logits(reference), start)
    run.save_model(str(folder / "final"))
    torch.testing.assert_close(rings_logits(load_model(folder)), trained, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "on",
    [{"target_modules": ["v_proj", "embed_tokens"]}, {"target_modules": ["v_proj"], "modules_to_save": ["lm_head"]}],
)
def test_an_adapter_on_tied_embeddings_is_refused(tmp_path: Path, on: dict[str, Any]) -> None:
    config = LoraConfig(r=4, exclude_modules=r".*visual.*", **on)
    with pytest.raises(ConfigError, match=r"embed_tokens|lm_head.*merged into both"):
        run_with(config, tmp_path)
    get_peft_model(load_start()[0], config).save_pretrained(tmp_path / "elsewhere")
    description = tmp_path / "elsewhere/adapter_config.json"
    facts = json.loads(description.read_text()) | {"base_model_name_or_path": str(start_checkpoint())}
    description.write_text(json.dumps(facts))
    with pytest.raises(ConfigError, match="merged into both"):
        load_model(tmp_path / "elsewhere")


def test_an_adapter_on_an_untied_head_is_trained_and_loaded(tmp_path: Path) -> None:
    start, processor = load_start()
    start.config.tie_word_embeddings = start.config.text_config.tie_word_embeddings = False
    start.lm_head.weight = torch.nn.Parameter(start.lm_head.weight.detach().clone())
    for part in (start, processor):
        part.save_pretrained(tmp_path / "untied")
    settings = load_recipe(recipe(tmp_path, model=str(tmp_path / "untied"), attention_coef=0))
    model, processor = start_model(settings)
    adapter = LoraConfig(r=4, target_modules=["q_proj", "lm_head"], exclude_modules=r".*visual.*")
    run = RALTrainer(model, settings.args, ring_records(4, seed=0), processing_class=processor, peft_config=adapter)
    run.train()
    run.save_model(str(tmp_path / "final"))
    torch.testing.assert_close(rings_logits(load_model(tmp_path)), rings_logits(run.model), atol=1e-4, rtol=0)


def test_noise_in_the_embeddings_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="neftune_noise_alpha"):
        load_recipe(recipe(tmp_path, neftune_noise_alpha=5))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="bitsandbytes repacks a model that generates on the CPU")
def test_a_quantised_model_trains_an_adapter(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    changes = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": "float32"}
    run, metrics = trained(tmp_path, quantization=changes, peft=ADAPTER, beta=0.04, attention_coef=10)
    assert metrics[0]["kl"] == 0
    assert metrics[1]["kl"] > 1e-5
    assert metrics[1]["grad/attention_norm"] > 0
    assert (rings_logits(load_model(run)) - rings_logits(MODEL)).abs().max() > 1e-2


def test_quantised_weights_are_not_trained(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"quantised weights cannot be trained.*set peft"):
        train(load_recipe(recipe(tmp_path, quantization={"load_in_4bit": True})))


def test_a_recipe_names_a_teacher(tmp_path: Path) -> None:
    teacher = tmp_path / "teacher"
    other, _ = load_start()
    with torch.no_grad():
        for parameter in other.get_output_embeddings().parameters():
            parameter.mul_(1.5)
    other.save_pretrained(teacher)
    PROCESSOR.save_pretrained(teacher)
    (tmp_path / "itself").mkdir()
    distil = {"attention_coef": 0, "distill_coef": 1.0, "beta": 0}
    _, from_another = trained(tmp_path, teacher=str(teacher), **distil)
    _, from_itself = trained(tmp_path / "itself", teacher="start", **distil)
    assert from_another[0]["distill/gkd"] > 1e-3
    assert from_itself[0]["distill/gkd"] < 1e-6
