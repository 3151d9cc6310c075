"""Forward and backward of one update step: ours, TRL's and eager attention, on the same weights and data in one run.

    python -m benchmarks.update_step --completion-tokens 16

- `ours`: the packed group. `ours+attention`: with the attention term. As in `RALTrainer`, the frozen vision tower's
  features are known from the rollout; `ours+attention+vision` computes them in the step, as the others do.
- `trl`: `GRPOTrainer.compute_loss`, TRL's own code, on the prompt repeated G times (SDPA; no attention term).
- `eager+attention`: the prompt repeated G times with `output_attentions=True`, and the same attention term as ours.

The vision tower is frozen in all of them; TRL and eager run it on every step, once per completion. Completions have equal lengths, so nobody spends time on padding. Losses and gradients are compared before timing.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel, ProcessorMixin
from trl import GRPOConfig, GRPOTrainer

from benchmarks.common import RESULTS, in_fresh_process, interleaved_seconds, median_ratio, peak_over, write_result
from ral import forward_group
from ral.attention import forward_groups, prepare_prompt
from ral.attention.rows import policy_rows
from ral.data.prompt import encode_prompt
from ral.data.record import Record
from ral.objective import StepTotals, attention_loss, group_advantages, grpo_loss, token_weights
from ral.testbed.model import build_model, build_processor

EPSILON = 0.2


@dataclass(frozen=True)
class Setting:
    """Sizes of one measurement: an image of `image_size`² pixels becomes `(image_size / 8)²` visual tokens."""

    image_size: int
    completion_tokens: int
    group: int
    layers: int
    hidden: int


@dataclass(frozen=True)
class Case:
    """One prompt with G completions of R tokens and all that a loss needs, the same for every arm.

    Attributes:
        inputs: the processor's dict for the prompt (`input_ids [1, P]`). completions: `[G, R]`.
        old_logps, weights: `[G, R]`. advantages: `[G]`. target: `[G, R, P+R]` policy rows.
    """

    model: PreTrainedModel
    processor: ProcessorMixin
    inputs: dict[str, Tensor]
    completions: Tensor
    old_logps: Tensor
    weights: Tensor
    advantages: Tensor
    target: Tensor

    @property
    def prompt_tokens(self) -> int:
        return self.inputs["input_ids"].shape[1]

    def token_loss(self, logps: Tensor) -> Tensor:
        return grpo_loss(logps, self.old_logps, self.advantages, self.weights, epsilon=EPSILON).loss

    def attention_loss(self, rows: Tensor) -> Tensor:
        return attention_loss(rows, self.target, self.advantages, self.weights).loss

    def repeated(self) -> dict[str, Tensor]:
        """The prompt G times, as TRL's batch holds it."""
        group = len(self.completions)
        return {key: value.repeat(group, *[1] * (value.ndim - 1)) for key, value in self.inputs.items()}


@dataclass(frozen=True)
class Arm:
    """One way to make the update: its own copy of the model, and its loss with the graph."""

    model: PreTrainedModel
    loss: Callable[[], Tensor]

    def step(self) -> float:
        self.model.zero_grad()
        loss = self.loss()
        loss.backward()
        return loss.item()

    def gradient(self) -> Tensor:
        return torch.cat([p.grad.flatten() for p in self.model.parameters() if p.grad is not None])


def build_case(setting: Setting, seed: int = 0) -> Case:
    """Random weights, a noise image, random completions; old log-probs close to the model's, so few ratios are clipped."""
    generator = torch.Generator().manual_seed(seed)
    processor = build_processor()
    model = build_model(processor, layers=setting.layers, hidden=setting.hidden, seed=seed).train()
    model.model.visual.requires_grad_(False)
    size = setting.image_size
    noise = torch.randint(0, 256, (size, size, 3), generator=generator, dtype=torch.uint8)
    record = Record("noise", "what colour is inside the red ring?", "blue", images=(Image.fromarray(noise.numpy()),))
    inputs = encode_prompt(processor, record, think=True, max_pixels=size**2)
    shape = (setting.group, setting.completion_tokens)
    completions = torch.randint(0, processor.tokenizer.vocab_size, shape, generator=generator)
    mask = torch.ones(shape, dtype=torch.bool)
    with torch.no_grad():
        logps = forward_group(copy.deepcopy(model), inputs, list(completions), attention_layers=()).logps
    keys = inputs["input_ids"].shape[1] + setting.completion_tokens
    causal = torch.rand(*shape, keys, generator=generator).tril(keys - setting.completion_tokens)
    return Case(
        model,
        processor,
        inputs,
        completions,
        old_logps=logps + 0.05 * torch.randn(shape, generator=generator),
        weights=token_weights(mask, StepTotals(shape[0], mask.numel()), "grpo", shape[1]),
        advantages=group_advantages((torch.arange(shape[0]) % 2).float()),
        target=policy_rows(causal, mask, inputs["input_ids"].shape[1]),
    )


