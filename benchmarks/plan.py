"""What `ral plan` predicts against the measured peak of real training steps, in processes of their own, and against rollouts.

    python -m benchmarks.plan [--only TEXT] [--resume]

Every case trains a freshly initialised Qwen2.5-VL of the testbed for two steps with `RALTrainer`, rollouts and optimiser
included, in float32 on the CPU. The peak is what the process gains over its size once everything is loaded and a first,
tiny training has warmed it up. Completions are those that the random model samples, nearly all of full length.

Every measurement is written at once, with its commit; `--resume` goes on where a run was stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from peft import LoraConfig
from PIL import Image
from transformers import GenerationConfig, Qwen2_5_VLForConditionalGeneration

from benchmarks.common import RESULTS, in_fresh_process, peak_over, write_result
from ral import RALConfig, RALTrainer
from ral.attention import prepare_prompt
from ral.data.prompt import encode_prompt
from ral.data.record import Record
from ral.plan.duration import Machine, duration
from ral.plan.memory import GIB, Memory, memory
from ral.plan.setup import Setup
from ral.plan.shapes import shape_of, weights_of
from ral.rollouts.sampling import Sampling, sample
from ral.runs.folder import source_commit
from ral.testbed.model import build_model, build_processor


@dataclass(frozen=True)
class Case:
    """Sizes of one measurement: an image of `side`² pixels becomes `(side / 8)²` visual tokens."""

    layers: int
    hidden: int
    side: int
    completion: int
    group: int = 8
    prompts: int = 1
    accumulation: int = 1
    checkpointing: bool = False
    rank: int = 0  # of an adapter; 0: all weights
    vocabulary: int = 4096
    attention: bool = True
    reference: bool = True
    norms: bool = False

    def name(self) -> str:
        extras = {
            "ckpt": self.checkpointing, f"LoRA {self.rank}": self.rank, "λ = 0": not self.attention,
            "β = 0": not self.reference, "norms": self.norms,
            f"V {self.vocabulary}": self.vocabulary != 4096, f"{self.prompts} prompts": self.prompts > 1,
            f"{self.accumulation} passes": self.accumulation > 1,
        }  # fmt: skip
        sizes = f"{self.layers}×{self.hidden}, side {self.side}, R {self.completion}, G {self.group}"
        return ", ".join([sizes, *(name for name, given in extras.items() if given)])


CASES = (
    Case(4, 256, 240, 64),
    Case(4, 256, 240, 64, checkpointing=True),
    Case(4, 256, 240, 64, norms=True),
    Case(4, 256, 240, 64, rank=16),
    Case(4, 256, 240, 64, attention=False, reference=False),
    Case(4, 256, 160, 64, prompts=2),
    Case(4, 256, 160, 64, accumulation=2, checkpointing=True),
    Case(4, 256, 160, 32, group=16),
    Case(4, 256, 240, 192, group=4, checkpointing=True),
    Case(4, 256, 480, 16, checkpointing=True),
    Case(4, 256, 160, 64, vocabulary=65536, checkpointing=True),
    Case(8, 384, 240, 64),
    Case(8, 384, 160, 32, checkpointing=True),
    Case(8, 384, 160, 32, rank=16, checkpointing=True),
    Case(12, 640, 160, 16, group=4),
    Case(12, 640, 160, 16, group=4, checkpointing=True),
    Case(12, 640, 160, 16, group=4, rank=16, checkpointing=True),
    Case(12, 640, 160, 16, group=4, checkpointing=True, accumulation=2, norms=True),
    Case(2, 128, 240, 64),
)


#: What makes malloc and MKL give freed memory back at once.
GIVING_BACK = {"MALLOC_MMAP_THRESHOLD_": str(2**17), "MKL_DISABLE_FAST_MM": "1"}


def build(case: Case) -> Qwen2_5_VLForConditionalGeneration:
    """The testbed's model in another size, with heads of the same width and a larger vocabulary."""
    config = build_model(build_processor(), layers=case.layers).config
    text, heads = config.text_config, case.hidden // 32
    text.hidden_size, text.intermediate_size, text.vocab_size = case.hidden, 4 * case.hidden, case.vocabulary
    text.num_attention_heads, text.num_key_value_heads = heads, heads // 2
    config.vision_config.out_hidden_size = case.hidden
    torch.manual_seed(0)
    return Qwen2_5_VLForConditionalGeneration(config)


def adapter(case: Case) -> LoraConfig | None:
    if not case.rank:
        return None
    return LoraConfig(r=case.rank, target_modules="all-linear", exclude_modules=r".*\bvisual\b.*")


def settings(case: Case, folder: str) -> RALConfig:
    return RALConfig(
        output_dir=folder,
        max_steps=2,
        num_generations=case.group,
        per_device_train_batch_size=case.group * case.prompts,
        gradient_accumulation_steps=case.accumulation,
        max_completion_length=case.completion,
        attention_coef=float(case.attention),
        beta=0.04 * case.reference,
        gradient_norm_steps=int(case.norms),
        activation_checkpointing=case.checkpointing,
        max_pixels=case.side**2,
        template="plain",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
    )


