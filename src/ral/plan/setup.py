"""Derives from a recipe the numbers that memory and time depend on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from transformers import PreTrainedModel
from transformers.training_args import OptimizerNames

from ral.attention.heads import TopHeads
from ral.attention.layout import GroupLayout
from ral.attention.models import family, has_vision
from ral.config import RALConfig
from ral.data.media import DEFAULT_FRAMES
from ral.data.settings import PromptSettings
from ral.errors import ConfigError
from ral.models.lora import lora_config
from ral.objective.needs import Needs
from ral.plan.shapes import Layer, ModelShape, Weights, meta_model, meta_shape, weights_of
from ral.recipe import Recipe
from ral.rollouts.room import RowSize
from ral.testbed import model_name

Sharding = Literal["ddp", "fsdp2", "zero2", "zero3"]
#: What samples: the policy itself, a vLLM server on GPUs of its own, or one that shares the trainer's and sleeps in between.
Sampler = Literal["own", "server", "shared"]
#: Bytes of a number in 16 bits.
HALF = 2
#: GPUs of one machine.
MACHINE = 8

#: Tokens of a prompt that are text: the question, its options and the instruction.
TEXT_TOKENS = 256
#: Bytes of an optimiser's states per trained parameter, by what its name holds; the first that fits counts.
_OPTIMISER_STATES = (("4bit", 1), ("8bit", 2), ("paged", 8), ("adafactor", 0), ("sgd", 0), ("lion", 4), ("adagrad", 4))


@dataclass(frozen=True)
class Setup:
    """The load of one GPU.

    Attributes:
        gathered: (fsdp2) the weights stay gathered between a pass's layers.
        mixed: computes in 16 bits. checkpointing: of every layer but the captured ones.
        prompt, visual: tokens of a prompt, and those of them that are visual. completion: tokens of a completion.
        group, prompts: completions of a prompt, prompts in one pass.
        accumulation: passes of an optimiser step. parts: optimiser steps that learn from a rollout batch once, each from a part of
            it; iterations: how often they do.
        captured: layers whose attention rows are formed. heads: those of a layer that rows are the mean of; None: all.
        reference: a copy of the start model is held. target_pass: one more pass of the policy for every rollout batch.
        norm_steps: the two terms' gradients are measured in every n-th rollout batch; 0: never.
        optimiser: bytes of states per trained parameter.
        rollout_rows: completions sampled at once; None: all of the step.
        sampler: what samples. servers: how many. server_gpus: those of one server, over which it spreads its weights.
        server_rows: completions that a server has room for at once; None: any number.
        sent: bytes of weights that servers are sent for every rollout batch; by_disk: through a folder.
        offloaded: the optimiser's states, the weights that it updates and their gradients are in the host's memory.
        offloaded_weights: the shards of all weights, of reference and teacher as well.
        loads: processes of a machine that read all weights.
        vision_cache: bytes of disk for features of the vision tower; 0: they are not kept. trained_vision: the tower is trained, too.
    """

    model: ModelShape
    weights: Weights
    gpus: int
    sharding: Sharding
    gathered: bool
    mixed: bool
    checkpointing: bool
    prompt: int
    visual: int
    completion: int
    group: int
    prompts: int
    accumulation: int
    iterations: int
    captured: int
    reference: bool
    reference_pass: bool
    target_pass: bool
    norm_steps: int
    optimiser: float
    teacher: ModelShape | None = None
    rollout_rows: int | None = None
    sampler: Sampler = "own"
    servers: int = 1
    server_gpus: int = 1
    server_rows: int | None = None
    sent: float = 0.0
    by_disk: bool = False
    offloaded: bool = False
    loads: int = 1
    parts: int = 1
    heads: int | None = None
    offloaded_weights: bool = False
    vision_cache: float = 0.0
    trained_vision: bool = False

    @property
    def sampled(self) -> int:
        """Prompts whose completions are sampled at once, by one process or by one server."""
        rows = self.rollout_rows if self.sampler == "own" else self.server_rows
        return self.asked if rows is None else min(self.asked, max(1, rows // self.group))

    @property
    def asked(self) -> int:
        """Prompts of a rollout batch that one process samples, or one server."""
        if self.sampler == "own":
            return self.prompts * self.accumulation * self.parts
        return -(-self.asked_by_all // self.servers)

    @property
    def asked_by_all(self) -> int:
        """Prompts of a rollout batch of all processes."""
        return self.prompts * self.accumulation * self.parts * self.gpus

    @property
    def updates(self) -> int:
        """Optimiser steps of a rollout batch."""
        return self.iterations * self.parts

    @property
    def features(self) -> float:
        """Bytes of the vision tower's output for one prompt."""
        return self.visual * self.model.decoder.hidden * self.model.feature_levels * self.residual

    @property
    def gives_back(self) -> bool:
        """Whether weights are gathered anew for every layer of every pass."""
        return self.sharding == "zero3" or (self.sharding == "fsdp2" and not self.gathered)

    @property
    def shards(self) -> int:
        """GPUs that the optimiser's states are spread over."""
        return 1 if self.sharding == "ddp" else self.gpus

    @property
    def measured(self) -> int:
        """Gradients that are kept to measure their norms, each of a backward pass of its own: under FSDP2 the pass that trains leaves
        that of the token loss, unless there is a third term."""
        return 1 if self.sharding == "fsdp2" and self.teacher is None else 2

    @property
    def grows(self) -> bool:
        """Whether a step's gradients come into being in its one backward pass; else they are there before the last."""
        return self.accumulation == 1 and not self.norm_steps

    @property
    def gradient_bytes(self) -> int:
        """Bytes of a number in a gradient as the backward pass makes it; FSDP2 adds them up in 32 bits when it shares them out."""
        return self.compute if self.sharding != "ddp" else 4

    @property
    def trained_head(self) -> int:
        """Parameters of the output embedding, if it is trained."""
        return self.model.vocabulary * self.model.decoder.hidden if self.weights.method == "full" else 0

    @property
    def trained_outside(self) -> int:
        """Trained parameters outside of decoder layers and vision tower."""
        return self.model.outside if self.weights.method == "full" else 0

    @property
    def fsdp_shards(self) -> int:
        """GPUs that FSDP2 spreads reference, teacher and the sums of gradients over."""
        return self.gpus if self.sharding == "fsdp2" else 1

    @property
    def compute(self) -> int:
        """Bytes of an activation that a matrix is multiplied with."""
        return 2 if self.mixed else self.weights.weight_bytes

    @property
    def residual(self) -> int:
        """Bytes of an activation between the blocks: under autocast those of the weights, which the embedding gives."""
        return self.compute if self.sharding != "ddp" else self.weights.weight_bytes

    @property
    def captured_layers(self) -> tuple[Layer, ...]:
        """The layers whose attention rows are formed: of those with attention the last, as recipes name them."""
        return tuple(self.model.decoder.attending[-self.captured :]) if self.captured else ()

    @property
    def layout(self) -> GroupLayout:
        """One packed group with completions of full length."""
        return GroupLayout(self.prompt, (self.completion,) * self.group)

    @property
    def blocks(self) -> list[int]:
        """Completion tokens of one group that attend in one call, call by call."""
        return [sum(self.layout.lengths[block]) for block in self.layout.blocks]

    @property
    def tokens(self) -> int:
        """Tokens of one pass: of the packed row, or of a row for each completion."""
        shared = self.layout.total
        return self.prompts * (shared if self.model.shared else self.group * (self.prompt + self.completion))