def ours(case: Case, attention: bool = True, vision: bool = False) -> Arm:
    model = copy.deepcopy(case.model)
    known = prepare_prompt(model, case.inputs)

    def loss() -> Tensor:
        prompt = prepare_prompt(model, case.inputs) if vision else known
        (out,) = forward_groups(model, [prompt], [list(case.completions)], layers=(-1,) if attention else ())
        token = case.token_loss(out.logps)
        return token + case.attention_loss(out.attention) if attention else token

    return Arm(model, loss)


def trl(case: Case) -> Arm:
    trainer = GRPOTrainer(
        model=copy.deepcopy(case.model),
        reward_funcs=lambda completions, **columns: [0.0] * len(completions),
        args=GRPOConfig(
            output_dir=tempfile.mkdtemp(),
            per_device_train_batch_size=len(case.completions),
            num_generations=len(case.completions),
            loss_type="grpo",
            beta=0.0,
            epsilon=EPSILON,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,  # on by default: it would make this arm slower
            report_to=[],
        ),
        train_dataset=Dataset.from_dict({"prompt": ["unused"]}),
        processing_class=case.processor,
    )
    trainer.current_gradient_accumulation_steps = 1  # what the training loop sets before a step
    repeated = case.repeated()
    batch = {
        "prompt_ids": repeated["input_ids"],
        "prompt_mask": repeated["attention_mask"],
        "completion_ids": case.completions,
        "completion_mask": torch.ones_like(case.completions),
        "old_per_token_logps": case.old_logps,
        "advantages": case.advantages,
        "num_images": [1] * len(case.completions),
        "pixel_values": repeated["pixel_values"],
        "image_grid_thw": repeated["image_grid_thw"],
        "mm_token_type_ids": _with_completions(repeated["mm_token_type_ids"], case),
    }
    return Arm(trainer.model, lambda: trainer.compute_loss(trainer.model, batch))


def eager(case: Case) -> Arm:
    model = copy.deepcopy(case.model)
    model.set_attn_implementation({"text_config": "eager"})  # the vision tower's attention is not asked for
    batch = case.repeated()
    batch["input_ids"] = torch.cat([batch["input_ids"], case.completions], dim=1)
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    batch["mm_token_type_ids"] = _with_completions(batch["mm_token_type_ids"], case)
    tokens = case.completions.shape[1]
    mask = torch.ones_like(case.completions, dtype=torch.bool)

    def loss() -> Tensor:
        out = model(**batch, output_attentions=True, use_cache=False, logits_to_keep=tokens + 1)
        logps = out.logits[:, :-1].log_softmax(dim=-1).gather(-1, case.completions[..., None])[..., 0]
        alpha = out.attentions[-1].mean(dim=1)[:, case.prompt_tokens :]
        rows = policy_rows(alpha, mask, case.prompt_tokens)
        return case.token_loss(logps) + case.attention_loss(rows)

    return Arm(model, loss)


def _with_completions(token_types: Tensor, case: Case) -> Tensor:
    return torch.nn.functional.pad(token_types, (0, case.completions.shape[1]))


ARMS: dict[str, Callable[[Case], Arm]] = {
    "ours": lambda case: ours(case, attention=False),
    "ours+attention": ours,
    "ours+attention+vision": lambda case: ours(case, vision=True),
    "trl": trl,
    "eager+attention": eager,
}
OURS = ("ours", "ours+attention")
#: Arms that compute the same loss: what `differences` holds them to.
TWINS = {"trl": "ours", "eager+attention": "ours+attention"}


