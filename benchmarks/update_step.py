"""Forward and backward of one update step on the same weights and data, without the optimiser.

- `ours`: the packed group. `ours+attention`: with the attention term. As in `RALTrainer`, the frozen vision tower's
  features are known from the rollout; `ours+attention+vision` computes them in the step, as the others do.
- `trl`: `GRPOTrainer.compute_loss`, TRL's own code, on the prompt repeated G times (SDPA; no attention term).
- `prefix-grouper`: PrefixGrouper (arXiv 2506.05433), the prompt once beside its completions; no attention term. As its tutorial says, with
  logits of all tokens; its adapter is put on SDPA, and positions are made here, as it has none for Qwen2.5-VL.
- `eager+attention`: the prompt repeated G times with `output_attentions=True`, and the same attention term as ours.

The vision tower is frozen in all of them; TRL and eager run it on every step, once per completion, PrefixGrouper once. Completions have equal
lengths, so nobody spends time on padding. `python -m benchmarks.update_step` holds losses and gradients against each other.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from prefix_grouper import PrefixGrouper
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from trl import GRPOConfig, GRPOTrainer

from benchmarks import cases
from benchmarks.cases import Setting
from benchmarks.common import Arm
from ral import forward_group
from ral.attention import forward_groups, prepare_prompt
from ral.attention.rows import policy_rows
from ral.objective.terms import StepTotals, attention_loss, group_advantages, grpo_loss, token_weights
from ral.testbed.model import build_processor

EPSILON = 0.2
#: Arms that compute the same loss: what `differences` holds them to.
TWINS = {"trl": "ours", "prefix-grouper": "ours", "eager+attention": "ours+attention"}


@dataclass(frozen=True)
class Update:
    """One prompt with G completions of R tokens and all that a loss needs, the same for every arm.

    Attributes:
        completions: `[G, R]`. old_logps, weights: `[G, R]`. advantages: `[G]`. target: `[G, R, P+R]` policy rows.
    """

    case: cases.Case
    completions: Tensor
    old_logps: Tensor
    weights: Tensor
    advantages: Tensor
    target: Tensor

    @property
    def inputs(self) -> dict[str, Tensor]:
        return self.case.inputs[0]

    def token_loss(self, logps: Tensor) -> Tensor:
        return grpo_loss(logps, self.old_logps, self.advantages, self.weights, epsilon=EPSILON).loss

    def attention_loss(self, rows: Tensor) -> Tensor:
        return attention_loss(rows, self.target, self.advantages, self.weights).loss

    def repeated(self) -> dict[str, Tensor]:
        """The prompt G times, as TRL's batch holds it."""
        group = len(self.completions)
        return {key: value.repeat(group, *[1] * (value.ndim - 1)) for key, value in self.inputs.items()}


@dataclass(frozen=True)
class Way:
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


def build_update(setting: Setting, seed: int = 0) -> Update:
    """Random completions; old log-probs close to the model's, so few ratios are clipped."""
    case = cases.build_case(setting, seed)
    case.model.train()
    generator = torch.Generator().manual_seed(seed)
    shape = (setting.group, setting.completion_tokens)
    completions = torch.randint(0, case.processor.tokenizer.vocab_size, shape, generator=generator)
    mask = torch.ones(shape, dtype=torch.bool)
    with torch.no_grad():
        logps = forward_group(copy.deepcopy(case.model), case.inputs[0], list(completions), attention_layers=()).logps
    keys = case.prompt_tokens + setting.completion_tokens
    causal = torch.rand(*shape, keys, generator=generator).tril(keys - setting.completion_tokens)
    return Update(
        case,
        completions,
        old_logps=logps + 0.05 * torch.randn(shape, generator=generator),
        weights=token_weights(mask, StepTotals(shape[0], mask.numel()), "grpo", shape[1]),
        advantages=group_advantages((torch.arange(shape[0]) % 2).float()),
        target=policy_rows(causal, mask, case.prompt_tokens),
    )


def ours(update: Update, attention: bool = True, vision: bool = False) -> Way:
    model = copy.deepcopy(update.case.model)
    known = prepare_prompt(model, update.inputs)

    def loss() -> Tensor:
        prompt = prepare_prompt(model, update.inputs) if vision else known
        (out,) = forward_groups(model, [prompt], [list(update.completions)], layers=(-1,) if attention else ())
        token = update.token_loss(out.logps)
        return token + update.attention_loss(out.attention) if attention else token

    return Way(model, loss)


def trl(update: Update) -> Way:
    model = copy.deepcopy(update.case.model)
    trainer, batch = trl_trainer(
        model, update.inputs, update.completions, update.old_logps, update.advantages, update.case.processor
    )
    return Way(trainer.model, lambda: trainer.compute_loss(trainer.model, batch))


def trl_trainer(
    model: Any,
    inputs: Mapping[str, Tensor],
    completions: Tensor,
    old_logps: Tensor,
    advantages: Tensor,
    processor: Any = None,
) -> tuple[GRPOTrainer, dict[str, Any]]:
    """TRL's trainer, and the batch that its `compute_loss` takes for one prompt and its completions `[G, R]`."""
    group, tokens = completions.shape
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=lambda completions, **columns: [0.0] * len(completions),
        args=GRPOConfig(
            output_dir=tempfile.mkdtemp(),
            per_device_train_batch_size=group,
            num_generations=group,
            loss_type="grpo",
            beta=0.0,
            epsilon=EPSILON,
            use_cpu=completions.device.type == "cpu",
            bf16=False,
            gradient_checkpointing=False,  # on by default: it would make this arm slower
            report_to=[],
        ),
        train_dataset=Dataset.from_dict({"prompt": ["unused"]}),
        processing_class=processor or build_processor(),
    )
    trainer.current_gradient_accumulation_steps = 1  # what the training loop sets before a step
    repeated = {key: value.repeat(group, *[1] * (value.ndim - 1)) for key, value in inputs.items()}
    batch = {
        "prompt_ids": repeated["input_ids"],
        "prompt_mask": repeated["attention_mask"],
        "completion_ids": completions,
        "completion_mask": torch.ones_like(completions),
        "old_per_token_logps": old_logps,
        "advantages": advantages,
        "num_images": [len(inputs["image_grid_thw"])] * group,
        "pixel_values": repeated["pixel_values"],
        "image_grid_thw": repeated["image_grid_thw"],
        "mm_token_type_ids": torch.nn.functional.pad(repeated["mm_token_type_ids"], (0, tokens)),
    }
    return trainer, batch


