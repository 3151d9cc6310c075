"""`RALTrainer`: GRPO with the attention term, on `transformers.Trainer`.

One optimiser step, in the order of the code below:

    get_batch_samples   records of the step → every `num_iterations` steps: rollouts → rewards → advantages → targets
    compute_loss        packed forward → token loss + λ · attention term (+ distillation)
    log                 the step's metrics, averaged over groups and processes

A non-finite loss or gradient stops the run before the update (`NonFiniteGuardTrainer`). `transformers.Trainer` does the rest:
optimiser, scheduler, mixed precision, DDP/FSDP/DeepSpeed, checkpoints, trackers.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from copy import copy
from functools import cached_property, partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel
from transformers.trainer_utils import PredictionOutput

from ral.attention import GroupOutput, Prompt, prepare_prompt
from ral.attention.models import pretrained
from ral.config import RALConfig, replayed
from ral.data.loading import PromptData
from ral.data.prompt import encode_prompt
from ral.data.readers import as_records
from ral.data.record import Record
from ral.data.record_errors import name_in_errors, watched
from ral.errors import UsageError
from ral.models.eos_tokens import eos_token_ids, write_eos_tokens
from ral.models.gathering import gather_for_rollouts, gather_kept
from ral.models.loading import load_processor
from ral.models.reference import Reference
from ral.models.sharding import own_passes, prepare_frozen
from ral.models.zero3 import refuse_measured_gradients
from ral.objective.needs import Needs
from ral.rewards.functions import RewardFunction
from ral.rollouts.engine import ENGINES, release
from ral.rollouts.group import RewardedGroup, SampledGroup, TrainingGroup, draw_look_bias, rollout_metrics
from ral.rollouts.lock_step import lock_step
from ral.rollouts.sampling import Sampling
from ral.runs.checkpoints import CheckpointError
from ral.runs.folder import MetricsWriter
from ral.runs.machine import memory_peak_gib
from ral.training.advantages import score_groups
from ral.training.balance import GradientBalance
from ral.training.batches import EpochOrder, RepeatedBatches, step_loader, training_batches
from ral.training.completions_table import tables
from ral.training.distillation import load_teacher
from ral.training.dumps import RolloutsDump
from ral.training.dynamic_sampling import with_signal
from ral.training.entropy import gather_all
from ral.training.evidence_sources import require_sources
from ral.training.first_prompt import check_way
from ral.training.heads import MeasuredHeads
from ral.training.held_out import (
    Answers,
    Rows,
    Sets,
    answer_records,
    as_data,
    as_sets,
    refuse_unknown_metric,
    refuse_unused,
)
from ral.training.learning_warnings import LearningWarnings
from ral.training.losses import MicroBatchLoss, micro_batch_loss, policy_pass
from ral.training.moving_reference import follow_policy
from ral.training.nonfinite import NonFiniteGuardTrainer
from ral.training.prepare_policy import prepare_policy
from ral.training.run_origin import RunOrigin, named
from ral.training.running_means import RunningMeans
from ral.training.samples import write_samples
from ral.training.scoring import Scorer, run_rewards
from ral.training.targets import (
    Sources,
    keep_old,
    pass_before_updates,
    refuse_unknown_targets,
    training_groups,
)
from ral.training.terminal import show
from ral.training.vision_cache import vision_cache

#: The processor's tensors of one prompt.
Inputs = dict[str, Tensor]
#: Of several prompts, those that are encoded already.
Encodings = Sequence[Inputs | None]
#: What a micro-batch gave, and its losses.
TrainingPass = tuple[list[GroupOutput], MicroBatchLoss]


class RALTrainer(NonFiniteGuardTrainer):
    """Post-train a vision-language (or text) model with Reinforced Attention Learning.

    Args:
        model: the policy, or the folder or hub id to load it from.
        args: settings; `RALConfig(output_dir=…)`.
        train_dataset, eval_dataset: a path or hub id, a `datasets.Dataset`, rows of a known format, or `Record`s. `eval_dataset`
            may be several of them by name; their metrics are then `eval_NAME_reward`.
        reward_funcs: names of the registry or functions with TRL's signature; default 0.9 · accuracy + 0.1 · format.
        reward_weights: one per reward function.
        processing_class: the model's processor (or tokenizer); loaded from the model's folder if not given.
        teacher: model (or folder or hub id) to distil from, with `distill_coef` or `attention_distill_coef`.
        trainer_arguments: of `transformers.Trainer`; `compute_metrics` gets texts as predictions and solutions as labels.
        peft_config: trains an adapter; the reference is then the model with the adapter switched off, if that is the start.

    Raises:
        ConfigError: settings that cannot work together. DataError: records that cannot be used.
        UnsupportedModelError: a model whose attention cannot be captured.
    """

    args: RALConfig
    model: nn.Module
    train_dataset: list[Record] | None
    eval_dataset: Sets | None

    def __init__(
        self,
        model: PreTrainedModel | PeftModel | str | Path,
        args: RALConfig,
        train_dataset: Rows | None = None,
        eval_dataset: Rows | Mapping[str, Rows] | None = None,
        reward_funcs: RewardFunction | str | Sequence[RewardFunction | str] | None = None,
        processing_class: Any = None,
        peft_config: PeftConfig | None = None,
        teacher: PreTrainedModel | str | Path | None = None,
        reward_weights: Sequence[float] | None = None,
        **trainer_arguments: Any,
    ):
        refuse_unused(trainer_arguments)
        args = copy(args)  # measured heads are written into it
        self.needs = needs = Needs.of(args)
        refuse_unknown_targets(needs)
        policy = prepare_policy(model, args, peft_config)
        processor = processing_class or load_processor(str(pretrained(policy).name_or_path))
        write_eos_tokens(pretrained(policy), processor)
        if callable(reward_funcs) or isinstance(reward_funcs, str):
            reward_funcs = [reward_funcs]
        self.scorer = Scorer(run_rewards(reward_funcs, reward_weights, args), args, processor, lambda: self.state)
        training, held_out = as_data(train_dataset, eval_dataset, reward_funcs)
        refuse_unknown_metric(args, held_out, self.scorer, trainer_arguments.get("compute_metrics"))
        origin = RunOrigin(
            training, model=named(model) or pretrained(policy).name_or_path, data=train_dataset, eval_data=eval_dataset,
            reward_funcs=reward_funcs, reward_weights=reward_weights, teacher=teacher, attention_heads=args.attention_heads,
        )  # fmt: skip
        self.teacher = load_teacher(teacher, processor, args)
        self.vision_cache = vision_cache(policy, args)
        self.balance = GradientBalance(
            args.attention_share, distils=args.distill_coef > 0 or args.attention_distill_coef > 0
        )
        self.rollouts: list[list[TrainingGroup]] = []  # of all updates that learn from them
        self.groups: list[list[TrainingGroup]] = []  # of this update
        self._means = RunningMeans()
        self._tokens = self._logged_step = 0
        self._is_unchecked = True  # whether the model is computed as it computes itself
        self._clock = time.perf_counter()
        super().__init__(
            model=policy, args=args, train_dataset=training, eval_dataset=held_out, processing_class=processor,
            callbacks=[
                origin, MetricsWriter(), LearningWarnings(), self.balance, MeasuredHeads(self), *tables(args),
                *(trainer_arguments.pop("callbacks", None) or ()),
            ],
            **trainer_arguments,
        )  # fmt: skip
        if training is not None:
            require_sources(needs, args, processor, training)
        refuse_measured_gradients(self.accelerator, args.gradient_norm_steps)
        self.engine = ENGINES[args.rollout_engine](policy, args)
        self.loss_is_scaled_for_ga = True  # `token_weights` normalise over the whole optimiser step
        self.reference = Reference.of(self.accelerator, policy) if needs.reference else None
        self.beside = follow_policy(self)
        if self.teacher is not None:
            self.teacher = prepare_frozen(self.accelerator, self.teacher)
        show(self, f"{named(model) or pretrained(policy).name_or_path} on {len(training or ()):,} records")

    # --- one optimiser step -----------------------------------------------------------------------------------------

    @cached_property
    def batches(self) -> RepeatedBatches:
        """The order in which prompts are learnt from."""
        return training_batches(self.args, self.train_dataset)

    def get_train_dataloader(self) -> DataLoader:
        """Micro-batches of records, each rollout batch repeated for the inner updates."""
        self.add_callback(EpochOrder(self.batches, self.args.updates_per_rollout))
        assert self.train_dataset is not None
        self.data = PromptData(self.train_dataset, self.processing_class, self.args.prompt)
        return self.accelerator.prepare(step_loader(self.data, self.batches, self.args))

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> tuple[list, None]:
        """The micro-batches of groups of one optimiser step; rollouts are made here, on the first of its inner updates.

        Trainer fetches all micro-batches of a step at once, after the previous step's update: the one place where the
        policy is up to date, and where the data loader, which reads ahead, is not involved.
        """
        update, parts = self._step % self.args.updates_per_rollout, self.args.parts_per_rollout
        # The first update fetches the whole rollout batch, the next ones, on its other parts, nothing.
        wanted = num_batches * (1 if update >= parts else 0 if update else parts)
        batches, _ = super().get_batch_samples(epoch_iterator, wanted, device)
        if wanted and not batches:
            return [], None
        if update == 0:
            self._sync()
            records = [[self.data.reading.records[item.number] for item in micro_batch] for micro_batch in batches]
            self.rollouts = self.make_rollouts(records, [item.opened() for item in chain.from_iterable(batches)])
        elif not self.rollouts:
            raise CheckpointError(
                f"checkpoint-{self._step} lies between the inner updates of one rollout batch, whose rollouts it does not "
                f"hold; go on from one whose step is a multiple of {self.args.updates_per_rollout}"
            )
        first = update % parts * num_batches
        self.groups = self.rollouts[first : first + num_batches]
        scored = [group.scored for micro_batch in self.groups for group in micro_batch]
        self._means.add(rollout_metrics(scored))
        self._means.add({} if self.vision_cache is None else self.vision_cache.metrics())
        self._tokens += sum(int(group.lengths.sum()) for group in scored)
        return self.groups, None

    def make_rollouts(self, batches: list[list[Record]], inputs: Encodings | None = None) -> list[list[TrainingGroup]]:
        """records → completions → rewards (→ other prompts) → advantages, token weights → targets; `inputs`: see `sample`."""
        places = [self._places(j, len(records)) for j, records in enumerate(batches)]
        flat = list(chain.from_iterable(places))
        groups = self.draw(list(chain.from_iterable(batches)), flat, inputs=inputs)
        if self.args.dynamic_sampling:
            assert self.train_dataset is not None
            others = [self.train_dataset[i] for i in self.batches.others(self._rollout)]
            groups = with_signal(groups, flat, others, self.draw, self.args, self.accelerator)
        release(self.engine, self.accelerator)
        remaining = iter(groups)
        rewarded = [list(islice(remaining, len(records))) for records in batches]
        shuffles = [[self._generator(place, 2) for place in where] for where in places]
        scored = score_groups(rewarded, shuffles, self.args, self.accelerator)
        if self.is_world_process_zero():
            write_samples(self.args, self.processing_class, self._step, chain.from_iterable(scored))
        sources = self._sources()
        found = [training_groups(sources, micro_batch) for micro_batch in scored]
        for micro_batch in found[self.args.gradient_accumulation_steps :]:
            self._means.add(pass_before_updates(sources, micro_batch, capture=self._captures()))
        return found

    def draw(
        self, records: Sequence[Record], places: Sequence[int], attempt: int = 0, inputs: Encodings | None = None
    ) -> list[RewardedGroup]:
        """Completions and their rewards; see `sample`. All processes must call this, also without a record."""
        with lock_step(self.accelerator, self.model):
            # All at once: few rows cost a decoding step as much as many.
            groups = self.sample(records, places, attempt, inputs)
        return self.scorer.rewarded(groups)

    def sample(
        self, records: Sequence[Record], places: Sequence[int], attempt: int = 0, inputs: Encodings | None = None
    ) -> list[SampledGroup]:
        """G completions per record, sampled from the policy (under a look bias for the `explore` anchor).

        Args:
            places: of the records among all prompts of the rollout batch. attempt: how often the places were drawn before. A
                prompt's random numbers depend on both.
            inputs: the processor's tensors of their prompts, where these are encoded already.
        """
        if not records:
            return []
        args = self.args
        prompts = [self.prepare(*one) for one in zip(records, inputs or [None] * len(records), strict=True)]
        self.check(prompts[0])
        biases: list[Tensor] | None = None
        if self.needs.look_bias:
            looks = [self._generator(place, 0, attempt) for place in places]
            biases = [
                draw_look_bias(prompt, args.num_generations, args.explore_sigma, look)
                for prompt, look in zip(prompts, looks, strict=True)
            ]
        tokens = [self._generator(place, 1, attempt) for place in places]
        completions = self.engine.sample(records, prompts, args.num_generations, self._sampling(), tokens, biases)
        of_groups: Sequence[Tensor | None] = biases or [None] * len(records)
        return [
            SampledGroup(record=record, prompt=prompt, completions=written, look_bias=bias)
            for record, prompt, written, bias in zip(records, prompts, completions, of_groups, strict=True)
        ]

    def prepare(self, record: Record, inputs: Inputs | None = None) -> Prompt:
        """Turn a record into a prompt on the device, with its vision features; `inputs`: of its prompt, if encoded already."""
        with name_in_errors(record):
            if inputs is None:
                inputs = encode_prompt(self.processing_class, record, self.args.prompt)
            features = None if self.vision_cache is None else self.vision_cache.features(inputs)
            return prepare_prompt(self.model, inputs, features)

    def check(self, prompt: Prompt) -> None:
        """Check the model's computation on the run's first prompt (`check_way`)."""
        if self._is_unchecked:
            reference = None if self.reference is None else self.reference.model
            check_way(self.accelerator, self.model, reference, prompt, self.args)
            self._is_unchecked = False

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, list[GroupOutput]]:
        """token loss + λ · attention term (+ μ · GKD + γ · attention distillation), summed over the micro-batch."""
        measure, apart, factor = self._measures_gradients(), own_passes(self.model), self.balance.factor
        gather_kept(self.model, self.args.attention_layers)
        run = partial(self.forward_pass, model, inputs, measure)
        if measure and apart:
            self.balance.measure_before(model, lambda: run()[1].terms(self.args.attention_coef))
            if self.accelerator.sync_gradients:
                self._means.add(self.balance.finish(self.accelerator))
        outputs, losses = run()
        for metrics in losses.metrics:
            self._means.add(metrics)
        loss = losses.total(self.args.attention_coef * factor)
        self.require_finite_losses(loss)
        if measure and not apart:
            loss = self.balance.measure(self.model, *losses.terms(self.args.attention_coef), loss)
        return (loss, outputs) if return_outputs else loss

    def forward_pass(self, model: nn.Module, groups: list[TrainingGroup], measure: bool) -> TrainingPass:
        """The pass that trains, and its losses; the first one of each group is kept as its old pass."""
        outputs = policy_pass(model, groups, self.args, capture=self._captures(), teacher=self.teacher)
        for group, output in zip(groups, outputs, strict=True):
            self._means.add(keep_old(group, output, self.args, self._step))
        gather = partial(gather_all, self.accelerator)
        return outputs, micro_batch_loss(self.model, groups, outputs, self.args, measure, gather)

    def complete_gradient(self) -> None:
        """Measure and balance both terms' gradients after the step's last micro-batch."""
        if self._measures_gradients() and not own_passes(self.model):
            self._means.add(self.balance.finish(self.accelerator))

    def dump(self, what: str) -> RolloutsDump:
        teacher = None if self.teacher is None else str(pretrained(self.teacher).name_or_path)
        return RolloutsDump(
            what=what, step=self._step, max_steps=self.state.max_steps, settings=replayed(self.args),
            micro_batches=self.groups, factor=self.balance.factor, teacher=teacher,
        )  # fmt: skip

    # --- parts of the step ------------------------------------------------------------------------------------------

    @property
    def _step(self) -> int:
        return self.state.global_step

    def start(self) -> None:
        if self.reference is not None:
            self.reference.fill(self.accelerator, self.model)

    def _sync(self) -> None:
        """Before rollouts: the engine has the policy's weights, and what processes do not use together is gathered."""
        self.engine.sync_weights(self.model_wrapped, self.accelerator)
        gather_for_rollouts(self.accelerator, self.model, self.args.attention_layers)
        if self.teacher is not None:
            gather_kept(self.teacher)

    def _sampling(self) -> Sampling:
        return Sampling.of(self.args, eos_token_ids(pretrained(self.model), self.processing_class))

    def _sources(self) -> Sources:
        models = self.model, self._reference_policy, self.teacher, self.processing_class
        return Sources(self.args, self.needs, *models, self._step, self.accelerator)

    def _reference_policy(self) -> AbstractContextManager[nn.Module]:
        assert self.reference is not None
        return self.reference.used(self.model)

    def _places(self, micro_batch: int, size: int) -> range:
        """Places of this process's micro-batch among all prompts of the optimiser step."""
        first = (micro_batch * self.args.world_size + self.args.process_index) * self.args.prompts_per_batch
        return range(first, first + size)

    def _generator(self, place: int, stream: int, attempt: int = 0) -> torch.Generator:
        """Random numbers of one prompt: the same resumed or not, accumulated or not, and on however many processes."""
        key = (self.args.seed, self._rollout, place, stream, *((attempt,) if attempt else ()))
        return torch.Generator().manual_seed(hash(key) % 2**63)

    @property
    def _rollout(self) -> int:
        """The number of the rollout batch, counted from 0."""
        return self._step // self.args.updates_per_rollout

    def _captures(self) -> bool:
        """Whether the passes that train capture attention rows."""
        return self.needs.rows or self._measures_gradients()

    def _measures_gradients(self) -> bool:
        """Whether the gradients' norms are measured in this step: all inner updates of every n-th rollout batch."""
        return (every := self.args.gradient_norm_steps) > 0 and self._rollout % every == 0

    # --- evaluation while training ----------------------------------------------------------------------------------

    def evaluate(
        self,
        eval_dataset: Any = None,  # Rows, or several of them by name
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Mean rewards of the most likely completion of every held-out record; of several sets, each under its name."""
        sets = self.eval_dataset if eval_dataset is None else as_sets(eval_dataset)
        if sets is None:
            raise UsageError("RALTrainer needs an eval_dataset to evaluate")
        if isinstance(sets, dict):
            found = [self.evaluate(one, metric_key_prefix=f"{metric_key_prefix}_{key}") for key, one in sets.items()]
            return {name: value for metrics in found for name, value in metrics.items()}
        metrics = self._answers(sets, metric_key_prefix).metrics
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def predict(
        self, test_dataset: Any, ignore_keys: list[str] | None = None, metric_key_prefix: str = "test"
    ) -> PredictionOutput:
        """The most likely completion of every record: `predictions` are the texts, `label_ids` the solutions."""
        answers = self._answers(as_records(test_dataset, name="test_dataset"), metric_key_prefix)
        self.control = self.callback_handler.on_predict(self.args, self.state, self.control, answers.metrics)
        return answers.output()

    @watched()
    def _answers(self, records: Sequence[Record], prefix: str) -> Answers:
        started = time.perf_counter()
        self._sync()
        with lock_step(self.accelerator, self.model):
            answers = answer_records(
                records, self.engine, self.scorer, self._sampling(), self.prepare, self.accelerator, self._step
            )
        release(self.engine, self.accelerator)
        self._clock += time.perf_counter() - started  # not a part of the training steps' time
        return answers.measured(self.compute_metrics, prefix)

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