def peak_memory(setting: Setting, name: str, threads: int) -> float:
    """GiB of one step; to be run in a process of its own."""
    torch.set_num_threads(threads)
    return peak_over(ARMS[name](build_case(setting)).step)


def differences(arms: dict[str, Arm]) -> dict[str, dict[str, float]]:
    """Each peer against ours: the difference of the losses and the relative one of the gradients. Runs every arm once."""
    losses = {name: arm.step() for name, arm in arms.items()}
    found = {}
    for peer, own in TWINS.items():
        if peer in arms and own in arms:
            gap = (arms[peer].gradient() - arms[own].gradient()).norm() / arms[own].gradient().norm()
            found[peer] = {"loss": losses[peer] - losses[own], "gradient_relative": gap.item()}
    return found


def measure(setting: Setting, names: list[str], repeats: int, threads: int) -> dict[str, Any]:
    """Time, memory and agreement of the named arms, as the dict that is written."""
    torch.set_num_threads(threads)
    memory = {name: in_fresh_process(peak_memory, setting, name, threads) for name in names}
    case = build_case(setting)
    arms = {name: ARMS[name](case) for name in names}
    agreement = differences(arms)
    seconds = interleaved_seconds({name: arm.step for name, arm in arms.items()}, repeats)
    prompt, group, tokens = case.prompt_tokens, setting.group, setting.completion_tokens
    return {
        "setting": asdict(setting) | {"prompt_tokens": prompt, "threads": threads, "repeats": repeats},
        "parameters": sum(p.numel() for p in case.model.parameters()),
        "token_ratio_limit": group * (prompt + tokens) / (prompt + group * tokens),
        "seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "memory_gib": memory,
        "time_ratio": {own: {name: median_ratio(seconds[name], seconds[own]) for name in names} for own in OURS},
        "memory_ratio": {own: {name: memory[name] / memory[own] for name in names} for own in OURS},
        "differences": agreement,
        "all_seconds": seconds,
    }


def table(result: dict[str, Any]) -> str:
    """The result for a terminal; a ratio says how many times more than ours an arm takes, measured round by round."""
    s = result["setting"]
    heading = f"{'':24}{'seconds':>9}{'/ ours':>9}{'/ +attention':>14}{'GiB':>9}{'/ ours':>9}{'/ +attention':>14}"
    lines = [
        f"update step, P = {s['prompt_tokens']}, R = {s['completion_tokens']}, G = {s['group']}, {s['layers']} layers of "
        f"{s['hidden']}, {result['parameters'] / 1e6:.1f}M parameters, float32, {s['threads']} threads, "
        f"median of {s['repeats']}",
        heading,
    ]
    for name in result["seconds"]:
        line = f"{name:24}"
        for kind, ratio in (("seconds", "time_ratio"), ("memory_gib", "memory_ratio")):
            plain, attention = (result[ratio][own][name] for own in OURS)
            line += f"{result[kind][name]:9.3f}{plain:8.2f}×{attention:13.2f}×"
        lines.append(line)
    lines.append(f"token-ratio limit G(P+R)/(P+GR): {result['token_ratio_limit']:.2f}×")
    for peer, gap in result["differences"].items():
        lines.append(f"{peer} − ours: loss {gap['loss']:+.1e}, gradient {gap['gradient_relative']:.1e} relative")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image-size", type=int, default=240, help="pixels a side; 240 gives 900 visual tokens")
    parser.add_argument("--completion-tokens", type=int, default=16)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--arms", nargs="+", choices=ARMS, default=list(ARMS), help="beside `ours` and `ours+attention`"
    )
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/update_step-<sizes>.json")
    args = parser.parse_args()
    setting = Setting(args.image_size, args.completion_tokens, args.group, args.layers, args.hidden)
    names = [name for name in ARMS if name in {*OURS, *args.arms}]
    result = measure(setting, names, args.repeats, args.threads)
    sizes = f"P{result['setting']['prompt_tokens']}-R{args.completion_tokens}-G{args.group}-L{args.layers}"
    path = args.output or RESULTS / f"update_step-{sizes}.json"
    write_result(path, result)
    print(table(result))
    print(f"written to {path}")


if __name__ == "__main__":
    main()
