"""The sections of `benchmarks/gpu.py`. Each yields dicts of figures; `ok: False` in one of them fails the section.

Weights are random: of Qwen2.5-VL-7B's shape on a GPU, of the tests' tiny model on a CPU.
"""

from __future__ import annotations

import copy
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from tests.tiny import prompt as tiny_prompt
from tests.tiny import tiny_model
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from transformers import BitsAndBytesConfig, PreTrainedModel, Qwen2_5_VLForConditionalGeneration

from benchmarks.common import in_fresh_process
from benchmarks.update_step import trl_trainer
from ral.attention import GroupOutput, Prompt, forward_groups, prepare_prompt
from ral.attention.models import pretrained, special_visual_token_ids
from ral.objective.divergence import jensen_shannon
from ral.plan.shapes import published_config
from ral.rollouts.sampling import Sampling, sample

Figures = Iterator[dict[str, Any]]

ROOT = Path(__file__).parents[1]
GIB = 2**30


@dataclass(frozen=True)
class Section:
    """One part of the benchmark.

    Attributes:
        seconds: the most that it may take. package: without which it is left out.
    """

    name: str
    run: Callable[[Bench], Figures]
    seconds: float
    package: str | None = None

    def unavailable(self, bench: Bench) -> str | None:
        """Why it cannot be run here."""
        if self.package and importlib.util.find_spec(self.package) is None:
            return f"{self.package} is not installed"
        return None