def train(case: Case) -> int:
    """Two steps; returns the longest prompt's tokens."""
    processor = build_processor()
    model = build(case)
    model.generation_config = GenerationConfig(eos_token_id=processor.tokenizer.convert_tokens_to_ids("<|im_end|>"))
    noise = np.random.default_rng(0).integers(0, 256, (case.side, case.side, 3), dtype=np.uint8)
    picture = Image.fromarray(noise)
    records = [Record(str(n), "what colour?", "blue", images=(picture,)) for n in range(64)]
    with tempfile.TemporaryDirectory() as folder:
        trainer = RALTrainer(
            model, settings(case, folder), records, processing_class=processor, peft_config=adapter(case)
        )
        trainer.train()
        return len(trainer.groups[0][0].prompt.input_ids)


def measured(case: Case) -> tuple[float, int]:
    """GiB of the training's peak, and the prompt's tokens; to be run in a process of its own."""
    torch.set_num_threads(1)
    train(Case(1, 64, 32, 2, group=2, rank=case.rank))
    tokens = 0

    def step() -> None:
        nonlocal tokens
        tokens = train(case)

    return peak_over(step), tokens


def measured_alone(case: Case) -> tuple[float, int]:
    """`measured` in a process that gives freed memory back at once: its peak counts what is in use, and not what libraries keep.

    Rollouts are timed without: such a process asks the kernel for every larger tensor.
    """
    with mock.patch.dict(os.environ, GIVING_BACK):
        return in_fresh_process(measured, case)  # type: ignore[no-any-return]


