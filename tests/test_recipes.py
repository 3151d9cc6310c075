"""The shipped recipes, against the settings they are read into and the published shapes of the models they name."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from peft import get_peft_model

from ral.attention.models import decoder_layers, make_capturable, resolve_layers, vision_tower
from ral.attention.packed import NAME
from ral.models.lora import lora_config
from ral.plan.shapes import PUBLISHED, meta_model, published_name
from ral.recipe import Recipe, Task, load_recipe
from ral.training.sft import SFTTask

ROOT = Path(__file__).parents[1]
RECIPES = sorted(path for path in (ROOT / "recipes").glob("*.yaml") if path.stem != "rings-sft")
NAMES = [path.stem for path in RECIPES]


def load(path: Path, *overrides: str) -> Task:
    """As on a machine with the GPUs that the recipe is for."""
    kind: type[Task] = SFTTask if "sft" in path.stem else Recipe
    return load_recipe(path, [*overrides, "--use_cpu", "true"], kind)


def published(path: Path) -> str:
    """The published size that a recipe is for, by its name."""
    name = published_name(path.stem.replace("internvl3.5", "internvl3_5"))
    assert name is not None, path
    return name


def model(name: str) -> Any:
    """The model of a size without weights."""
    built, origin = meta_model(name)
    assert origin == f"the published shape of {name}"
    return built


ALL = sorted(p for p in (ROOT / "recipes").rglob("*.yaml") if "sft" not in p.stem and p.parent.name != "accelerate")


@pytest.mark.parametrize("path", ALL, ids=[f"{path.parent.name}/{path.stem}" for path in ALL])
def test_a_recipe_is_its_own_baseline_without_the_attention_term(path: Path) -> None:
    words = ["--attention_coef", "0", "--gradient_norm_steps", "0", "--use_cpu", "true"]
    assert load_recipe(path, words, Recipe).args.attention_coef == 0


@pytest.mark.parametrize("path", RECIPES, ids=NAMES)
def test_a_recipe_is_short_loads_and_says_what_it_is_for(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 25
    assert re.fullmatch(r"# .*\. For (one GPU|\d+ GPUs) of \d+ GB.*\.", lines[0])
    for name in re.findall(r"recipes/(\w[\w.-]*\.yaml)", "\n".join(lines)):
        assert name == path.name
    for name in re.findall(r"recipes/(\w+/\S+)", "\n".join(lines)):
        assert (ROOT / "recipes" / name).exists(), name
    for name in re.findall(r"qwen2.5-vl-\S+\.yaml", "\n".join(lines)):
        assert (path.parent / name).exists(), name
    task = load(path)
    assert task.args.output_dir == f"runs/{path.stem}"
    start = task.model.removeprefix("runs/")
    assert published_name(start) == published(path)
    assert start == task.model or f"{start}.yaml" in [p.name for p in RECIPES]
    if isinstance(task, Recipe) and task.args.vllm_sleep:
        machines = max(1, int(re.findall(r"For (\d+) GPUs", lines[0])[0]) // 8)
        assert len(task.args.vllm_urls) % machines == 0, "a server on every machine"
    given = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert all(getattr(task.args, key) == value for key, value in given.items() if isinstance(value, bool))


@pytest.mark.parametrize("path", RECIPES, ids=NAMES)
def test_the_model_of_a_recipe_can_be_trained_as_it_says(path: Path) -> None:
    task, base = load(path), make_capturable(model(published(path)))
    assert base.config.get_text_config()._attn_implementation == NAME
    if isinstance(task, Recipe):
        [layer] = resolve_layers(base, task.args.attention_layers)
        assert layer == len(decoder_layers(base)) - 1, "the last layer has attention in all of them"
    adapter = lora_config(task, base, task.args.freeze_vision)  # type: ignore[attr-defined]
    if adapter is None:
        return
    adapted = get_peft_model(base, adapter, low_cpu_mem_usage=True)
    try:
        trained = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
        assert not any(parameter.requires_grad for parameter in vision_tower(base).parameters())
        assert not {"visual", "vision_model", "connector"} & {part for name in trained for part in name.split(".")}
        projections = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
        assert {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in trained} == projections
        assert len(trained) == 2 * len(projections) * len(decoder_layers(base))
    finally:
        adapted.unload()
        base.requires_grad_(True)


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_a_size_has_the_published_number_of_parameters(name: str) -> None:
    """Those of its weight files, without the layers for multi-token prediction that transformers does not load."""
    loaded = PUBLISHED[name]["parameters"] - PUBLISHED[name].get("not_loaded", 0)
    assert sum(parameter.numel() for parameter in model(name).parameters()) == loaded


def test_a_recipe_differs_from_its_control_in_the_attention_term_alone() -> None:
    for ral, grpo in (("7b-ral", "7b-grpo"), ("3b-lora", "3b-grpo-lora")):
        one, other = (load(ROOT / "recipes" / f"qwen2.5-vl-{name}.yaml").settings() for name in (ral, grpo))
        different = {key for key in one if one[key] != other.get(key)}
        assert different <= {"attention_coef", "output_dir", "logging_dir", "run_name"}


def test_the_testbed_is_taught_by_recipe() -> None:
    assert load(ROOT / "recipes/rings-sft.yaml").args.output_dir == "runs/rings-sft"


def test_settings_of_deepspeed_are_taken() -> None:
    if importlib.util.find_spec("deepspeed") is None:
        pytest.skip("deepspeed is not installed")
    settings = "{zero_optimization: {stage: 2}, train_micro_batch_size_per_gpu: auto}"
    task = load(ROOT / "recipes/qwen2.5-vl-7b-ral.yaml", f"--deepspeed={settings}", "--fsdp", "null")
    assert task.args.hf_deepspeed_config.is_zero2()