class Bench:
    """Device and sizes.

    Attributes:
        image, group, length: visual tokens of a prompt, completions, and tokens of each.
        rows: numbers of completions that the sampler decodes at once. decoded: tokens of each.
    """

    def __init__(self, dry: bool):
        self.dry = dry
        self.device = torch.device("cpu" if dry else "cuda")
        self.image, self.group, self.length = (16, 2, 8) if dry else (1024, 8, 1024)
        self.rows, self.decoded = ((1, 4), 4) if dry else ((1, 16, 128), 128)

    def model(self, layers: int | None = None) -> PreTrainedModel:
        """Random weights in bfloat16, made on the device; the vision tower is frozen."""
        torch.manual_seed(0)
        if self.dry:
            model = tiny_model("qwen2_5_vl")
        else:
            config = published_config("Qwen2.5-VL-7B")
            if layers is not None:
                config.text_config.num_hidden_layers = layers
                config.text_config.layer_types = config.text_config.layer_types[:layers]
            before = torch.get_default_dtype()
            torch.set_default_dtype(torch.bfloat16)
            try:
                with self.device:
                    model = Qwen2_5_VLForConditionalGeneration(config)
            finally:
                torch.set_default_dtype(before)
        model.model.visual.requires_grad_(False)
        return model.train()

    @cached_property
    def policy(self) -> PeftModel:
        """LoRA on all of the decoder, with checkpointed activations: what one GPU trains of 7B."""
        lora = LoraConfig(r=8 if self.dry else 64, target_modules="all-linear", exclude_modules=".*visual.*")
        policy = get_peft_model(self.model(), lora)
        policy.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        return policy.train()

    def inputs(self, model: PreTrainedModel, seed: int = 0) -> dict[str, Tensor]:
        """One prompt of 256 words with one image, as the processor makes it."""
        if self.dry:
            return tiny_prompt("image", seed=seed)
        config, vision = model.config, model.config.vision_config
        side = round(self.image**0.5) * vision.spatial_merge_size
        drawn = torch.Generator().manual_seed(seed)
        words = torch.randint(1000, 100_000, (256,), generator=drawn)
        image = [config.vision_start_token_id, *[config.image_token_id] * self.image, config.vision_end_token_id]
        ids = torch.cat([words[:128], torch.tensor(image), words[128:]])[None]
        values = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        inputs = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "pixel_values": torch.randn(side**2, values, generator=drawn),
            "image_grid_thw": torch.tensor([[1, side, side]]),
            "mm_token_type_ids": (ids == config.image_token_id).int(),
        }
        return {name: value.to(self.device) for name, value in inputs.items()}

    def completions(self, count: int | None = None, length: int | None = None) -> list[Tensor]:
        drawn = torch.Generator().manual_seed(1)
        shape = (count or self.group, length or self.length)
        high = 80 if self.dry else 100_000
        return list(torch.randint(5, high, shape, generator=drawn).to(self.device))

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16)

    @contextmanager
    def measured(self, figures: dict[str, Any]) -> Iterator[None]:
        """Seconds, and on a GPU the peak of memory, of what is run inside."""
        self.wait()
        if not self.dry:
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        yield
        self.wait()
        figures["seconds"] = time.perf_counter() - start
        if not self.dry:
            figures["peak_gib"] = torch.cuda.max_memory_allocated() / GIB

    def wait(self) -> None:
        if not self.dry:
            torch.cuda.synchronize()

    def best(self, step: Callable[[], Any], repeats: int = 3) -> dict[str, Any]:
        """The median of `repeats` runs after one that is not counted."""
        step()
        taken: list[dict[str, Any]] = [{} for _ in range(repeats)]
        for figures in taken:
            with self.measured(figures):
                step()
        return sorted(taken, key=lambda figures: figures["seconds"])[repeats // 2]


def tests_of_gpus(bench: Bench) -> Figures:
    """The tests that need a GPU: parity of SDPA and of compiled flex with eager attention, in float32 and bfloat16."""
    how = ["--collect-only"] if bench.dry else []
    # Collecting the whole suite would take a minute.
    files = [str(path) for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in path.read_text()]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", *how, *files]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    yield {"ok": done.returncode == 0, "said": done.stdout.strip().splitlines()[-1]}


def sharded_in_bf16(bench: Bench) -> Figures:
    """FSDP2 with the mixed precision that accelerate sets for `bf16: true`: rollouts and rows of the model that is not sharded."""
    yield from in_fresh_process(_sharded_in_bf16, bench.dry)


def _sharded_in_bf16(dry: bool) -> list[dict[str, Any]]:
    bench = Bench(dry)
    store = f"file://{tempfile.mkdtemp()}/store"
    dist.init_process_group("gloo" if dry else "nccl", init_method=store, rank=0, world_size=1)
    base = bench.model(layers=4)

    def outputs(model: nn.Module) -> tuple[list[int], GroupOutput]:
        prompt = prepare_prompt(model, bench.inputs(base))
        [[greedy]] = sample(model, [prompt], 1, Sampling(16, (1,), temperature=0))
        return greedy.ids.tolist(), forward_groups(model, [prompt], [bench.completions(2, 32)])[0]

    plain_ids, plain = outputs(copy.deepcopy(base).to(torch.bfloat16))
    found = []
    for reshard in (False, True):
        model = copy.deepcopy(base).float()
        policy = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16, reduce_dtype=torch.float32, output_dtype=torch.bfloat16
        )
        mesh = init_device_mesh(bench.device.type, (1,))
        for layer in model.model.language_model.layers:
            fully_shard(layer, mesh=mesh, mp_policy=policy, reshard_after_forward=reshard)
        fully_shard(model, mesh=mesh, mp_policy=policy)
        ids, sharded = outputs(model)
        (sharded.logps.sum() + sharded.attention.square().sum()).backward()
        gap = float((sharded.logps - plain.logps).detach().abs().mean())
        alike = sum(a == b for a, b in zip(ids, plain_ids, strict=False))
        name = "given back after each layer" if reshard else "kept"
        found.append(
            {
                "weights": name,
                "ok": gap < 0.05 and ids[:2] == plain_ids[:2],
                "logp_gap": gap,
                "same_tokens": f"{alike} of {len(ids)}",
            }
        )
    dist.destroy_process_group()
    return found


def update_of_7b(bench: Bench) -> Figures:
    """One packed pass with its backward pass: kernels, the attention term, and the prompt repeated; against the GPU's own matrix products."""
    policy, base = bench.policy, pretrained(bench.policy)
    prompt, ys = prepare_prompt(policy, bench.inputs(base)), bench.completions()
    peak = matmul_peak(bench)
    tokens = len(prompt.input_ids) + sum(map(len, ys))
    # Frozen weights have no gradient of their own: two operations forward and two backward per weight and token.
    work = 4 * sum(p.numel() for p in base.get_decoder().parameters()) * tokens
    ways: list[tuple[str, dict[str, Any]]] = [
        ("sdpa", {}), ("sdpa with the term", {"term": True}), ("prompt repeated", {"repeated": True}),
    ]  # fmt: skip
    ways += (
        [] if bench.dry else [("flex", {"kernel": "flex"}), ("flex with the term", {"kernel": "flex", "term": True})]
    )
    seconds: dict[str, float] = {}
    for name, how in ways:
        figures = bench.best(lambda how=how: update(bench, policy, prompt, ys, **how))
        seconds[name] = figures["seconds"]
        without = seconds.get(name.removesuffix(" with the term"), figures["seconds"])
        yield {
            "way": name, **figures, "tokens_a_second": tokens / figures["seconds"],
            "mfu": work / figures["seconds"] / peak, "share_of_term": 1 - without / figures["seconds"],
        }  # fmt: skip
    yield {
        "matmul_peak_tflops": peak / 1e12,
        "prompt_tokens": len(prompt.input_ids),
        "completion_tokens": sum(map(len, ys)),
    }