def predicted(case: Case, prompt_tokens: int) -> tuple[Setup, Memory]:
    """The plan of a case: of the same model on the meta device, with the same settings."""
    with torch.device("meta"):
        model = build(case)
    model.tie_weights()
    setup = Setup(
        model=shape_of(model),
        weights=weights_of(model, adapter(case), four_bits=False),
        gpus=1,
        sharding="ddp",
        gathered=True,
        mixed=False,
        checkpointing=case.checkpointing,
        prompt=prompt_tokens,
        visual=(case.side // 8) ** 2,
        completion=case.completion,
        group=case.group,
        prompts=case.prompts,
        accumulation=case.accumulation,
        iterations=2,
        captured=int(case.attention or case.norms),
        reference=case.reference and not case.rank,
        reference_pass=case.reference,
        target_pass=False,
        norm_steps=int(case.norms),
        optimiser=8,
    )
    return setup, memory(setup, libraries=False)


def compare(case: Case, peak: float, tokens: int) -> dict[str, Any]:
    """A case's measured peak against its prediction."""
    setup, found = predicted(case, tokens)
    return {
        "case": asdict(case),
        "name": case.name(),
        "parameters": setup.model.parameters,
        "prompt_tokens": tokens,
        "measured_gib": peak,
        "predicted_gib": found.peak / GIB,
        "error": found.peak / GIB / peak - 1,
        "phase": found.peak_phase,
        "commit": source_commit(),
    }


@dataclass(frozen=True)
class Sampled:
    """A rollout batch of four prompts: the model's layers and width, the image's side, completion tokens, and rows at once."""

    layers: int
    hidden: int
    side: int
    completion: int
    rows: int

    @property
    def case(self) -> Case:
        return Case(self.layers, self.hidden, self.side, self.completion, accumulation=4)


#: Other layers, widths, lengths and rows; no constant is fitted to any of them.
ROLLOUTS = (
    Sampled(4, 256, 160, 32, 8),
    Sampled(4, 256, 160, 32, 32),
    Sampled(4, 256, 160, 64, 8),
    Sampled(4, 512, 160, 32, 8),
    Sampled(8, 512, 160, 32, 16),
    Sampled(4, 512, 320, 32, 32),
    Sampled(2, 256, 160, 48, 16),
    Sampled(6, 384, 160, 24, 8),
    Sampled(6, 384, 240, 48, 32),
    Sampled(8, 256, 80, 64, 16),
    Sampled(3, 640, 240, 32, 24),
    Sampled(12, 256, 160, 24, 32),
    Sampled(12, 384, 240, 16, 8),
    Sampled(2, 640, 80, 96, 32),
)
#: How often each rollout is timed; the best counts.
ROUNDS = 4


def processor_seconds(run: Callable[[], Any], repeats: int) -> float:
    """The least processor time of several calls: what else the machine does counts little."""
    found = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        found.append(time.process_time() - start)
    return min(found)


def rollout(one: Sampled) -> tuple[Callable[[], Any], int]:
    """What samples once, and the prompt's tokens."""
    case = one.case
    processor, model = build_processor(), build(case).eval()
    noise = np.random.default_rng(0).integers(0, 256, (case.side, case.side, 3), dtype=np.uint8)
    record = Record("0", "what colour?", "blue", images=(Image.fromarray(noise),))
    encoded = encode_prompt(processor, record, think=True, template="plain", max_pixels=case.side**2)
    prompts = [prepare_prompt(model, encoded) for _ in range(4)]
    sampling = Sampling(one.completion, (model.config.get_text_config().vocab_size - 1,))
    run = partial(sample, model, prompts, case.group, sampling, rows=one.rows)
    return run, len(prompts[0].input_ids)


def machine() -> dict[str, float]:
    """Constants of one thread, measured without the rollouts that they are for: products of large matrices, a matrix that is read
    for one vector, and what a layer adds to a decoding step where it is narrow."""
    a, w, v = torch.randn(768, 768), torch.randn(8192, 4096), torch.randn(4096)
    steps = {
        (layers, length): processor_seconds(rollout(Sampled(layers, 64, 80, length, 32))[0], 3)
        for layers in (2, 4)
        for length in (17, 33)
    }
    each = {layers: (steps[layers, 33] - steps[layers, 17]) / 16 for layers in (2, 4)}
    return {
        "tflops": 2 * 768**3 / processor_seconds(lambda: a @ a, 5) / 1e12,
        "bandwidth": w.nbytes / processor_seconds(lambda: w @ v, 5) / 1e12,
        "layer_ms": (each[4] - each[2]) / 2 * 1e3,
    }


def rollouts() -> dict[str, Any]:
    """Processor seconds of one thread for all of `ROLLOUTS`, in turn, and the machine's constants."""
    torch.set_num_threads(1)
    built = [(one, *rollout(one)) for one in ROLLOUTS]
    rounds = [[processor_seconds(run, 1) for _, run, _ in built] for _ in range(ROUNDS)]
    found = [
        asdict(one) | {"prompt_tokens": tokens, "seconds": min(times), "all_seconds": times, "commit": source_commit()}
        for (one, _, tokens), times in zip(built, map(list, zip(*rounds, strict=True)), strict=True)
    ]
    return {"machine": machine(), "rollouts": found}


def judged(found: dict[str, Any]) -> dict[str, Any]:
    """The rollouts with what the planner says of them; the error is that of the ratio to their geometric mean.

    A GPU computes, reads and starts kernels at the same time. A CPU does not: there all three add up. Products reach the planner's own
    share of the peak.
    """
    measured, fast = found["machine"], 1e9
    parts = (
        Machine(tflops=measured["tflops"], bandwidth=fast, layer_ms=1 / fast),
        Machine(tflops=fast, bandwidth=measured["bandwidth"], layer_ms=1 / fast),
        Machine(tflops=fast, bandwidth=fast, layer_ms=measured["layer_ms"]),
    )
    for one in found["rollouts"]:
        sizes = Sampled(**{name: one[name] for name in Sampled.__dataclass_fields__})
        setup, _ = predicted(sizes.case, one["prompt_tokens"])
        setup = replace(setup, rollout_rows=sizes.rows, visual=0, iterations=1)  # the tower's pass is done
        one["predicted"] = sum(duration(setup, part, None).rollouts for part in parts)
    ratios = np.array([one["predicted"] / one["seconds"] for one in found["rollouts"]])
    for one, ratio in zip(found["rollouts"], ratios, strict=True):
        one["error"] = float(ratio / np.exp(np.log(ratios).mean()) - 1)
    return found


def row(result: dict[str, Any]) -> str:
    return (
        f"{result['name']:52} {result['parameters'] / 1e6:6.1f}M  P {result['prompt_tokens']:5}  measured "
        f"{result['measured_gib']:6.3f}  predicted {result['predicted_gib']:6.3f}  {result['error']:+6.1%}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=RESULTS / "plan.json")
    parser.add_argument("--only", default="", help="measure the cases whose names contain this")
    parser.add_argument("--resume", action="store_true", help="keep what the output holds, and measure the rest")
    args = parser.parse_args()
    earlier = json.loads(args.output.read_text()) if args.resume and args.output.is_file() else {}
    known = {one["name"]: one for one in earlier.get("cases", ())}
    results: list[dict[str, Any]] = []
    sampled = {name: earlier[name] for name in ("machine", "rollouts") if name in earlier}
    for case in CASES:
        if found := known.get(case.name()):
            commit = found["commit"]
            result = compare(case, found["measured_gib"], found["prompt_tokens"]) | {"commit": commit}
        elif args.only in case.name():
            result = compare(case, *measured_alone(case))
        else:
            continue
        results.append(result)
        print(row(result), flush=True)
        write_result(args.output, {"cases": results, **sampled, **summary(results)})
    sampled = judged(sampled or in_fresh_process(rollouts))
    for one in sampled["rollouts"]:
        sizes = ", ".join(f"{name} {one[name]}" for name in Sampled.__dataclass_fields__)
        print(f"rollouts, {sizes}: {one['seconds']:.2f} s, error in ratio {one['error']:+.0%}", flush=True)
    write_result(args.output, {"cases": results, **sampled, **summary(results)})


def summary(cases: list[dict[str, Any]]) -> dict[str, float]:
    errors = [abs(case["error"]) for case in cases]
    return {"mean_error": float(np.mean(errors)), "largest_error": max(errors)}


if __name__ == "__main__":
    main()
