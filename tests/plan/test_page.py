from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ral.cli import app
from ral.plan import plan
from ral.plan.memory import memory

RECIPES = Path(__file__).parents[2] / "recipes"
PAPER = RECIPES / "qwen2.5-vl-7b-ral.yaml"


def invoked(*words: str) -> tuple[int, str]:
    found = CliRunner().invoke(app, ["plan", *words])
    return found.exit_code, found.output


def test_the_recipe_of_the_paper_fits_on_its_gpus_and_takes_no_network() -> None:
    found = plan(PAPER, gpus=8, gpu_memory=80, prompt_tokens=1280)
    assert found.fits
    assert found.setup.sharding == "fsdp2"
    assert found.setup.model.origin == "the published shape of Qwen2.5-VL-7B"
    assert found.duration.steps == 800
    assert found.advice == ()


@pytest.mark.parametrize(
    "recipe", [p for p in sorted(RECIPES.glob("*.yaml")) if "sft" not in p.stem], ids=lambda p: p.stem
)
def test_every_recipe_fits_on_the_gpus_that_it_names(recipe: Path) -> None:
    [(number, size)] = re.findall(r"For (one|\d+) GPUs? of (\d+) GB", recipe.read_text(encoding="utf-8"))
    found = plan(recipe, gpus=1 if number == "one" else int(number), gpu_memory=int(size))
    assert found.fits, found.advice


def test_all_weights_of_72b_fit_on_four_machines_and_on_eight() -> None:
    four, eight = (
        plan(RECIPES / "qwen2.5-vl-72b-ral.yaml", words, gpus=gpus, gpu_memory=80)
        for gpus, words in ((32, ()), (64, ("--gradient_accumulation_steps", "2")))
    )
    assert four.setup.weights.trained > 72e9
    assert four.fits
    assert 76 * 2**30 < four.memory.peak < 78 * 2**30
    assert (four.duration.prompts, eight.duration.prompts) == (128, 128)
    assert eight.memory.peak < 0.75 * four.memory.peak
    assert not plan(RECIPES / "qwen2.5-vl-72b-ral.yaml", gpus=16, gpu_memory=80).fits


def test_tokens_of_an_image_are_the_familys() -> None:
    """Tiles and the whole image, one pooled square, patches of 16: at most what the recipe's pixels allow."""
    found = {
        name: plan(RECIPES / f"{name}.yaml", gpus=8, gpu_memory=80).setup.visual
        for name in (
            "internvl3.5-8b-ral",
            "gemma-3-12b-ral",
            "glm-4.6v-flash-ral",
            "smolvlm2-2.2b-lora",
            "qwen3.5-9b-ral",
        )
    }
    assert list(found.values()) == [5 * 256, 256, 1024, 10 * 81, 1024]


def test_a_video_is_as_many_tokens_as_frames_and_pixels_allow() -> None:
    free = plan(PAPER, ["--video_pixels", "null"], gpus=8, gpu_memory=80)
    assert free.setup.visual == 8 * 1024
    capped = plan(PAPER, ["--video_pixels", str(16 * 401408)], gpus=8, gpu_memory=80)
    assert (capped.setup.visual, capped.setup.prompt) == (8 * 512, 8 * 512 + 256)
    image = plan(PAPER, ["--num_frames", "null"], gpus=8, gpu_memory=80)
    assert image.setup.visual == 1024


def test_what_does_not_fit_is_told_the_cheapest_change_that_does() -> None:
    code, text = invoked(str(PAPER), "--gpus", "8", "--gpu-memory", "45")
    assert code == 1
    assert "does not fit" in text
    assert (
        "the cheapest change that fits:\n1. fsdp: true, fsdp_config: {version: 2, reshard_after_forward: true}" in text
    )
    found = plan(PAPER, gpus=8, gpu_memory=45)
    assert [one.change.partition(",")[0] for one in found.advice] == ["fsdp: true"]
    assert found.advice[0].peak <= 45


def test_changes_that_suffice_together_are_all_needed() -> None:
    words = ["--activation_checkpointing", "false", "--fsdp", "null"]
    found = plan(PAPER, words, gpus=1, gpu_memory=30)
    assert len(found.advice) > 1
    peaks = [one.peak for one in found.advice]
    assert peaks == sorted(peaks, reverse=True)
    assert peaks[-1] <= 30 < peaks[-2]
    _, text = invoked(str(PAPER), "--gpus", "1", "--gpu-memory", "30", *words)
    assert all(f"{n}. {one.change}" in text for n, one in enumerate(found.advice, 1))
    _, text = invoked(str(PAPER), "--gpus", "1", "--gpu-memory", "5")
    assert "still too much, take larger or more GPUs" in text


def test_the_paper_in_full_shards_takes_half_the_memory_and_seventy_seconds_at_most() -> None:
    """With rollouts by the policy, for which every decoding step gathers the model; kept weights save that."""
    kept, back = (
        plan(PAPER, ["--fsdp_config", f"{{version: 2, reshard_after_forward: {given}}}"], gpus=8, gpu_memory=80)
        for given in ("false", "true")
    )
    assert kept.duration.step < back.duration.step < 70
    # 36.2 and 48.7 GiB; a third of the first are shards of weights, states and reference.
    assert 36 * 2**30 < back.memory.peak < 37 * 2**30 < 48 * 2**30 < kept.memory.peak < 49 * 2**30
    within = memory(replace(back.setup, norm_steps=0))
    assert within.peak_phase == "rollouts"
    assert within.peak < 33 * 2**30