def _grouped_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: None, prefix_grouper: PrefixGrouper, **how: Any
) -> tuple[Tensor, None]:
    """PrefixGrouper's attention, in transformers' `AttentionInterface` convention."""
    sdpa = AttentionInterface()["sdpa"]

    def attend(q: Tensor, k: Tensor, v: Tensor, padding: Tensor) -> Tensor:
        """`[B, T, H, D]`; nothing is padded, and what flash attention takes for granted is said here: no later tokens."""
        queries, keys = q.shape[2], k.shape[2]
        causal = None if queries == keys else torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
        return sdpa(module, q, k, v, causal, **how)[0]

    return prefix_grouper.forward(attend, query, key, value), None


AttentionInterface.register("prefix_grouper", _grouped_attention)


def prefix_grouper(update: Update) -> Way:
    model = copy.deepcopy(update.case.model)
    model.set_attn_implementation({"text_config": "prefix_grouper"})
    inputs, completions, mask = update.inputs, update.completions, torch.ones_like(update.completions)
    group, tokens = completions.shape
    kind, prompt_mask = inputs["mm_token_type_ids"], inputs["attention_mask"]
    grouper = PrefixGrouper.from_ungrouped_masks(prompt_mask, mask, group)
    prompt, _ = model.model.get_rope_index(
        inputs["input_ids"], mm_token_type_ids=kind, image_grid_thw=inputs["image_grid_thw"]
    )
    own = prompt[..., -1:] + 1 + torch.arange(tokens).repeat(group)
    batch = {
        **inputs,
        "input_ids": grouper.concat_input(inputs["input_ids"], prompt_mask, completions, mask),
        "attention_mask": grouper.padding_mask,
        "position_ids": torch.cat([prompt, own], dim=-1),
        "mm_token_type_ids": torch.nn.functional.pad(kind, (0, group * tokens)),
    }

    def loss() -> Tensor:
        logits = model(**batch, prefix_grouper=grouper, use_cache=False).logits
        _, _, logits, _ = grouper.split_output(logits, include_prefix_last=1)
        logps = logits[:, :-1].log_softmax(dim=-1).gather(-1, completions[..., None])[..., 0]
        return update.token_loss(logps)

    return Way(model, loss)


def eager(update: Update) -> Way:
    model = copy.deepcopy(update.case.model)
    model.set_attn_implementation({"text_config": "eager"})  # the vision tower's attention is not asked for
    tokens, prompt = update.completions.shape[1], update.case.prompt_tokens
    batch = update.repeated()
    batch["input_ids"] = torch.cat([batch["input_ids"], update.completions], dim=1)
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    batch["mm_token_type_ids"] = torch.nn.functional.pad(batch["mm_token_type_ids"], (0, tokens))
    mask = torch.ones_like(update.completions, dtype=torch.bool)

    def loss() -> Tensor:
        out = model(**batch, output_attentions=True, use_cache=False, logits_to_keep=tokens + 1)
        logps = out.logits[:, :-1].log_softmax(dim=-1).gather(-1, update.completions[..., None])[..., 0]
        rows = policy_rows(out.attentions[-1].mean(dim=1)[:, prompt:], mask, prompt)
        return update.token_loss(logps) + update.attention_loss(rows)

    return Way(model, loss)


WAYS: dict[str, Callable[[Update], Way]] = {
    "ours": lambda update: ours(update, attention=False),
    "ours+attention": ours,
    "ours+attention+vision": lambda update: ours(update, vision=True),
    "trl": trl,
    "prefix-grouper": prefix_grouper,
    "eager+attention": eager,
}


def build(setting: Setting, name: str) -> Arm:
    """One arm; its unit is the token of prompt and completions that the packed row holds."""
    update = build_update(setting)
    prompt, own = update.case.prompt_tokens, update.completions.shape[1]
    tokens = prompt + setting.group * own
    way = WAYS[name](update)
    facts = {
        "prompt_tokens": prompt,
        "parameters": sum(p.numel() for p in way.model.parameters()),
        "token_ratio_limit": setting.group * (prompt + own) / tokens,
    }
    return Arm(way.step, tokens, facts)


def differences(setting: Setting, names: Iterable[str]) -> dict[str, dict[str, float]]:
    """Each peer against ours: the difference of the losses and the relative one of the gradients."""
    update = build_update(setting)
    ways = {name: WAYS[name](update) for name in names}
    losses = {name: way.step() for name, way in ways.items()}
    found = {}
    for peer, own in TWINS.items():
        if peer in ways and own in ways:
            gap = (ways[peer].gradient() - ways[own].gradient()).norm() / ways[own].gradient().norm()
            found[peer] = {"loss": losses[peer] - losses[own], "gradient_relative": gap.item()}
    return found


if __name__ == "__main__":
    for peer, gap in differences(Setting(), WAYS).items():
        print(f"{peer} − {TWINS[peer]}: loss {gap['loss']:+.1e}, gradient {gap['gradient_relative']:.1e} relative")
