"""`RALTrainer`: GRPO with the attention term, on `transformers.Trainer`.

One optimiser step, in the order of the code below:

    get_batch_samples   records of the step → every `num_iterations` steps: rollouts → rewards → advantages → targets
    compute_loss        packed forward → token loss + λ · attention term
    log                 the step's metrics, averaged over groups and processes

A loss or gradient that is not a number stops the run before the update (`NonFiniteGuardTrainer`). Everything else (optimiser,
scheduler, mixed precision, DDP/FSDP/DeepSpeed, checkpoints, trackers) is Trainer's own.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from peft import PeftConfig, PeftModel
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from ral.attention import GroupOutput, Prompt, forward_groups, prepare_prompt
from ral.attention.flex import refuse_untrainable
from ral.attention.models import make_capturable, pretrained, resolve_layers, trains_vision
from ral.config import RALConfig, replayed
from ral.data.prompt import encode_prompt
from ral.data.readers import as_records
from ral.data.reading import naming
from ral.data.record import Record
from ral.errors import ConfigError, UsageError
from ral.models.adapters import leaves_start, put_adapter
from ral.models.loading import (
    freeze_vision,
    frozen,
    frozen_copy,
    load_model,
    load_processor,
    refuse_adapter_of_frozen_vision,
    training_dtype,
)
from ral.models.noise import switch_off_noise
from ral.models.sharding import (
    gather_weights,
    gathered,
    prepare_frozen,
    refuse_sharded_rollouts,
    zero_vision_loss,
)
from ral.objective.anchors import ANCHORS
from ral.objective.terms import Mean, StepTotals, Term, group_advantages, importance, token_weights
from ral.rewards.functions import RewardError, RewardFunction, build_rewards, of_record, score_group
from ral.rollouts.group import ScoredGroup, draw_look_bias, rollout_metrics, selected_rows
from ral.rollouts.sampling import Completion, Sampling, eos_token_ids, sample
from ral.rollouts.vllm import VLLMServer
from ral.runs.checkpoints import CheckpointError
from ral.runs.folder import SAMPLES, MetricsWriter, append_jsonl
from ral.runs.machine import memory_peak_gib
from ral.training.balance import GradientBalance
from ral.training.batches import EpochOrder, RepeatedBatches
from ral.training.distillation import TokenDivergence, check_same_tokens, teacher_pass
from ral.training.dumps import FailedReward, RolloutsDump
from ral.training.evidence import answer_tokens, evidence_tokens, require_evidence
from ral.training.learning_warnings import LearningWarnings
from ral.training.losses import attention_term, distillation_term, token_term
from ral.training.nonfinite import NonFiniteGuardTrainer
from ral.training.running_means import RunningMeans

#: What holds training data: a path or hub id, a `datasets.Dataset`, rows of a known format, or `Record`s.
Rows = str | Path | Iterable[Mapping[str, Any] | Record]


class RALTrainer(NonFiniteGuardTrainer):
    """Post-train a vision-language (or text) model with Reinforced Attention Learning.

    Args:
        model: the policy, or the folder or hub id to load it from.
        args: settings; `RALConfig(output_dir=…)`.
        train_dataset, eval_dataset: a path or hub id, a `datasets.Dataset`, rows of a known format, or `Record`s.
        reward_funcs: names of the registry or functions with TRL's signature; default 0.9 · accuracy + 0.1 · format.
        reward_weights: one per reward function.
        processing_class: the model's processor (or tokenizer); loaded from the model's folder if not given.
        teacher: model (or folder or hub id) to distil from, with `distill_coef` or `attention_distill_coef`.
        peft_config: trains an adapter; the reference is then the model with the adapter switched off, if that is the start.

    Raises:
        ConfigError: settings that cannot work together. DataError: records that cannot be used.
        UnsupportedModelError: a model whose attention cannot be captured.
    """

    args: RALConfig
    model: nn.Module
    train_dataset: list[Record] | None
    eval_dataset: list[Record] | None

    def __init__(
        self,
        model: PreTrainedModel | PeftModel | str | Path,
        args: RALConfig,
        train_dataset: Rows | None = None,
        eval_dataset: Rows | None = None,
        reward_funcs: RewardFunction | str | Sequence[RewardFunction | str] | None = None,
        processing_class: Any = None,
        peft_config: PeftConfig | None = None,
        teacher: PreTrainedModel | str | Path | None = None,
        reward_weights: Sequence[float] | None = None,
        **trainer_arguments: Any,
    ):
        if isinstance(model, str | Path):
            model = load_model(model, dtype=training_dtype(adapter=peft_config is not None))
        policy: nn.Module = model
        base = make_capturable(policy)
        processing_class = processing_class or load_processor(str(base.name_or_path))
        resolve_layers(base, args.attention_layers)  # refuses layers that the model does not have
        if args.attention_kernel == "flex":
            refuse_untrainable(args.device)
        if args.freeze_vision:
            freeze_vision(base)
        if peft_config is not None:
            policy = put_adapter(base, peft_config, args.seed)
            refuse_adapter_of_frozen_vision(base, args.freeze_vision)
        if args.disable_dropout:
            switch_off_noise(policy)
        if callable(reward_funcs) or isinstance(reward_funcs, str):
            reward_funcs = [reward_funcs]
        self.trains_vision = trains_vision(base)
        self.rewards = build_rewards(reward_funcs, reward_weights, mode=args.scorer, think=args.think)
        self.anchor = ANCHORS[args.attention_anchor]
        self.needs_reference = args.beta > 0 or (args.attention_coef > 0 and self.anchor.target == "ref")
        switched_off = isinstance(policy, PeftModel) and leaves_start(policy)
        self.reference = frozen_copy(policy) if self.needs_reference and not switched_off else None
        self.teacher = _load_teacher(teacher, processing_class, args)
        self.balance = GradientBalance(args.attention_share)
        self.groups: list[list[ScoredGroup]] = []
        self._means = RunningMeans()
        self._tokens = self._logged_step = 0
        self._clock = time.perf_counter()
        super().__init__(
            model=policy,
            args=args,
            train_dataset=None if train_dataset is None else as_records(train_dataset, name="train_dataset"),
            eval_dataset=None if eval_dataset is None else as_records(eval_dataset, name="eval_dataset"),
            processing_class=processing_class,
            callbacks=[
                MetricsWriter(),
                LearningWarnings(),
                self.balance,
                *(trainer_arguments.pop("callbacks", None) or ()),
            ],
            **trainer_arguments,
        )
        if args.attention_coef and self.anchor.target == "evidence" and self.train_dataset is not None:
            require_evidence(self.train_dataset)
        refuse_sharded_rollouts(self.accelerator)
        self.server = None
        if args.rollout_engine == "vllm":
            folder = Path(args.vllm_weights or f"{args.output_dir}/vllm-weights")
            self.server = VLLMServer(args.vllm_url, policy, folder, num_frames=args.num_frames, fps=args.fps)
        self.loss_is_scaled_for_ga = True  # `token_weights` normalise over the whole optimiser step
        # In the policy's mixed precision, or the reference would differ from the start.
        if self.reference is not None:
            self.reference = prepare_frozen(self.accelerator, self.reference, shard=True)
        if self.teacher is not None:  # whole: its vision tower runs where a process has an image, and nowhere else
            self.teacher = prepare_frozen(self.accelerator, self.teacher)

    # --- prompts --------------------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader:
        """Micro-batches of records, each optimiser step's worth repeated for the inner updates."""
        if self.train_dataset is None:
            raise UsageError("RALTrainer needs a train_dataset to train")
        batches = RepeatedBatches(
            len(self.train_dataset),
            self.args.prompts_per_batch,
            self.args.gradient_accumulation_steps * self.args.world_size,
            self.args.num_iterations,
            shuffle=True,
            seed=self.args.seed,
        )
        self.add_callback(EpochOrder(batches))
        records: Any = self.train_dataset  # a list is a map-style dataset
        return self.accelerator.prepare(DataLoader(records, batch_sampler=batches, collate_fn=list))

    def prepare(self, record: Record) -> Prompt:
        """A record as a prompt on the device, with its vision features."""
        with naming(record):
            inputs = encode_prompt(self.processing_class, record, self.args.prompt)
            return prepare_prompt(self.model, inputs)

    # --- one optimiser step -----------------------------------------------------------------------------------------

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> tuple[list, None]:
        """The scored micro-batches of one optimiser step; rollouts are made here, on the first of its inner updates.

        Trainer fetches all micro-batches of a step at once, after the previous step's update: the one place where the
        policy is up to date, and where the data loader, which reads ahead, is not involved.
        """
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if not batches:
            return [], None
        if self._step % self.args.num_iterations == 0:
            if self.server is not None:
                self.server.sync_weights(self.model_wrapped, self.accelerator)
            gather_weights(self.model)
            self.groups = self.make_rollouts(batches)
        elif not self.groups:
            raise CheckpointError(
                f"checkpoint-{self._step} lies between the inner updates of one rollout batch, whose rollouts it does not "
                f"hold; go on from one whose step is a multiple of num_iterations={self.args.num_iterations}"
            )
        groups = [group for micro_batch in self.groups for group in micro_batch]
        self._means.add(rollout_metrics(groups))
        self._tokens += sum(int(group.lengths.sum()) for group in groups)
        return self.groups, None

    def make_rollouts(self, batches: list[list[Record]]) -> list[list[ScoredGroup]]:
        """records → rollouts → rewards → advantages → token weights → what the losses are held against."""
        micro_batches = [self.rollouts(records, self._first_place(j)) for j, records in enumerate(batches)]
        groups = [group for micro_batch in micro_batches for group in micro_batch]
        totals = self._totals(groups)
        for group in groups:
            mask = torch.arange(int(group.lengths.max())) < group.lengths[:, None]
            weights = token_weights(mask, totals, self.args.loss_type, self.args.max_completion_length)
            # Gradients are averaged over processes, the weights already count all of them.
            group.weights = weights.to(self.args.device) * self.args.world_size
        for micro_batch in micro_batches:
            self._add_targets(micro_batch)
        if self.is_world_process_zero():
            rows = (row for group in groups[: self.args.samples_per_step] for row in group.samples(self._step + 1))
            append_jsonl(Path(str(self.args.output_dir)) / SAMPLES, rows)
        return micro_batches

    def rollouts(self, records: list[Record], first_place: int) -> list[ScoredGroup]:
        """G scored completions per record, sampled from the policy (under a look bias for the `explore` anchor).

        Args:
            first_place: of the records among all prompts of the step; a prompt's random numbers depend on its place.
        """
        args = self.args
        places = range(first_place, first_place + len(records))
        looks, tokens, shuffles = ([self._generator(place, stream) for place in places] for stream in range(3))
        prompts = [self.prepare(record) for record in records]
        biases: list[Tensor] | None = None
        if self.anchor.target == "explore":
            biases = [
                draw_look_bias(prompt, args.num_generations, args.explore_sigma, generator)
                for prompt, generator in zip(prompts, looks, strict=True)
            ]
        if self.server is not None:
            completions = self.server.sample(records, prompts, args.num_generations, self._sampling(), tokens)
        else:
            completions = sample(self.model, prompts, args.num_generations, self._sampling(), tokens, biases)
        groups = [self.score(*one) for one in zip(records, prompts, completions, shuffles, strict=True)]
        for group, bias in zip(groups, biases or (), strict=biases is not None):
            group.look_bias = bias
        return groups

    def score(
        self, record: Record, prompt: Prompt, completions: list[Completion], shuffle: torch.Generator
    ) -> ScoredGroup:
        """Rewards and advantages of one group; `shuffle` is for the control that permutes the latter."""
        texts = [completion.text(self.processing_class) for completion in completions]
        reward, parts = self.reward(record, texts, completions)
        advantages = group_advantages(reward, self.args.scale_rewards).to(self.args.device)
        of_attention = advantages
        if self.args.attention_advantage == "absolute":
            of_attention = advantages.abs()
        elif self.args.attention_advantage == "shuffled":
            of_attention = advantages[torch.randperm(len(advantages), generator=shuffle).to(advantages.device)]
        return ScoredGroup(record, prompt, completions, texts, parts, reward, advantages, of_attention)

    def reward(
        self, record: Record, texts: list[str], completions: list[Completion]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Total reward `[G]` and its parts by name `[G]` (NaN where a function did not apply).

        Raises RewardError, which names record and function; the completions that it failed on are kept for `ral replay`.
        """
        ids = [completion.ids.tolist() for completion in completions]
        try:
            scored = score_group(self.rewards, *of_record(record, texts, ids), time_limit=self.args.reward_timeout)
        except RewardError as error:
            what = f"{record.place}: {error}"
            folder = Path(str(self.args.output_dir)) / f"failed-reward-{self._step + 1}"
            failed = FailedReward(
                what=what,
                step=self._step,
                record=record,
                texts=texts,
                ids=ids,
                think=self.args.think,
                scorer=self.args.scorer,
            )
            failed.save(folder, self.args.process_index)
            raise RewardError(f"{what}. `ral replay {folder} --reward FUNCTION` calls it again") from error
        count = Mean(torch.tensor(float(scored.failed)), torch.tensor(float(len(texts))))
        self._means.add({"scorer_failed": count})
        parts = {
            name: torch.tensor([math.nan if value is None else value for value in values])
            for name, values in scored.parts.items()
        }
        return torch.tensor(scored.total), parts

    @torch.no_grad()
    def _add_targets(self, groups: list[ScoredGroup]) -> None:
        """What the reference, the policy under its look bias, the evidence and the teacher say about these rollouts."""
        args, trained = self.args, self.args.attention_coef > 0
        if self.needs_reference:
            with self._reference_policy() as reference:
                outputs = self.forward(reference, groups, capture=trained and self.anchor.target == "ref")
            for group, output in zip(groups, outputs, strict=True):
                group.ref_logps = output.logps
                if output.layers:
                    group.target_rows = self._rows(output)
        if self.anchor.target == "explore" and (trained or args.explore_ratio == "behaviour"):
            biases = [group.look_bias for group in groups]
            outputs = self.forward(self.model, groups, capture=trained, look_bias=biases)
            for group, output in zip(groups, outputs, strict=True):
                group.biased_logps = output.logps
                group.old_logps = output.logps if args.explore_ratio == "behaviour" else None
                group.target_rows = self._rows(output) if trained else None
        if self.anchor.target == "evidence" and trained:
            for group in groups:
                with naming(group.record):
                    group.evidence = evidence_tokens(
                        group.record, group.prompt, self.processing_class, args.num_frames, args.fps
                    )
                spelt = answer_tokens(group.texts, group.ids, self.processing_class, args.scorer, args.think)
                group.answer = spelt.to(args.device)
        if self.teacher is not None:
            for group, (output, hidden) in zip(groups, self._teacher_pass(groups), strict=True):
                rows = self._rows(output)
                group.teacher_rows = list(rows.values())
                group.teacher_hidden = hidden if args.distill_coef else None
                if self.anchor.target == "teacher":
                    group.target_rows = dict(
                        zip(resolve_layers(self._base, args.attention_layers), rows.values(), strict=True)
                    )

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, list[GroupOutput]]:
        """token loss + λ · attention term (+ μ · GKD + γ · attention distillation), summed over the micro-batch."""
        groups: list[ScoredGroup] = inputs
        args, measure = self.args, self._measures_gradients()
        capture = args.attention_coef > 0 or args.attention_distill_coef > 0 or measure
        blind = self.trains_vision and not any(bool(group.prompt.visual.any()) for group in groups)
        nothing = zero_vision_loss(self.model) if blind else torch.zeros((), device=args.device)
        outputs = self.forward(model, groups, capture=capture, token_statistics=self._token_divergence(groups))
        token = attention = teaching = nothing
        for group, output in zip(groups, outputs, strict=True):
            self.keep_old(group, output)
            token = token + self._observed(token_term(group, output, args))
            attention = attention + self._observed(attention_term(group, output, args, measure))
            teaching = teaching + self._observed(distillation_term(group, output, args))
        coef = args.attention_coef
        if measure:
            self._means.add(self.balance.measure(self.model, token, coef * attention, self.accelerator))
        loss = token + coef * self.balance.factor * attention if coef else token
        loss = loss + teaching if self.teacher is not None else loss
        self.require_finite("the loss", loss)
        return (loss, outputs) if return_outputs else loss

    def dump(self, what: str) -> RolloutsDump:
        return RolloutsDump(
            what=what,
            step=self._step,
            max_steps=self.state.max_steps,
            settings=replayed(self.args),
            micro_batches=self.groups,
            factor=self.balance.factor,
            teacher=None if self.teacher is None else str(pretrained(self.teacher).name_or_path),
        )

    # --- parts of the step ------------------------------------------------------------------------------------------

    @property
    def _step(self) -> int:
        return self.state.global_step

    @property
    def _base(self) -> PreTrainedModel:
        return pretrained(self.model)

    def _sampling(self) -> Sampling:
        args, eos = self.args, eos_token_ids(self._base)
        return Sampling(args.max_completion_length, eos, args.temperature, args.top_p, args.top_k)

    def _rows(self, output: GroupOutput) -> dict[int, Tensor]:
        return selected_rows(output, self.args.attention_keys, self.args.attention_skip)

    def keep_old(self, group: ScoredGroup, output: GroupOutput) -> None:
        """First inner update: the policy still is the one that made the rollouts, so this pass is the old pass."""
        if group.old_logps is None:
            group.old_logps = output.logps.detach()
            self._correct(group, output)
        if not group.old_rows:
            group.old_rows = {layer: rows.detach() for layer, rows in self._rows(output).items()}

    def _correct(self, group: ScoredGroup, output: GroupOutput) -> None:
        """Tokens that another engine drew count by how much likelier the policy finds them than that engine did."""
        if (sampling_logps := group.sampling_logps) is None:
            return
        sampling_logps = sampling_logps.to(self.args.device)
        ratio = importance(output.logps, sampling_logps, self.args.importance_cap)
        gap = (output.logps - sampling_logps).abs()
        group.weights = group.weights * ratio
        self._means.add(
            {"rollout/importance": Mean.over(ratio, output.mask), "rollout/logp_gap": Mean.over(gap, output.mask)}
        )

    def forward(
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
            kernel=self.args.attention_kernel,
        )

    def _reference_policy(self) -> AbstractContextManager[nn.Module]:
        return _adapter_off(self.model) if self.reference is None else gathered(self.reference)

    def _teacher_pass(self, groups: list[ScoredGroup]) -> list[tuple[GroupOutput, Tensor]]:
        """The teacher's rows and hidden states over these rollouts."""
        args = self.args
        assert self.teacher is not None
        looks = args.attention_distill_coef > 0 or self.anchor.target == "teacher"
        return teacher_pass(
            self.teacher,
            [group.prompt for group in groups],
            [group.ids for group in groups],
            layers=args.attention_layers if looks else (),
            query=args.attention_query,
            temperature=args.temperature,
            kernel=args.attention_kernel,
        )

    def _token_divergence(self, groups: list[ScoredGroup]) -> TokenDivergence | None:
        """What measures the student's token distributions against the teacher's, in the order of the packed row."""
        hidden = [group.teacher_hidden for group in groups if group.teacher_hidden is not None]
        if not hidden or self.teacher is None:
            return None
        head = pretrained(self.teacher).get_output_embeddings()
        return TokenDivergence(head, torch.cat(hidden), self.args.distill_beta, self.args.temperature)

    def _first_place(self, micro_batch: int) -> int:
        """Of this process's micro-batch among all prompts of the optimiser step."""
        return (micro_batch * self.args.world_size + self.args.process_index) * self.args.prompts_per_batch

    def _generator(self, place: int, stream: int) -> torch.Generator:
        """Random numbers of one prompt: the same resumed or not, accumulated or not, and on however many processes."""
        rollout = self._step // self.args.num_iterations
        return torch.Generator().manual_seed(hash((self.args.seed, rollout, place, stream)) % 2**63)

    def _totals(self, groups: list[ScoredGroup]) -> StepTotals:
        counts = torch.tensor([sum(len(g.completions) for g in groups), sum(int(g.lengths.sum()) for g in groups)])
        counts = self.accelerator.reduce(counts.to(self.args.device), reduction="sum")
        return StepTotals(int(counts[0]), int(counts[1]))

    def _measures_gradients(self) -> bool:
        """Whether the gradients' norms are measured in this step: all inner updates of every n-th rollout batch."""
        every = self.args.gradient_norm_steps
        return every > 0 and (self._step // self.args.num_iterations) % every == 0

    def _observed(self, term: Term) -> Tensor:
        self._means.add(term.metrics)
        return term.loss

    # --- evaluation while training ----------------------------------------------------------------------------------

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Mean rewards of the most likely completion of every held-out record."""
        started = time.perf_counter()
        records = self.eval_dataset if eval_dataset is None else as_records(eval_dataset)
        if records is None:
            raise UsageError("RALTrainer needs an eval_dataset to evaluate")
        greedy = replace(self._sampling(), temperature=0)
        means = RunningMeans()
        mine = records[self.args.process_index :: self.args.world_size]
        gather_weights(self.model)
        for start in range(0, len(mine), self.args.per_device_eval_batch_size):
            batch = mine[start : start + self.args.per_device_eval_batch_size]
            completions = sample(self.model, [self.prepare(record) for record in batch], 1, greedy)
            for record, (completion,) in zip(batch, completions, strict=True):
                reward, parts = self.reward(record, [completion.text(self.processing_class)], [completion])
                observed = {"reward": reward, **{f"reward/{name}": values for name, values in parts.items()}}
                observed["completion_length"] = torch.tensor([float(len(completion.ids))])
                means.add({name: Mean.over(values, ~values.isnan()) for name, values in observed.items()})
        metrics = {f"{metric_key_prefix}_{k}": v for k, v in means.averages(self.accelerator).items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self._clock += time.perf_counter() - started  # not a part of the training steps' time
        return metrics

    # --- what is logged ---------------------------------------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Trainer's values and, on training steps, everything observed since the last log."""
        if "loss" in logs:
            now = time.perf_counter()
            logs = logs | self._means.averages(self.accelerator)
            logs["step_seconds"] = (now - self._clock) / max(1, self._step - self._logged_step)
            logs["tokens_per_second"] = self._tokens / (now - self._clock)  # completion tokens, of this process
            logs["memory_peak_gib"] = memory_peak_gib()
            self._means, self._tokens, self._clock, self._logged_step = RunningMeans(), 0, now, self._step
        super().log(logs, start_time)


@contextmanager
def _adapter_off(model: nn.Module) -> Iterator[nn.Module]:
    """The policy with its adapter switched off: the model the adapter was put on."""
    with extract_model_from_parallel(model).disable_adapter():
        yield model


def _load_teacher(
    teacher: PreTrainedModel | str | Path | None, processing_class: Any, args: RALConfig
) -> nn.Module | None:
    """The frozen teacher, if the settings ask for one.

    Raises:
        ConfigError: settings that need a teacher without one, or a teacher that nothing is learnt from.
        TeacherError: another tokenizer.
    """
    if args.wants_teacher != (teacher is not None):
        raise ConfigError(
            "distill_coef, attention_distill_coef or attention_anchor='teacher' is set, but there is no teacher; give one"
            if args.wants_teacher
            else "a teacher is given, but nothing is learnt from it; set distill_coef, attention_distill_coef or "
            "attention_anchor='teacher'"
        )
    if teacher is None:
        return None
    model = load_model(teacher) if isinstance(teacher, str | Path) else teacher
    if model.name_or_path:
        check_same_tokens(processing_class, load_processor(model.name_or_path))
    make_capturable(model)
    return frozen(model)