def test_settings_of_batches_heads_cache_and_offloading_are_read() -> None:
    words = [
        "--steps_per_generation", "32", "--num_iterations", "1", "--attention_heads", "[3, 7, 9]", "--vision_cache", "features",
        "--vision_cache_gb", "500", "--fsdp_config", "{version: 2, reshard_after_forward: true, cpu_offload: true}",
    ]  # fmt: skip
    found = plan(PAPER, words, gpus=8, gpu_memory=80, examples=51200)
    s = found.setup
    assert (s.parts, s.iterations, s.updates, s.heads) == (2, 1, 2, 3)
    assert (s.offloaded, s.offloaded_weights, s.vision_cache) == (True, True, 500e9)
    assert found.duration.prompts == 2 * 128
    assert found.duration.steps == 2 * 51200 // 256
    # By hand: 1,024 visual tokens of 3,584 numbers in 16 bits for each of 51,200 examples.
    assert found.cache == 51200 * 1024 * 3584 * 2
    top = plan(PAPER, ["--attention_heads", "{top: 4, by: visual}"], gpus=8, gpu_memory=80)
    assert (top.setup.heads, top.setup.parts, top.setup.offloaded, top.cache) == (4, 1, False, None)


def test_kept_features_save_time_after_the_first_epoch() -> None:
    words = ["--vision_cache", "features", "--num_train_epochs", "4", "--vision_cache_gb"]
    found, small = (plan(PAPER, [*words, size], gpus=8, gpu_memory=80, examples=51200) for size in ("400", "300"))
    assert found.duration.epochs == 4
    # By hand: 16 prompts for two updates; the tower's 676.6M parameters multiply 4 · 1,024 patches, the disk gives 2 GB/s.
    saved = 16 / 2 * (2 * 676.6e6 * 4096 / (0.4 * 989e12) - 1024 * 3584 * 2 / 2e9)
    assert found.duration.cached == pytest.approx(saved, rel=1e-3)
    assert found.duration.hours == pytest.approx(3200 * (found.duration.step - 0.75 * saved) / 3600, rel=1e-4)
    assert small.duration.hours == pytest.approx(3200 * found.duration.step / 3600), "what does not fit saves nothing"
    _, text = invoked(str(PAPER), *words, "300", "--gpus", "8", "--examples", "51200")
    assert "vision_cache: 375.8 GB for 51,200 examples, more than vision_cache_gb=300" in text


def test_a_plan_says_what_it_does_not_count() -> None:
    said = "not counted: what the vision tower keeps for its own backward"
    assert said in invoked(str(PAPER), "--freeze_vision", "false", "--gpus", "16")[1]
    assert said not in invoked(str(PAPER), "--gpus", "16")[1]


def test_settings_are_compared_each_by_itself() -> None:
    found = plan(PAPER, gpus=8, gpu_memory=80, compare=True, host=200)
    first, *others = found.compared
    assert (first.name, first.peak, first.duration) == ("the recipe", found.memory.peak / 2**30, found.duration)
    by_name = {arm.name: arm for arm in others}
    assert "fsdp2, weights kept in a step" not in by_name, "that is the recipe"
    assert by_name["ddp"].peak > 80 > by_name["zero2"].peak / 3
    assert by_name["rollouts by the policy, 8 rows at once"].duration.rollouts > 10 * first.duration.rollouts
    assert not found.fits_host
    code, text = invoked(str(PAPER), "--gpus", "8", "--compare", "--host-memory", "200")
    assert code == 1
    assert "host memory of the first machine: 295 GiB of 200: too much; let one process read the weights" in text
    assert all(arm.name in text for arm in found.compared)


@pytest.mark.parametrize(
    ("words", "sampler", "seconds"), [((), "own", 15), (("--rollout_engine", "vllm"), "server", 7), (("--rollout_engine", "vllm", "--vllm_sleep", "true"), "shared", 7)]
)  # fmt: skip
def test_what_samples_is_the_recipes(words: tuple[str, ...], sampler: str, seconds: float) -> None:
    found = plan(PAPER, words, gpus=8, gpu_memory=80)
    assert found.setup.sampler == sampler
    assert found.duration.rollouts == pytest.approx(seconds, rel=0.1)


def test_json_holds_every_item_and_adds_up() -> None:
    code, text = invoked(
        str(RECIPES / "qwen2.5-vl-7b-lora.yaml"),
        "--gpus",
        "8",
        "--prompt-tokens",
        "1280",
        "--examples",
        "51200",
        "--json",
    )
    assert code == 0
    found = json.loads(text[text.index("{") :])
    update = sum(item["gib"] for item in found["items"] if "update" in item["phases"])
    assert found["phases_gib"]["update"] == pytest.approx(update)
    assert found["peak_gib"] == max(found["phases_gib"].values())
    assert found["duration"]["steps"] == 2 * 51200 // (32 * 8)


def test_the_testbed_is_planned_from_its_folder_and_its_data() -> None:
    found = plan(RECIPES / "testbed" / "ral.yaml", ["--max_steps", "-1"], gpus=1, gpu_memory=8, prompt_tokens=100)
    assert found.fits
    assert found.setup.model.parameters < 2e6
    assert found.duration.steps == 2 * 4096 // 16


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["testbed/ral.yaml"], "give --prompt-tokens"),
        (["qwen2.5-vl-7b-ral.yaml", "--gpus", "0"], "--gpus must be positive"),
        (["qwen2.5-vl-7b-ral.yaml", "--sharding", "magic"], "choose one of ddp, fsdp2, zero2, zero3"),
        (["qwen2.5-vl-7b-ral.yaml", "--utilisation", "2"], "utilisation is a share"),
        (["qwen2.5-vl-7b-ral.yaml", "--num_generation", "4"], "did you mean 'num_generations'?"),
    ],
)
def test_what_cannot_be_planned_says_why(words: list[str], said: str) -> None:
    code, text = invoked(str(RECIPES / words[0]), *words[1:])
    assert code == 2
    assert said in " ".join(text.split())