def update(
    bench: Bench, model: nn.Module, prompt: Prompt, ys: list[Tensor], term: bool = False, kernel: Any = "sdpa",
    repeated: bool = False,
) -> None:  # fmt: skip
    """Forward and backward of one group, with the attention term if asked."""
    with bench.autocast():
        layers = (-1,) if term else ()
        [out] = forward_groups(model, [prompt], [ys], layers=layers, temperature=0.9, kernel=kernel, repeated=repeated)
        loss = out.logps.mean()
        if term:
            loss = loss + jensen_shannon(out.attention, out.attention.detach().roll(1, -1)).mean()
    loss.backward()
    model.zero_grad(set_to_none=True)


def matmul_peak(bench: Bench) -> float:
    """FLOP/s of a large matrix product in bfloat16."""
    size = 256 if bench.dry else 8192
    a, b = (torch.randn(size, size, device=bench.device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / bench.best(lambda: a @ b)["seconds"]


def trl_step(bench: Bench) -> Figures:
    """The same group as TRL's GRPO computes it: every completion in a row with its own copy of the prompt, no attention term."""
    policy, base = bench.policy, pretrained(bench.policy)
    inputs, ys = bench.inputs(base), torch.stack(bench.completions())
    before = base.config.get_text_config()._attn_implementation
    base.set_attn_implementation("sdpa")
    try:
        trainer, batch = trl_trainer(
            policy, inputs, ys, torch.zeros_like(ys, dtype=torch.float32), torch.ones(len(ys), device=ys.device)
        )

        def step() -> None:
            with bench.autocast():
                loss = trainer.compute_loss(trainer.model, batch)
            loss.backward()
            trainer.model.zero_grad(set_to_none=True)

        theirs = bench.best(step)
    finally:
        base.set_attn_implementation({"text_config": before})
    prompt = prepare_prompt(policy, inputs)
    ours = bench.best(lambda: update(bench, policy, prompt, list(ys), term=True))
    yield {"way": "TRL", **theirs, "ratio": theirs["seconds"] / ours["seconds"]}
    yield {"way": "ours with the term", **ours, "ratio": 1.0}


def sampler(bench: Bench) -> Figures:
    """Tokens a second of our sampler, and of transformers' `generate` on one prompt."""
    policy, base = bench.policy, pretrained(bench.policy)
    never = Sampling(bench.decoded, (next(iter(special_visual_token_ids(base))),), temperature=1.0)
    prompts = [
        prepare_prompt(policy, bench.inputs(base, seed)) for seed in range(max(1, max(bench.rows) // bench.group))
    ]
    for rows in bench.rows:
        count, group = max(1, rows // bench.group), min(rows, bench.group)
        drawn = [torch.Generator().manual_seed(i) for i in range(count)]

        def step(count: int = count, group: int = group, drawn: list[torch.Generator] = drawn) -> None:
            with bench.autocast():
                sample(policy, prompts[:count], group, never, drawn, rows=count * group)

        figures = bench.best(step, repeats=1)
        yield _decoded(f"ours, {rows} rows", rows, bench, figures)
    inputs = bench.inputs(base)
    policy.eval()

    @torch.no_grad()
    def generate() -> None:
        with bench.autocast():
            policy.generate(
                **inputs, max_new_tokens=bench.decoded, min_new_tokens=bench.decoded, do_sample=True,
                num_return_sequences=bench.group, pad_token_id=0,
            )  # fmt: skip

    figures = bench.best(generate, repeats=1)
    policy.train()
    yield _decoded(f"generate, {bench.group} rows", bench.group, bench, figures)


def _decoded(way: str, rows: int, bench: Bench, figures: dict[str, Any]) -> dict[str, Any]:
    speed = {"tokens_a_second": rows * bench.decoded / figures["seconds"]}
    return {"way": way, **figures, **speed, "ms_a_step": 1000 * figures["seconds"] / bench.decoded}


def waits(bench: Bench) -> Figures:
    """How often the host waits for the GPU in a pass with its backward pass, and in a decoding step."""
    policy, base = bench.policy, pretrained(bench.policy)
    prompt, ys = prepare_prompt(policy, bench.inputs(base)), bench.completions(length=8)
    never = Sampling(8, (next(iter(special_visual_token_ids(base))),), temperature=1.0)
    for name, run, most in (
        ("update", lambda: update(bench, policy, prompt, ys, term=True), 10),
        ("8 decoding steps", lambda: sample(policy, [prompt], 2, never, [torch.Generator().manual_seed(0)]), 8 + 10),
    ):
        run()
        with waited() as places:
            run()
        yield {
            "what": name,
            "waits": len(places),
            "ok": len(places) <= most,
            "where": ", ".join(sorted(set(places))[:8]),
        }


@contextmanager
def waited() -> Iterator[list[str]]:
    """The places at which the host has waited, as torch warns of them; none on a CPU."""
    places: list[str] = []
    on_gpu = torch.cuda.is_available()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        if on_gpu:
            torch.cuda.set_sync_debug_mode("warn")
        try:
            yield places
        finally:
            if on_gpu:
                torch.cuda.set_sync_debug_mode("default")
    places += [f"{Path(w.filename).name}:{w.lineno}" for w in seen if "synchroniz" in str(w.message)]


def qlora(bench: Bench) -> Figures:
    """Gradients of an adapter on four bits are there, finite, and not zero."""
    folder = tempfile.mkdtemp()
    bench.model(layers=2).save_pretrained(folder)
    bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    base = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        folder, quantization_config=bits, device_map={"": bench.device}
    )
    model = get_peft_model(base, LoraConfig(r=16, target_modules="all-linear", exclude_modules=".*visual.*"))
    prompt, figures = prepare_prompt(model, bench.inputs(base)), {}
    with bench.measured(figures), bench.autocast():
        [out] = forward_groups(model, [prompt], [bench.completions(2, 64)])
        (out.logps.mean() + out.attention.square().sum()).backward()
    gradients = [p.grad for p in model.parameters() if p.requires_grad and p.grad is not None]
    sound = (
        bool(gradients) and all(bool(g.isfinite().all()) for g in gradients) and any(bool(g.any()) for g in gradients)
    )
    yield {"ok": sound, "gradients": len(gradients), **figures}


def resume(bench: Bench) -> Figures:
    """The testbed on this device: four updates at once, and two, then two more from the checkpoint, end at the same weights."""
    folder = Path(tempfile.mkdtemp())
    settings = [
        "--max_steps",
        "4",
        "--save_strategy",
        "steps",
        "--save_steps",
        "2",
        "--eval_strategy",
        "no",
        "--look_steps",
        "0",
    ]
    settings += ["--use_cpu", "true"] if bench.dry else ["--use_cpu", "false", "--bf16", "true"]

    def train(output: str, *more: str) -> None:
        command = [str(Path(sys.executable).with_name("ral")), "train", str(ROOT / "recipes/testbed/ral.yaml")]
        same = os.environ | {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
        done = subprocess.run(
            [*command, "--output_dir", str(folder / output), *settings, *more], capture_output=True, text=True, env=same
        )
        if done.returncode:
            raise RuntimeError(done.stderr[-400:])

    train("whole")
    shutil.copytree(folder / "whole", folder / "resumed")
    for name in ("checkpoint-4", "final"):
        shutil.rmtree(folder / "resumed" / name)
    train("resumed", "--resume")
    whole, resumed = (load_file(folder / name / "final/model.safetensors") for name in ("whole", "resumed"))
    gap = max(float((whole[name].float() - resumed[name].float()).abs().max()) for name in whole)
    yield {"ok": gap == 0, "largest_difference": gap}


#: In the order in which they are run: what is most likely to fail and what everything else needs come first.
SECTIONS: tuple[Section, ...] = (
    Section("tests", tests_of_gpus, 90),
    Section("FSDP2 in bfloat16", sharded_in_bf16, 60),
    Section("update of 7B", update_of_7b, 150),
    Section("TRL's step", trl_step, 70),
    Section("sampler", sampler, 110),
    Section("waits", waits, 30),
    Section("QLoRA", qlora, 45, package="bitsandbytes"),
    Section("resume", resume, 90),
)
