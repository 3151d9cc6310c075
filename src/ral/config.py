"""`RALConfig`: all settings of a run, flat. It refuses impossible combinations before anything is loaded."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

from transformers import TrainingArguments
from transformers.trainer_utils import SaveStrategy

from ral.attention.heads import Heads, TopHeads, per_layer
from ral.attention.keys import Keys
from ral.attention.packed import Kernel
from ral.attention.rows import Query
from ral.data.field_types import check_values
from ral.data.settings import PromptFields, setting
from ral.data.unread import Reader, above_zero, chosen, given, refuse_unread
from ral.errors import ConfigError, UsageError, did_you_mean
from ral.models.settings import VISION_READERS, VisionFields
from ral.objective.anchors import ANCHORS
from ral.objective.evidence_settings import EVIDENCE_CHOICES, EVIDENCE_READERS, EvidenceFields
from ral.objective.needs import Needs
from ral.objective.perception import PERCEPTION
from ral.objective.perception.settings import PERCEPTION_READERS, PerceptionFields
from ral.objective.settings import GRPO_READERS, GRPOFields
from ral.objective.terms import ScaleRewards
from ral.objective.token_loss import TOKEN_LOSSES, ImportanceLevel
from ral.rewards.answers import Mode
from ral.rewards.calls import TIME_LIMIT
from ral.rollouts.engine import ENGINES
from ral.rollouts.vllm import TRANSFERS
from ral.rollouts.vllm.server import NO_LOOK_BIAS

AttentionAdvantage = Literal["signed", "absolute", "shuffled"]
TokenRatio = Literal["policy", "behaviour"]

#: Values of the fields with a set of choices; the message of a refusal lists them. Anchors may be added at any time.
CHOICES: dict[str, Collection[str | None]] = {
    "attention_anchor": ANCHORS,
    "attention_query": get_args(Query),
    "attention_keys": get_args(Keys),
    "attention_advantage": get_args(AttentionAdvantage),
    "attention_kernel": get_args(Kernel),
    "explore_ratio": get_args(TokenRatio),
    "loss_type": TOKEN_LOSSES,
    "importance_sampling_level": get_args(ImportanceLevel),
    "scale_rewards": get_args(ScaleRewards),
    "scorer": get_args(Mode),
    "perception": PERCEPTION,
    "rollout_engine": ENGINES,
    "vllm_transfer": TRANSFERS,
    **EVIDENCE_CHOICES,
}


#: Settings of transformers' Trainer that its loop reads and ours does not, with the reason.
UNUSED: dict[str, str] = {
    "auto_find_batch_size": "a smaller batch would hold half a group; lower per_device_train_batch_size",
    "batch_eval_metrics": "compute_metrics gets all texts at once",
    "include_for_metrics": "compute_metrics gets the records as inputs",
    "label_smoothing_factor": "reinforcement has no labels",
    "prediction_loss_only": "held-out records are answered and rewarded; they give no loss",
}


def refuse_credentials(args: TrainingArguments) -> None:
    """Raise ConfigError if a setting holds a credential, because every checkpoint stores a copy of the settings."""
    if args.hub_token:
        raise ConfigError(
            "hub_token is a credential and would be copied into every checkpoint; leave it out, and log in with "
            "`hf auth login` or set HF_TOKEN in the environment"
        )


#: What transformers reads of `fsdp_config` for FSDP2 or writes into it; anything else would do nothing.
FSDP_KEYS = (
    "version", "reshard_after_forward", "cpu_offload", "activation_checkpointing", "cpu_ram_efficient_loading", "state_dict_type",
    "transformer_layer_cls_to_wrap", "auto_wrap_policy", "min_num_params", "xla", "xla_fsdp_v2", "xla_fsdp_grad_ckpt",
    "xla_fsdp_settings",
)  # fmt: skip


def refuse_unread_sharding(args: TrainingArguments) -> None:
    """Raise ConfigError for a part of `fsdp_config` that transformers would pass over."""
    settings = args.fsdp_config if isinstance(args.fsdp_config, dict) else {}  # a file is read where FSDP is on
    for key in (key for key in settings if key not in FSDP_KEYS):
        meant = {"offload_params": "cpu_offload"}.get(key, key)
        advice = did_you_mean(meant, FSDP_KEYS, "leave it out, or set it in the file of `accelerate launch`")
        raise ConfigError(f"fsdp_config: {key} is not read for FSDP2 and would do nothing; {advice}")


def replayed(args: TrainingArguments) -> dict[str, Any]:
    """The settings that say how a batch is learnt from, as plain values that the class of `args` takes back."""
    own = {item.name for item in fields(args)} - {item.name for item in fields(TrainingArguments)}
    return {name: getattr(args, name) for name in sorted(own | {"bf16", "per_device_train_batch_size", "use_cpu"})}


_SIGNED = Reader(
    ("attention_anchor",),
    lambda args: ANCHORS[args.attention_anchor].uses_advantages,
    "attention_anchor to one that rewards rollouts and not looks",
)
_BIAS = Reader(
    ("attention_anchor",), lambda args: Needs.of(args).look_bias, "attention_anchor to explore, which has this bias"
)
_TAUGHT = Reader(
    ("attention_distill_coef", "attention_anchor"),
    lambda args: args.attention_distill_coef > 0 or ANCHORS[args.attention_anchor].uses("teacher"),
    "attention_distill_coef above 0, or attention_anchor to teacher",
)
#: Engines that were added may read what they like of these.
_SERVER = Reader(("rollout_engine",), lambda args: args.rollout_engine != "transformers", "rollout_engine to vllm")
_OWN = Reader(("rollout_engine",), lambda args: args.rollout_engine != "vllm", "rollout_engine to transformers")

#: What reads each setting; those that are missing here are read in every run, or by what a run's data and rewards are.
#: `attention_coef: 0` leaves the settings of its term unread on purpose: with it, any recipe gives its own baseline.
READERS: dict[str, tuple[Reader, ...]] = {
    "attention_skip": (chosen("attention_keys", ("all", "prompt")),),
    "attention_advantage": (_SIGNED,),
    "attention_share": (above_zero("gradient_norm_steps"),),
    "explore_sigma": (_BIAS,),
    "explore_ratio": (_BIAS,),
    "distill_beta": (above_zero("distill_coef"),),
    "teacher_heads": (_TAUGHT,),
    "max_resample_times": (given("dynamic_sampling", "dynamic_sampling to true"),),
    "rollout_rows": (_OWN,),
    "vllm_url": (_SERVER,),
    "vllm_transfer": (_SERVER,),
    "vllm_sleep": (_SERVER,),
    "vllm_weights": (_SERVER, chosen("vllm_transfer", ("disk", "adapter"))),
    "importance_cap": (_SERVER,),
    "num_completions_to_print": (given("log_completions", "log_completions to true"),),
    **VISION_READERS,
    **GRPO_READERS,
    **EVIDENCE_READERS,
    **PERCEPTION_READERS,
}


@dataclass
class RALConfig(GRPOFields, EvidenceFields, PerceptionFields, VisionFields, PromptFields, TrainingArguments):
    """Settings of Reinforced Attention Learning, with those of its base classes: `GRPOFields`, `EvidenceFields`, `PerceptionFields`,
    `VisionFields`, `PromptSettings` and `transformers.TrainingArguments`.

    `per_device_train_batch_size` counts completions, as in TRL, and is a multiple of `num_generations`. Defaults are the
    paper's values, if these are known.
    """

    # --- the attention term -------------------------------------------------------------------------------------
    attention_coef: float = setting(1.0, "λ, the weight of the attention term (paper: 0.5, 1 or 5); 0 is plain GRPO.")
    attention_anchor: str = setting(
        "old", "Target of attention: old (the paper's), ref, group, credit, evidence, explore or teacher."
    )
    attention_query: Query = setting("token", "Attention rows: of the completion token (paper) or of its predictor.")
    attention_keys: Keys = setting(
        "all",
        "Earlier positions that rows cover: all (paper), prompt, visual, or interior (visual, without the edge of the picture).",
    )
    attention_layers: list[int] = field(
        default_factory=lambda: [-1], metadata={"help": "Decoder layers whose attention is trained (paper: the last)."}
    )
    attention_heads: list[int] | list[list[int]] | dict[str, Any] | None = setting(
        None,
        "Heads whose mean is trained: a list (of lists, one a layer), or {top: k, by: evidence | visual}, measured at the start; "
        "None: all (paper).",
    )
    attention_advantage: AttentionAdvantage = setting(
        "signed", "signed, or a control: absolute (a pure trust region) or shuffled (within the group)."
    )
    attention_skip: int = setting(0, "Number of leading prompt tokens that rows leave out, as attention sinks.")
    attention_share: float | None = setting(
        None, "Scale λ so that the attention gradient's norm is this share of the token gradient's norm."
    )
    explore_sigma: float = setting(0.5, "Standard deviation of the look bias of the explore anchor, in logits.")
    explore_ratio: TokenRatio = setting(
        "policy", "Old log-probabilities of the token ratio: policy (without the bias) or behaviour (with it; exact)."
    )

    # --- on-policy distillation (needs a teacher) -------------------------------------------------------------------
    distill_coef: float = setting(0.0, "μ, the weight of the token distillation (GKD).")
    attention_distill_coef: float = setting(0.0, "γ, the weight of the attention distillation (paper: 0.05, 0.5 or 1).")
    teacher_heads: list[int] | list[list[int]] | None = setting(
        None, "The teacher's heads, of which the mean is the target of attention_heads, layer by layer."
    )
    distill_beta: float = setting(
        0.5, "β of the generalised JSD: 0 is KL(teacher ‖ student), 1 is KL(student ‖ teacher)."
    )

    # --- GRPO -----------------------------------------------------------------------------------------------------
    num_generations: int = setting(8, "G, completions per prompt.")
    num_iterations: int = setting(2, "Inner updates per rollout batch: how often each rollout is learnt from.")
    steps_per_generation: int | None = setting(
        None,
        "Micro-batches (of a process) in a rollout batch, a multiple of gradient_accumulation_steps, and the same if not given; "
        "each optimiser step then learns from one part of the rollouts.",
    )
    dynamic_sampling: bool = setting(
        False,
        "Replace prompts whose completions all earn the same by other prompts of the data (DAPO, arXiv 2503.14476).",
    )
    max_resample_times: int = setting(
        3, "How often dynamic_sampling draws other prompts for one rollout batch at most."
    )

    # --- rollouts -------------------------------------------------------------------------------------------------
    temperature: float = setting(0.9, "Temperature of sampling and of log-probabilities.")
    top_p: float = setting(1.0, "Nucleus sampling mass.")
    top_k: int = setting(0, "Sample from the k most likely tokens; 0: from all.")
    min_p: float | None = setting(
        None, "Sample from tokens of at least this share of the likeliest one's probability (arXiv 2407.01082)."
    )
    repetition_penalty: float = setting(
        1.0, "Above 1, tokens that stand in the prompt or the completion already become less likely (arXiv 1909.05858)."
    )
    max_completion_length: int = setting(1024, "Longest completion in tokens; longer ones are cut and counted.")
    rollout_rows: int | None = setting(
        None, "Completions sampled at once; None: what a quarter of the device's memory holds. It changes none of them."
    )
    rollout_engine: str = setting("transformers", "Sampler: the policy itself (transformers) or a server (vllm).")
    vllm_url: str = setting(
        "http://127.0.0.1:8000", "Address of the vLLM server; of several: with commas between them."
    )
    vllm_transfer: str = setting(
        "disk",
        "Weights reach the server as all of them through a folder (disk) or NCCL (nccl), or as the adapter alone (adapter).",
    )
    vllm_sleep: bool = setting(
        False, "The server shares the trainer's GPUs: it sleeps, and gives its memory back, between rollouts."
    )
    vllm_weights: str | None = setting(
        None, "Folder that the server reads new weights from; vllm-weights in output_dir if not given."
    )
    importance_cap: float = setting(2.0, "Cap on π/π_engine, the weight of a token that another engine sampled.")
    scorer: Mode = setting("strict", "Answer scoring: strict (what a person would call right) or compat (the peers').")

    reward_timeout: float = setting(
        TIME_LIMIT,
        "Seconds that one call of one reward function may take for the completions of one prompt; all calls of `async def` "
        "functions run at once, and have so many seconds for each prompt together.",
    )
    reward_model_device: str | None = setting(
        None, "Device of reward models, such as cuda:1; the policy's if not given."
    )
    soft_punish_cache: int | None = setting(
        None,
        "Tokens before max_completion_length over which the reward soft_overlong_punishment falls from 0 to −1 (arXiv 2503.14476).",
    )

    # --- the model ----------------------------------------------------------------------------------------------
    disable_dropout: bool = setting(True, "Switch dropout off, so that a ratio of 1 means an unchanged policy.")

    attention_kernel: Kernel = setting(
        "sdpa", "Attention kernel for packed rows: sdpa, or flex (FlexAttention, on GPUs)."
    )

    # --- measuring ------------------------------------------------------------------------------------------------
    gradient_norm_steps: int = setting(
        10, "Every n steps the token and attention gradients' norms are logged; 0: never."
    )
    samples_per_step: int = setting(1, "Groups written to samples.jsonl at every logged step.")
    log_completions: bool | int = setting(
        False,
        "Show these completions as a table, also in wandb and trackio: true for every logged step, or every n steps.",
    )
    num_completions_to_print: int | None = setting(
        None, "Completions in that table; all of samples_per_step if not given."
    )

    # --- defaults of TrainingArguments that differ here -----------------------------------------------------------
    learning_rate: float = setting(1e-5, "Peak learning rate (paper: 1e-5).")
    num_train_epochs: float = setting(1.0, "Passes over the prompts (paper: 1).")
    logging_steps: float = setting(1, "Log every n optimiser steps.")
    logging_nan_inf_filter: bool = setting(False, "A loss that is not a number is shown, not hidden.")
    remove_unused_columns: bool = setting(False, "Records keep their columns; reward functions get them.")
    report_to: str | list[str] | None = setting("none", "Experiment trackers.")
    ddp_find_unused_parameters: bool | None = setting(False, "DDP need not look for them: every pass uses all weights.")

    def __post_init__(self) -> None:
        chooses = self.load_best_model_at_end or self.save_strategy == SaveStrategy.BEST
        if chooses and self.metric_for_best_model is None:
            self.metric_for_best_model = "reward"
        check_values(self, RALConfig, TrainingArguments)
        super().__post_init__()
        refuse_credentials(self)
        refuse_unread_sharding(self)
        self._check_unused()
        self.check_prompt()
        self.check_vision()
        self._check_choices()
        self._check_ranges()
        refuse_unread(self, READERS)
        self.check_grpo()
        self._check_groups()
        self._check_attention_term()
        self.check_perception()
        self._check_heads()
        self._check_gradient_norms()
        self._check_engine()
        self._check_noise()

    @property
    def wants_teacher(self) -> bool:
        """Whether anything is learnt from a teacher."""
        return Needs.of(self).teacher

    @property
    def heads(self) -> Heads:
        """The heads that rows are the mean of. Raises UsageError as long as they are to be measured: training does so at its start."""
        if isinstance(self.attention_heads, dict):
            raise UsageError(
                "attention_heads is measured when training starts, and not known before; name heads by their numbers"
            )
        return self.attention_heads

    @property
    def prompts_per_batch(self) -> int:
        """Groups in one micro-batch of one process."""
        return self.per_device_train_batch_size // self.num_generations

    @property
    def vllm_urls(self) -> list[str]:
        """The addresses of all vLLM servers."""
        return [url.strip() for url in self.vllm_url.split(",")]

    @property
    def micro_batches_per_rollout(self) -> int:
        """Micro-batches of one process in a rollout batch."""
        return self.steps_per_generation or self.gradient_accumulation_steps

    @property
    def parts_per_rollout(self) -> int:
        """Parts of a rollout batch, each of them learnt from in optimiser steps of its own."""
        return self.micro_batches_per_rollout // self.gradient_accumulation_steps

    @property
    def updates_per_rollout(self) -> int:
        """Optimiser steps that learn from one rollout batch."""
        return self.num_iterations * self.parts_per_rollout

    def _check_choices(self) -> None:
        for name, allowed in CHOICES.items():
            if (value := getattr(self, name)) not in allowed:
                raise ConfigError(f"{name}={value!r} is not known; choose one of {', '.join(filter(None, allowed))}")

    def _check_ranges(self) -> None:
        at_least = {"attention_coef": 0, "top_k": 0, "gradient_norm_steps": 0}
        at_least |= {"attention_skip": 0}
        at_least |= {
            "distill_coef": 0,
            "attention_distill_coef": 0,
            "distill_beta": 0,
            "num_iterations": 1,
            "max_resample_times": 1,
            "max_completion_length": 1,
            "samples_per_step": 1 if self.log_completions else 0,
            "log_completions": 0,
        }
        for name, low in at_least.items():
            if getattr(self, name) < low:
                raise ConfigError(f"{name} must be at least {low}, got {getattr(self, name)}")
        for name in (
            "temperature",
            "repetition_penalty",
            "explore_sigma",
            "reward_timeout",
            "importance_cap",
        ):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} must be positive, got {getattr(self, name)}")
        if self.num_completions_to_print is not None and self.num_completions_to_print < 1:
            raise ConfigError(f"num_completions_to_print must be at least 1, got {self.num_completions_to_print}")
        if self.rollout_rows is not None and self.rollout_rows < self.num_generations:
            raise ConfigError(
                f"rollout_rows={self.rollout_rows}: the completions of a prompt are sampled together, so it must be at least "
                f"num_generations={self.num_generations}"
            )
        if self.attention_share is not None and self.attention_share <= 0:
            raise ConfigError(f"attention_share must be positive, got {self.attention_share}")
        if self.distill_beta > 1:
            raise ConfigError(f"distill_beta must be in [0, 1], got {self.distill_beta}")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p must be in (0, 1], got {self.top_p}")
        if self.min_p is not None and not 0 <= self.min_p <= 1:
            raise ConfigError(f"min_p must be in [0, 1], got {self.min_p}")
        if not self.attention_layers:
            raise ConfigError(
                "attention_layers is empty; name at least one layer, such as [-1], or set attention_coef=0"
            )

    def _check_groups(self) -> None:
        if self.num_generations < 2:
            raise ConfigError(
                f"num_generations={self.num_generations}: advantages compare the completions of one prompt, so at least 2 "
                "are needed"
            )
        if self.per_device_train_batch_size % self.num_generations:
            raise ConfigError(
                f"per_device_train_batch_size={self.per_device_train_batch_size} does not divide into groups of "
                f"num_generations={self.num_generations}; use a multiple of it "
                f"(it counts completions: {self.num_generations * 2} is two prompts)"
            )
        accumulated = self.gradient_accumulation_steps
        if self.steps_per_generation is not None and (
            self.steps_per_generation < 1 or self.steps_per_generation % accumulated
        ):
            raise ConfigError(
                f"steps_per_generation={self.steps_per_generation}: a rollout batch is learnt from in whole optimiser steps; use a "
                f"multiple of gradient_accumulation_steps={accumulated}"
            )
        every = {"steps": "save_steps", "best": "eval_steps"}.get(SaveStrategy(self.save_strategy).value)
        updates = self.updates_per_rollout
        if every is not None and (steps := getattr(self, every) or 0) % updates:
            counted = f"num_iterations={updates}"
            if updates != self.num_iterations:
                counted = f"{updates}, the optimiser steps of a rollout batch (num_iterations={self.num_iterations} × its parts)"
            raise ConfigError(
                f"{every}={steps} would save between the inner updates of one rollout batch, from where a run "
                f"cannot be resumed exactly; use a multiple of {counted}"
            )

    def _check_unused(self) -> None:
        for name, reason in UNUSED.items():
            if getattr(self, name):
                raise ConfigError(f"{name}={getattr(self, name)!r} would do nothing: {reason}; leave it out")

    def _check_attention_term(self) -> None:
        self.check_evidence(self.attention_keys, self.prompts_per_batch)
        if not self.attention_coef:
            return
        if ANCHORS[self.attention_anchor].needs_inner_updates and self.updates_per_rollout == 1:
            raise ConfigError(
                f"attention_anchor={self.attention_anchor!r} with num_iterations=1 trains nothing: with one update per "
                "rollout batch the policy equals the old policy, where the divergence and its gradient are exactly zero. Set num_iterations to 2 or "
                "more, choose another attention_anchor (group, credit, evidence, explore), or set attention_coef=0 for plain GRPO."
            )

    def _check_heads(self) -> None:
        layers = len(self.attention_layers)
        if isinstance(self.attention_heads, dict):
            TopHeads.of(self.attention_heads)
        else:
            per_layer(self.attention_heads, layers)
        per_layer(self.teacher_heads, layers, "teacher_heads")
        if _TAUGHT.reads(self) and (self.attention_heads is None) != (self.teacher_heads is None):
            raise ConfigError(
                "attention is learnt from a teacher, and heads are chosen in one of the two models only; set both attention_heads "
                "and teacher_heads, or neither"
            )

    def _check_engine(self) -> None:
        if self.rollout_engine != "vllm":
            return
        if Needs.of(self).look_bias:
            raise ConfigError(NO_LOOK_BIAS)
        for url in self.vllm_urls:
            if not url.startswith(("http://", "https://")):
                raise ConfigError(f"vllm_url={url!r} is no address; write it as http://host:port")

    def _check_noise(self) -> None:
        if self.neftune_noise_alpha:
            raise ConfigError(
                f"neftune_noise_alpha={self.neftune_noise_alpha} adds noise to the embeddings while training: the ratio to the old "
                "policy would measure the noise; leave it out (`ral sft` takes it)"
            )

    def _check_gradient_norms(self) -> None:
        checkpointing = self.gradient_checkpointing_kwargs
        if self.gradient_norm_steps and isinstance(checkpointing, dict) and checkpointing.get("use_reentrant"):
            raise ConfigError(
                "gradient_norm_steps needs gradients of one term at a time, which reentrant checkpoints do not give; set "
                "use_reentrant to false in gradient_checkpointing_kwargs, or gradient_norm_steps=0"
            )
