"""`RALTrainer`: GRPO with the attention term, on `transformers.Trainer`.

One optimiser step, in the order of the code below:

    get_batch_samples   records of the step → every `num_iterations` steps: rollouts → rewards → advantages → targets
    compute_loss        packed forward → token loss + λ · attention term
    log                 the step's metrics, averaged over groups and processes

Everything else (optimiser, scheduler, mixed precision, DDP/FSDP/DeepSpeed, checkpoints, trackers) is Trainer's own.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel, gather_object
from peft import PeftConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    PreTrainedModel,
    Trainer,
)

from ral.anchors import ANCHORS, AttentionState
from ral.attention import GroupOutput, Prompt, forward_groups, prepare_prompt, visual_share
from ral.attention.models import has_vision, make_capturable, pretrained, resolve_layers
from ral.config import ConfigError, RALConfig
from ral.data.batches import RepeatedBatches
from ral.data.prompt import encode_prompt
from ral.data.record import Record
from ral.distill import TokenDivergence, check_same_tokens, teacher_pass
from ral.divergence import jensen_shannon
from ral.files import json_line
from ral.groups import ScoredGroup, draw_look_bias, selected_rows
from ral.objective import (
    Mean,
    StepTotals,
    Term,
    distillation_loss,
    group_advantages,
    grpo_loss,
    token_weights,
)
from ral.resources import memory_peak_gib
from ral.rewards import RewardFunction, build_rewards, score_group
from ral.rollout import Completion, Sampling, eos_token_ids, sample
from ral.runs import SAMPLES, MetricsWriter


class RALTrainer(Trainer):
    """Post-train a vision-language (or text) model with Reinforced Attention Learning.

    Args:
        model: the policy, or the folder or hub id to load it from.
        args: settings; `RALConfig(output_dir=…)`.
        train_dataset, eval_dataset: sequences of `Record`.
        reward_funcs: names of the registry or functions with TRL's signature; default 0.9 · accuracy + 0.1 · format.
        reward_weights: one per reward function.
        processing_class: the model's processor (or tokenizer); loaded from the model's folder if not given.
        teacher: model (or folder or hub id) to distil from, with `distill_coef` or `attention_distill_coef`.
        peft_config: trains an adapter; the reference is then the model with the adapter switched off.

    Raises:
        ConfigError: settings that cannot work together. DataError: records that cannot be used.
        UnsupportedModelError: a model whose attention cannot be captured.
    """

    args: RALConfig

    def __init__(
        self,
        model: PreTrainedModel | PeftModel | str | Path,
        args: RALConfig,
        train_dataset: Sequence[Record] | None = None,
        eval_dataset: Sequence[Record] | None = None,
        reward_funcs: RewardFunction | str | Sequence[RewardFunction | str] | None = None,
        processing_class: Any = None,
        peft_config: PeftConfig | None = None,
        teacher: PreTrainedModel | str | Path | None = None,
        reward_weights: Sequence[float] | None = None,
        **trainer_arguments: Any,
    ):
        model, processing_class = _loaded(model, processing_class)
        self.teacher = _teacher(teacher, processing_class, args)
        base = make_capturable(model)
        resolve_layers(base, args.attention_layers)  # refuses layers that the model does not have
        if has_vision(base) and args.freeze_vision:
            base.base_model.visual.requires_grad_(False)
        if peft_config is not None:
            model = get_peft_model(model, peft_config)
            _refuse_adapter_of_frozen_vision(base, args)
        if callable(reward_funcs) or isinstance(reward_funcs, str):
            reward_funcs = [reward_funcs]
        self.rewards = build_rewards(reward_funcs, reward_weights, mode=args.scorer, think=args.think)
        self.anchor = ANCHORS[args.attention_anchor]
        self.needs_reference = args.beta > 0 or (args.attention_coef > 0 and self.anchor.target == "ref")
        self.reference = _frozen_copy(model) if self.needs_reference and not isinstance(model, PeftModel) else None
        self.groups: list[list[ScoredGroup]] = []
        self._means: dict[str, Tensor] = {}
        self._tokens = 0
        self._clock = time.perf_counter()
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **trainer_arguments,
        )
        self.loss_is_scaled_for_ga = True  # `token_weights` normalise over the whole optimiser step
        self.add_callback(MetricsWriter())
        for frozen in (self.reference, self.teacher):
            if (
                frozen is not None
            ):  # on the policy's device and in its mixed precision, or the start would differ from itself
                self.accelerator.prepare_model(frozen, evaluation_mode=True)

    # --- prompts --------------------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader:
        """Micro-batches of records, each optimiser step's worth repeated for the inner updates."""
        if self.train_dataset is None:
            raise ValueError("RALTrainer needs a train_dataset to train")
        batches = RepeatedBatches(
            len(self.train_dataset),
            self.args.prompts_per_batch,
            self.args.gradient_accumulation_steps * self.args.world_size,
            self.args.num_iterations,
            shuffle=True,
            seed=self.args.seed,
        )
        return self.accelerator.prepare(DataLoader(self.train_dataset, batch_sampler=batches, collate_fn=list))

    def prepare(self, record: Record) -> Prompt:
        """A record as a prompt on the device, with its vision features."""
        args = self.args
        inputs = encode_prompt(
            self.processing_class,
            record,
            think=args.think,
            template=args.template,
            min_pixels=args.min_pixels,
            max_pixels=args.max_pixels,
            num_frames=args.num_frames,
            fps=args.fps,
        )
        return prepare_prompt(self.model, inputs)

    # --- one optimiser step -----------------------------------------------------------------------------------------

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> tuple[list, None]:
        """The scored micro-batches of one optimiser step; rollouts are made here, on the first of its inner updates.

        Trainer fetches all micro-batches of a step at once, after the previous step's update: the one place where the
        policy is up to date, and where the data loader, which reads ahead, is not involved.
        """
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.state.global_step % self.args.num_iterations == 0 or not self.groups:
            self.groups = self.make_rollouts(batches)
        self._observe_rollouts([group for micro_batch in self.groups for group in micro_batch])
        return self.groups, None

    def make_rollouts(self, batches: list[list[Record]]) -> list[list[ScoredGroup]]:
        """records → rollouts → rewards → advantages → token weights → reference log-probs and attention targets."""
        generator = self._generator()
        groups = [[self.score(*rollout) for rollout in self.rollouts(records, generator)] for records in batches]
        flat = [group for micro_batch in groups for group in micro_batch]
        totals = self._totals(flat)
        for group in flat:
            mask = torch.arange(int(group.lengths.max())) < group.lengths[:, None]
            weights = token_weights(mask, totals, self.args.loss_type, self.args.max_completion_length)
            # Gradients are averaged over processes, the weights already count all of them.
            group.weights = weights.to(self.args.device) * self.args.world_size
        for micro_batch in groups:
            self._add_targets(micro_batch)
            if self.teacher is not None:
                self._add_teaching(micro_batch)
        if self.is_world_process_zero():
            self._write_samples(flat[: self.args.samples_per_step])
        return groups

    def rollouts(
        self, records: list[Record], generator: torch.Generator
    ) -> list[tuple[Record, Prompt, Tensor | None, list[Completion]]]:
        """G completions per record, sampled from the current policy (under a look bias for the `explore` anchor)."""
        args = self.args
        prompts = [self.prepare(record) for record in records]
        biases = None
        if self.anchor.target == "explore":
            biases = [draw_look_bias(p, args.num_generations, args.explore_sigma, generator) for p in prompts]
        sampling = Sampling(
            args.max_completion_length, eos_token_ids(pretrained(self.model)), args.temperature, args.top_p, args.top_k
        )
        completions = sample(self.model, prompts, args.num_generations, sampling, generator, biases)
        return list(zip(records, prompts, biases or [None] * len(prompts), completions, strict=True))

    def score(
        self, record: Record, prompt: Prompt, look_bias: Tensor | None, completions: list[Completion]
    ) -> ScoredGroup:
        """Rewards and advantages of one group."""
        texts = [self.decode(completion) for completion in completions]
        reward, parts = self.reward(record, texts, completions)
        advantages = group_advantages(reward, self.args.scale_rewards).to(self.args.device)
        return ScoredGroup(record, prompt, completions, texts, parts, reward, advantages, look_bias=look_bias)

    def reward(
        self, record: Record, texts: list[str], completions: list[Completion]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Total reward `[G]` and its parts by name `[G]` (NaN where a function did not apply)."""
        columns: dict[str, Sequence[Any]] = {name: [value] * len(texts) for name, value in record.columns().items()}
        columns["completion_ids"] = [completion.ids.tolist() for completion in completions]
        scored = score_group(self.rewards, [record.problem] * len(texts), texts, columns)
        parts = {
            name: torch.tensor([math.nan if value is None else value for value in values])
            for name, values in scored.parts.items()
        }
        return torch.tensor(scored.total), parts

    def decode(self, completion: Completion) -> str:
        """A completion as text, without its end-of-sequence token but with tags that are tokens."""
        tokenizer = getattr(self.processing_class, "tokenizer", self.processing_class)
        ids = completion.ids if completion.truncated else completion.ids[:-1]
        return tokenizer.decode(ids, skip_special_tokens=False)

    @torch.no_grad()
    def _add_targets(self, groups: list[ScoredGroup]) -> None:
        """What the start model, or the policy under its look bias, says about these completions."""
        if self.needs_reference:
            with self._reference_policy() as reference:
                outputs = self._forward(reference, groups, capture=self._attention_is_trained())
            for group, output in zip(groups, outputs, strict=True):
                group.ref_logps = output.logps
                if self.anchor.target == "ref" and self._attention_is_trained():
                    group.target_rows = selected_rows(output, self.args.attention_keys)
        if self.anchor.target == "explore" and self._attention_is_trained():
            outputs = self._forward(self.model, groups, look_bias=[group.look_bias for group in groups])
            for group, output in zip(groups, outputs, strict=True):
                group.target_rows = selected_rows(output, self.args.attention_keys)

    def _add_teaching(self, groups: list[ScoredGroup]) -> None:
        """The teacher's rows and hidden states over these rollouts."""
        passes = teacher_pass(
            self.teacher,
            [group.prompt for group in groups],
            [group.ids for group in groups],
            layers=self.args.attention_layers if self.args.attention_distill_coef else (),
            query=self.args.attention_query,
            temperature=self.args.temperature,
        )
        for group, (output, hidden) in zip(groups, passes, strict=True):
            group.teacher_rows = list(selected_rows(output, self.args.attention_keys).values())
            group.teacher_hidden = hidden if self.args.distill_coef else None

    def compute_loss(
        self,
        model: nn.Module,
        inputs: list[ScoredGroup],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, list[GroupOutput]]:
        """token loss + λ · attention term (+ μ · GKD + γ · attention distillation), summed over the micro-batch."""
        coef, measure = self.args.attention_coef, self._measures_gradients()
        capture = self._attention_is_trained() or self.args.attention_distill_coef > 0 or measure
        outputs = self._forward(model, inputs, capture=capture, token_statistics=self._token_divergence(inputs))
        token = sum((self._token_term(g, o).loss for g, o in zip(inputs, outputs, strict=True)), torch.zeros(()))
        attention = sum((self._attention_term(g, o) for g, o in zip(inputs, outputs, strict=True)), torch.zeros(()))
        if measure:
            self._observe_gradients(token, attention)
        loss = token + coef * attention if coef else token
        if self.teacher is not None:
            loss = loss + sum(self._distillation(g, o) for g, o in zip(inputs, outputs, strict=True))
        return (loss, outputs) if return_outputs else loss

    def _token_term(self, group: ScoredGroup, output: GroupOutput) -> Term:
        if group.old_logps is None:
            # First inner update: the policy still is the one that made the rollouts, so this pass is the old pass.
            group.old_logps = output.logps.detach()
        term = grpo_loss(
            output.logps,
            group.old_logps,
            group.advantages,
            group.weights,
            epsilon=self.args.epsilon,
            epsilon_high=self.args.epsilon_high,
            ref_logps=group.ref_logps if self.args.beta else None,
            beta=self.args.beta,
        )
        self._observe(term.metrics | {"entropy": Mean.over(output.entropy, output.mask)})
        return term

    def _attention_term(self, group: ScoredGroup, output: GroupOutput) -> Tensor:
        """Mean of the anchor's loss over the trained layers; 0 where no attention was captured."""
        rows = selected_rows(output, self.args.attention_keys)
        if not rows:
            return torch.zeros((), device=self.args.device)
        losses = []
        for layer, current in rows.items():
            old = group.old_rows.setdefault(layer, current.detach())
            target = None if group.target_rows is None else group.target_rows[layer]
            if self.anchor.target is not None and target is None:
                target = old  # measured, but not trained: an arm without the attention term
            state = AttentionState(
                current, old, target, self._attention_advantages(group), group.weights,
                group.shared_keys(self.args.attention_keys),
            )  # fmt: skip
            term = self.anchor.term(state)
            losses.append(term.loss)
            self._observe(term.metrics | {"attention/loss": Mean(term.loss.detach(), torch.tensor(1.0))})
            if bool(output.visual.any()):
                share = visual_share(output.alpha[layer].detach(), output.mask, output.visual)
                self._observe({"visual_share": Mean(share, torch.tensor(1.0))})
        return torch.stack(losses).mean()

    def _token_divergence(self, groups: list[ScoredGroup]) -> TokenDivergence | None:
        """What measures the student's token distributions against the teacher's, in the order of the packed row."""
        hidden = [group.teacher_hidden for group in groups if group.teacher_hidden is not None]
        if not hidden or self.teacher is None:
            return None
        head = pretrained(self.teacher).get_output_embeddings()
        return TokenDivergence(head, torch.cat(hidden), self.args.distill_beta, self.args.temperature)

    def _distillation(self, group: ScoredGroup, output: GroupOutput) -> Tensor:
        """μ · GKD + γ · JSD(student's rows ‖ teacher's rows), without advantage."""
        loss = torch.zeros((), device=self.args.device)
        if self.args.distill_coef:
            term = distillation_loss(output.extra["gkd"], group.weights, "distill/gkd")
            self._observe(term.metrics)
            loss = loss + self.args.distill_coef * term.loss
        if self.args.attention_distill_coef and group.teacher_rows is not None:
            rows = selected_rows(output, self.args.attention_keys).values()
            for student, teacher in zip(rows, group.teacher_rows, strict=True):
                divergence = jensen_shannon(student, teacher)
                term = distillation_loss(divergence, group.weights, "distill/attention_jsd")
                self._observe(term.metrics)
                loss = loss + self.args.attention_distill_coef * term.loss / len(group.teacher_rows)
        return loss

    def _attention_advantages(self, group: ScoredGroup) -> Tensor:
        """Advantages of the attention term: GRPO's own, or a control."""
        match self.args.attention_advantage:
            case "absolute":
                return group.advantages.abs()
            case "shuffled":
                order = torch.randperm(len(group.advantages), generator=self._generator())
                return group.advantages[order.to(group.advantages.device)]
            case _:
                return group.advantages

    def _forward(
        self,
        model: nn.Module,
        groups: list[ScoredGroup],
        capture: bool = True,
        look_bias: list[Tensor | None] | None = None,
        token_statistics: TokenDivergence | None = None,
    ) -> list[GroupOutput]:
        return forward_groups(
            model,
            [group.prompt for group in groups],
            [group.ids for group in groups],
            layers=self.args.attention_layers if capture else (),
            query=self.args.attention_query,
            temperature=self.args.temperature,
            look_bias=look_bias,
            token_statistics=token_statistics,
        )

    def _reference_policy(self) -> AbstractContextManager[nn.Module]:
        if self.reference is not None:
            return nullcontext(self.reference)
        return _adapter_off(self.model)

    def _attention_is_trained(self) -> bool:
        return self.args.attention_coef > 0

    def _generator(self) -> torch.Generator:
        """Random numbers of this step and process, the same whether the run was resumed or not."""
        rollout = self.state.global_step // self.args.num_iterations
        return torch.Generator().manual_seed(hash((self.args.seed, rollout, self.args.process_index)) % 2**63)

    def _totals(self, groups: list[ScoredGroup]) -> StepTotals:
        counts = torch.tensor([sum(len(g.completions) for g in groups), sum(int(g.lengths.sum()) for g in groups)])
        counts = self.accelerator.reduce(counts.to(self.args.device), reduction="sum")
        return StepTotals(int(counts[0]), int(counts[1]))

    # --- checkpoints ------------------------------------------------------------------------------------------------

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Weights of a checkpoint, read as `from_pretrained` reads them.

        Trainer's own method looks for the model's names in the file, where Qwen2-VL's and Qwen2.5-VL's are other ones: it
        would load nothing, and go on from the start model with a warning (huggingface/transformers#43701).
        """
        if isinstance(self.model, PeftModel) or self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            saved = type(self.model).from_pretrained(resume_from_checkpoint, dtype=self.model.dtype)
            self.model.load_state_dict(saved.state_dict())

    def _load_best_model(self) -> None:
        self._load_from_checkpoint(self.state.best_model_checkpoint, self.model_wrapped)

    # --- evaluation while training ----------------------------------------------------------------------------------

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Mean rewards of the most likely completion of every held-out record."""
        records = self.eval_dataset if eval_dataset is None else eval_dataset
        if records is None:
            raise ValueError("RALTrainer needs an eval_dataset to evaluate")
        sampling = Sampling(self.args.max_completion_length, eos_token_ids(pretrained(self.model)), temperature=0)
        sums: dict[str, Tensor] = {}
        mine = list(records)[self.args.process_index :: self.args.world_size]
        for start in range(0, len(mine), self.args.per_device_eval_batch_size):
            batch = mine[start : start + self.args.per_device_eval_batch_size]
            completions = sample(self.model, [self.prepare(record) for record in batch], 1, sampling)
            for record, (completion,) in zip(batch, completions, strict=True):
                reward, parts = self.reward(record, [self.decode(completion)], [completion])
                observed = {"reward": reward, **{f"reward/{name}": values for name, values in parts.items()}}
                observed["completion_length"] = torch.tensor([float(len(completion.ids))])
                _accumulate(sums, {name: Mean.over(values, ~values.isnan()) for name, values in observed.items()})
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in self._averages(sums).items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    # --- what is logged ---------------------------------------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Trainer's values and, on training steps, everything observed since the last log."""
        if "loss" in logs:
            now = time.perf_counter()
            logs = logs | self._averages(self._means)
            logs["step_seconds"] = (now - self._clock) / self.args.logging_steps
            logs["tokens_per_second"] = self._tokens / (now - self._clock)  # completion tokens, of this process
            logs["memory_peak_gib"] = memory_peak_gib()
            self._means, self._tokens, self._clock = {}, 0, now
        super().log(logs, start_time)

    def _observe(self, metrics: Mapping[str, Mean]) -> None:
        _accumulate(self._means, metrics)

    def _averages(self, sums: dict[str, Tensor]) -> dict[str, float]:
        """Totals over weights, over all processes. A metric that was never observed is left out."""
        names = sorted(sums)
        if self.args.world_size > 1:
            names = sorted(set(gather_object(names)))
        table = torch.stack([sums.get(name, torch.zeros(2)) for name in names]) if names else torch.zeros(0, 2)
        table = self.accelerator.reduce(table.to(self.args.device), reduction="sum").cpu()
        return {name: float(total / weight) for name, (total, weight) in zip(names, table, strict=True) if weight > 0}

    def _observe_rollouts(self, groups: list[ScoredGroup]) -> None:
        """Rewards, lengths and signal of the rollouts this update learns from."""
        reward = torch.stack([group.reward for group in groups])
        lengths = torch.cat([group.lengths for group in groups]).float()
        truncated = torch.tensor([float(c.truncated) for group in groups for c in group.completions])
        no_signal = (reward == reward[:, :1]).all(dim=1).float()
        advantages = torch.stack([group.advantages for group in groups]).cpu()
        everything = {"reward": reward, "reward_std": reward.std(dim=1), "groups_without_signal": no_signal}
        everything |= {"advantage_std": advantages.std(dim=1), "completion_length": lengths, "truncated": truncated}
        for name in groups[0].rewards:
            everything[f"reward/{name}"] = torch.cat([group.rewards[name] for group in groups])
        self._observe({name: Mean.over(values, ~values.isnan()) for name, values in everything.items()})
        self._tokens += int(lengths.sum())

    def _write_samples(self, groups: list[ScoredGroup]) -> None:
        """A few fresh rollouts, for people to read."""
        with open(Path(self.args.output_dir) / SAMPLES, "a", encoding="utf-8") as stream:
            for group in groups:
                for g, text in enumerate(group.texts):
                    row = {
                        "step": self.state.global_step + 1,
                        "id": group.record.id,
                        "question": group.record.problem,
                        "solution": group.record.solution,
                        "completion": text,
                        "reward": float(group.reward[g]),
                        "rewards": {name: float(values[g]) for name, values in group.rewards.items()},
                        "advantage": float(group.advantages[g]),
                    }
                    stream.write(json_line(row))

    def _measures_gradients(self) -> bool:
        """Whether the gradients' norms are measured in this step: all inner updates of every n-th rollout batch."""
        every = self.args.gradient_norm_steps
        return every > 0 and (self.state.global_step // self.args.num_iterations) % every == 0

    def _observe_gradients(self, token: Tensor, attention: Tensor) -> None:
        """Norms of the two terms' gradients on this micro-batch and process; λ is included."""
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        norms = {}
        for name, loss in (("token", token), ("attention", self.args.attention_coef * attention)):
            grads = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
            norms[name] = torch.stack([g.float().norm() for g in grads if g is not None]).norm()
        one = torch.tensor(1.0)
        self._observe({f"grad/{name}_norm": Mean(norm, one) for name, norm in norms.items()})
        if norms["token"] > 0:
            self._observe({"grad/attention_to_token": Mean(norms["attention"] / norms["token"], one)})


@contextmanager
def _adapter_off(model: nn.Module) -> Iterator[nn.Module]:
    """The policy with its adapter switched off: the model the adapter was put on."""
    with extract_model_from_parallel(model).disable_adapter():
        yield model


def _refuse_adapter_of_frozen_vision(base: PreTrainedModel, args: RALConfig) -> None:
    if has_vision(base) and args.freeze_vision and any(p.requires_grad for p in base.base_model.visual.parameters()):
        raise ConfigError(
            "peft_config adapts the vision tower, but freeze_vision=True keeps it as it is; "
            "set exclude_modules='.*visual.*' in the peft_config, or freeze_vision=False"
        )


def _loaded(model: Any, processing_class: Any) -> tuple[Any, Any]:
    """Model and processor, loaded by name where they are not given."""
    if isinstance(model, str | Path):
        loader = AutoModelForImageTextToText if _is_vision_model(model) else AutoModelForCausalLM
        model = loader.from_pretrained(model, dtype="auto")
    if processing_class is None:
        processing_class = AutoProcessor.from_pretrained(pretrained(model).name_or_path)
    return model, processing_class


def _teacher(teacher: PreTrainedModel | str | Path | None, processing_class: Any, args: RALConfig) -> nn.Module | None:
    """The frozen teacher, if the settings ask for one.

    Raises:
        ConfigError: coefficients without a teacher, or a teacher without a coefficient.
        TeacherError: another tokenizer.
    """
    wanted = args.distill_coef > 0 or args.attention_distill_coef > 0
    if wanted != (teacher is not None):
        raise ConfigError(
            "distill_coef or attention_distill_coef is set, but there is no teacher to distil from; give one as teacher"
            if wanted
            else "a teacher is given, but nothing is distilled from it; set distill_coef or attention_distill_coef"
        )
    if teacher is None:
        return None
    named = isinstance(teacher, str | Path)
    if named or teacher.name_or_path:
        check_same_tokens(processing_class, AutoProcessor.from_pretrained(teacher if named else teacher.name_or_path))
    model = _loaded(teacher, processing_class)[0]
    make_capturable(model)
    return model.eval().requires_grad_(False)


def _is_vision_model(name: str | Path) -> bool:
    return hasattr(AutoConfig.from_pretrained(name), "vision_config")


def _frozen_copy(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).eval().requires_grad_(False)


def _accumulate(sums: dict[str, Tensor], metrics: Mapping[str, Mean]) -> None:
    for name, metric in metrics.items():
        pair = torch.stack([metric.total.float().cpu(), metric.weight.float().cpu()])
        sums[name] = sums[name] + pair if name in sums else pair