def setup_of(
    recipe: Recipe,
    gpus: int,
    *,
    prompt_tokens: int | None = None,
    sharding: Sharding | None = None,
    gpu_memory: float = 80.0,
) -> Setup:
    """The numbers of a recipe on so many GPUs.

    Raises ConfigError for a prompt whose tokens the recipe does not bound, and what reading the model's configuration
    and its adapter's raises.
    """
    args = recipe.args
    name = model_name(recipe.model)
    model, shape = meta_model(name)[0], meta_shape(name)
    four_bits = bool(recipe.quantization and recipe.quantization.get("load_in_4bit"))
    adapter = lora_config(recipe, model, args.freeze_vision)
    prompt_tokens, visual = _lengths(recipe, visual_tokens(model, args.prompt), shape, prompt_tokens)
    engine = sharding or _sharding(args)
    fsdp: Any = args.fsdp_config if args.fsdp and isinstance(args.fsdp_config, dict) else {}
    needs = Needs.of(args)
    captures = needs.rows or args.gradient_norm_steps > 0
    setup = Setup(
        model=shape,
        weights=weights_of(model, adapter, four_bits, args.freeze_vision),
        gpus=gpus,
        sharding=engine,
        gathered=not _true(fsdp.get("reshard_after_forward")),
        mixed=args.bf16 or args.fp16,
        checkpointing=bool(args.activation_checkpointing or fsdp.get("activation_checkpointing")),
        prompt=prompt_tokens,
        visual=visual,
        completion=args.max_completion_length,
        group=args.num_generations,
        prompts=args.prompts_per_batch,
        accumulation=args.gradient_accumulation_steps,
        iterations=args.num_iterations,
        captured=len(args.attention_layers) if captures else 0,
        reference=needs.reference and adapter is None,
        reference_pass="ref" in needs.targets,
        target_pass=needs.policy_pass,
        norm_steps=args.gradient_norm_steps,
        optimiser=next((size for part, size in _OPTIMISER_STATES if part in OptimizerNames(args.optim).value), 8),
        teacher=None if recipe.teacher is None else meta_shape(model_name(recipe.teacher)),
        offloaded=_true(fsdp.get("cpu_offload")) if engine == "fsdp2" else engine != "ddp" and _offloads(args),
        offloaded_weights=engine == "fsdp2" and _true(fsdp.get("cpu_offload")),
        # FSDP lets the first process of all read the weights, if it is told to; others each read them.
        loads=1 if engine == "fsdp2" and _true(fsdp.get("cpu_ram_efficient_loading")) else min(gpus, MACHINE),
        parts=args.parts_per_rollout,
        heads=_heads(args.attention_heads),
        vision_cache=0.0 if args.vision_cache is None else args.vision_cache_gb * 1e9,
        trained_vision=shape.reads_images and not args.freeze_vision,
    )
    setup = _with_server(setup, args, gpu_memory)
    if args.rollout_rows is not None:
        return replace(setup, rollout_rows=args.rollout_rows)
    return replace(setup, rollout_rows=rows_of(setup, gpu_memory))


def _lengths(recipe: Recipe, visual: int | None, shape: ModelShape, prompt: int | None) -> tuple[int, int]:
    """Tokens of the longest prompt, and those of them that are visual."""
    if prompt is None:
        if visual is None or not shape.reads_images:
            raise ConfigError(
                f"{recipe.model}: the recipe does not say how long a prompt gets (max_pixels, or num_frames with "
                "video_pixels); give --prompt-tokens. `ral check DATA --model MODEL` counts those of your data."
            )
        return visual + TEXT_TOKENS, visual
    return prompt, max(0, prompt - TEXT_TOKENS) if visual is None else min(visual, prompt)


def rows_of(setup: Setup, gpu_memory: float) -> int:
    """Completions that the policy samples at once by default on GPUs of so many GiB."""
    return row_size(setup, setup.compute).rows(gpu_memory * 2**30, setup.prompt, setup.completion, setup.group)


def row_size(setup: Setup, value_bytes: int) -> RowSize:
    """The size of a rollout whose keys and values take so many bytes each."""
    shape = setup.model
    token, state = shape.decoder.token, shape.decoder.state
    return RowSize(token, state, shape.heads, shape.vocabulary, value_bytes, shape.shared)


def served(
    setup: Setup, sampler: Sampler, gpu_memory: float, servers: int = 1, adapter: bool = False, by_disk: bool = True
) -> Setup:
    """The same with servers; those that share the trainer's GPUs divide them, and get `SHARE` of their memory for rollouts.

    `adapter`: it alone is sent.
    """
    sent = 2.0 * (setup.weights.trained if adapter else setup.model.parameters)
    gpus = max(1, setup.gpus // servers) if sampler == "shared" else MACHINE
    found = replace(setup, sampler=sampler, servers=servers, server_gpus=gpus, sent=sent, by_disk=by_disk)
    if sampler == "server":
        return found
    row = row_size(replace(setup, model=replace(setup.model, shared=True)), HALF)
    return replace(found, server_rows=row.rows(gpus * gpu_memory * 2**30, setup.prompt, setup.completion, setup.group))


def _with_server(setup: Setup, args: RALConfig, gpu_memory: float) -> Setup:
    if args.rollout_engine != "vllm":
        return setup
    return served(
        setup,
        "shared" if args.vllm_sleep else "server",
        gpu_memory,
        len(args.vllm_urls),
        adapter=args.vllm_transfer == "adapter",
        by_disk=args.vllm_transfer == "disk",
    )


def visual_tokens(model: PreTrainedModel, prompt: PromptSettings) -> int | None:
    """The most visual tokens of a prompt with one image or, where the recipe speaks of frames, one video; None: unbounded."""
    if not has_vision(model):
        return 0
    kind, token = family(model), family(model).visual_token(model.config)
    found = [kind.most_tokens(model.config, prompt.max_pixels)]
    if kind.reads_video and (prompt.num_frames or prompt.fps):
        frames = prompt.num_frames or DEFAULT_FRAMES
        if pixels := prompt.frame_pixels(frames):
            found.append(-(-frames // token.frames) * (pixels // token.pixels))
    return max((tokens for tokens in found if tokens is not None), default=None)


def _sharding(args: RALConfig) -> Sharding:
    if args.deepspeed:
        return "zero3" if args.hf_deepspeed_config.is_zero3() else "zero2"
    return "fsdp2" if args.fsdp else "ddp"


def _heads(heads: Any) -> int | None:
    """The most heads of a layer that rows are the mean of."""
    if not isinstance(heads, list):
        return None if heads is None else TopHeads.of(heads).top
    return max(len(one) if isinstance(one, list) else len(heads) for one in heads)


def _offloads(args: RALConfig) -> bool:
    """Whether DeepSpeed keeps the optimiser in the host's memory."""
    if not args.deepspeed:
        return False
    device = args.hf_deepspeed_config.get_value("zero_optimization.offload_optimizer.device", "none")
    return device not in (None, "none")


def _true(value: Any) -> bool:
    return str(value).lower() == "true"
