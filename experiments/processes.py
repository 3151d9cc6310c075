"""One run on 1, 2 and 4 processes, under DDP, FSDP2 (gathered or layer by layer), ZeRO-2 and ZeRO-3: `python -m experiments.processes`.

Every run trains the embedded model on the same global batches on CPU (gloo) from one seed. The loss curve of one process is
the reference. Written is how far the others are from it at most: relative to the largest loss of the curve, which is held to
1e-5 in float32 and to 1e-8 in float64, and to the loss of the same step. GRPO's loss is a difference of large terms and passes
through zero, where the second is as large as rounding is. ZeRO runs where DeepSpeed is installed, an optimiser of eight bits where
torchao is; both compute updates in float32, whatever the model's precision, and ZeRO-3 takes no model in float64. Complete runs are
not repeated. The figures go to `experiments/results/processes.json`.
"""

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.utils import DistributedType, broadcast_object_list
from datasets import Dataset
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.fsdp import CPUOffloadPolicy
from transformers import PreTrainedModel, Trainer

from ral.attention.models import decoder_layers
from ral.config import RALConfig
from ral.data.record import Record
from ral.data.record_errors import WatchedRecords
from ral.files import atomic_write_text, read_jsonl
from ral.models.loading import freeze_vision
from ral.models.sharding import full_state_dict
from ral.rollouts.engine import ENGINES as ENGINE_NAMES
from ral.rollouts.engine import PolicyEngine
from ral.rollouts.vllm.transfer import whole_weights
from ral.runs.folder import MetricsWriter, machine_class, source_commit
from ral.testbed import load_start
from ral.testbed.episodes import episode_records, told_records
from ral.testbed.rings import ring_records
from ral.training.sft import Examples, SFTSettings, WorkedExamplesTrainer
from ral.training.trainer import RALTrainer

#: Processes are forked from one that has the libraries imported.
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["ral.training.sft"])

RESULTS = Path(__file__).parent / "results" / "processes.json"
ENGINES = ("ddp", "fsdp2", "full-shard", "zero2", "zero3")
PROCESSES = (2, 4)
#: What a recipe says for an engine.
SHARDING: dict[str, dict[str, Any]] = {
    "ddp": {},
    "fsdp2": {"fsdp": True, "fsdp_config": {"version": 2, "reshard_after_forward": False}},
    "full-shard": {"fsdp": True, "fsdp_config": {"version": 2, "reshard_after_forward": True}},
    "full-shard, checkpointing": {"fsdp": True, "fsdp_config": {"version": 2, "activation_checkpointing": True}},
    "full-shard, recomputing": {
        "fsdp": True,
        "fsdp_config": {"version": 2},
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
    },
    "full-shard, reentrant": {
        "fsdp": True,
        "fsdp_config": {"version": 2},
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": True},
        "gradient_norm_steps": 0,
    },
    "full-shard, offloaded": {"fsdp": True, "fsdp_config": {"version": 2, "cpu_offload": True}},
    "zero2": {
        "deepspeed": {
            "zero_optimization": {"stage": 2},
            "zero_allow_untested_optimizer": True,
            "train_micro_batch_size_per_gpu": "auto",
            "gradient_accumulation_steps": "auto",
            "gradient_clipping": "auto",
        }
    },
    "zero3": {
        "deepspeed": {
            # By default small weights, and all of the embedded model's are small, stay whole.
            "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
            "zero_allow_untested_optimizer": True,
            "train_micro_batch_size_per_gpu": "auto",
            "gradient_accumulation_steps": "auto",
            "gradient_clipping": "auto",
        }
    },
}
#: Prompts in a step, whatever the number of processes, and the completions of each.
PROMPTS, GROUP = 4, 4


@dataclass(frozen=True)
class Case:
    """What is trained, whatever it runs on.

    Attributes:
        data: `think` (images, with thinking) or `mixed` (images, videos and text).
        adapter: train LoRA on all linear layers of the decoder instead of the weights themselves.
        accumulation: micro-batches of one optimiser step on one process.
        double: compute in float64.
        prompts: of an optimiser step, on all processes together.
        pinned: every process stays on the core of its number.
        longest: completion in tokens.
        family: an architecture of `experiments.families` in place of the embedded model, on pictures alone.
        heads: `attention_heads`, to be measured; None: the mean of all.
        served: rollouts are sampled by a whole copy of the policy in each process that follows its weights, as a server does.
        layers: of the decoder, as many as the embedded model has if not given.
        precision: `bf16` is what `bf16: true` asks for; `fp32` is a policy of FSDP2 that names a precision and rounds nothing.
        taught: fine-tuning on worked examples in place of reinforcement; `prompts` of them a step.
        settings: further ones of reinforcement.
    """

    data: Literal["think", "mixed"] = "think"
    steps: int = 20
    adapter: bool = False
    freeze_vision: bool = True
    attention_anchor: str = "old"
    attention_share: float | None = None
    accumulation: int = 1
    double: bool = False
    prompts: int = PROMPTS
    pinned: bool = False
    longest: int = 16
    taught: bool = False
    family: str | None = None
    served: bool = False
    layers: int | None = None
    heads: dict[str, Any] | None = None
    precision: Literal["no", "fp32", "bf16"] = "no"
    settings: dict[str, Any] = field(default_factory=dict)

    def records(self) -> list[Record]:
        """Not a multiple of the prompts of a step, so that an epoch ends with an uneven batch."""
        if self.data == "think":
            return ring_records(5 * self.prompts + 3, seed=0)
        kinds = (ring_records(7, seed=0), episode_records(7, 0, picks=[2]), told_records(9, 0))
        return [record for kind in kinds for record in kind]

    def config(self, folder: Path, processes: int, engine: str) -> RALConfig | SFTSettings:
        prompts = self.prompts // processes // self.accumulation
        shared: dict[str, Any] = {
            "output_dir": str(folder),
            "use_cpu": True,
            "template": "plain",
            "fps": 1.0,
            "num_frames": 6,
            "max_pixels": 32 * 32 if self.data == "mixed" else None,
            "gradient_accumulation_steps": self.accumulation,
            "max_steps": self.steps,
            "learning_rate": 1e-3 if self.adapter else 1e-4,
            "freeze_vision": self.freeze_vision,
            "save_strategy": "no",
            "disable_tqdm": True,
            "bf16": self.precision == "bf16",
            **SHARDING[engine],
        }
        if self.taught:
            return SFTSettings(per_device_train_batch_size=prompts, **shared)
        reinforcement: dict[str, Any] = {
            "num_generations": GROUP,
            "per_device_train_batch_size": prompts * GROUP,
            "max_completion_length": self.longest,
            "temperature": 1.3,
            "attention_anchor": self.attention_anchor,
            "attention_share": self.attention_share,
            "attention_coef": 5.0,
            "attention_heads": self.heads,
            "beta": 0.04,
            "gradient_norm_steps": 1,
            "rollout_engine": "copy" if self.served else "transformers",
        }
        return RALConfig(**reinforcement | shared | self.settings)


class OnCPU(Trainer):
    """accelerate shards on accelerators only; its FSDP2 code and torch's run over gloo all the same."""

    #: Set as accelerate sets it there, from `mixed_precision`.
    policy: str = "no"

    def __init__(self, *arguments: Any, **named: Any):
        self._unlogged: list[Tensor] = []  # losses of micro-batches, `[]`
        super().__init__(*arguments, **named)

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        if self.args.fsdp:
            state = self.accelerator.state
            state.distributed_type = DistributedType.FSDP
            state.fsdp_plugin = FullyShardedDataParallelPlugin(**self.args.fsdp_plugin_args)
            if self.policy != "no":
                state.fsdp_plugin.set_mixed_precision(self.policy)
            if state.fsdp_plugin.cpu_offload:
                state.fsdp_plugin.cpu_offload = CPUOffloadPolicy(pin_memory=False)  # which a GPU's driver does
            self.is_fsdp_enabled = True

    def training_step(self, *arguments: Any, **named: Any) -> Tensor:
        loss = super().training_step(*arguments, **named)
        self._unlogged.append(loss.double())
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the loss in the precision that it has: Trainer adds up what it logs in float32."""
        if "loss" in logs:
            steps = self.args.logging_steps
            logs["loss"] = float(self.accelerator.gather(torch.stack(self._unlogged).sum()[None]).mean() / steps)
            self._unlogged.clear()
        super().log(logs, start_time)


class Reinforcement(OnCPU, RALTrainer):
    pass


class Copy(PolicyEngine):
    """A whole model of its own, which takes over the policy's weights before it samples."""

    def sync_weights(self, model: nn.Module, accelerator: Accelerator) -> None:
        [weights] = broadcast_object_list([full_state_dict(model, accelerator)])
        self.model.load_state_dict({name.removeprefix("module."): value for name, value in weights.items()})


ENGINE_NAMES["copy"] = lambda model, settings: Copy(copy.deepcopy(model), settings.rollout_rows)


class FineTuning(OnCPU, WorkedExamplesTrainer):
    pass


def lengths(completions: list[str], **columns: object) -> list[float]:
    """A reward with signal in nearly every group."""
    return [float(sum(map(ord, text)) % 7) for text in completions]


def of_family(kind: str) -> tuple[Any, Any]:
    """The tiny model and the processor of an architecture."""
    from experiments.families.processors import PROCESSORS, model_for

    made = PROCESSORS[kind]()
    return model_for(kind, made), made[0]


def exact_norm(self: Any, hidden_states: Tensor) -> Tensor:
    """A root mean square norm in the precision of what it is given."""
    return nn.functional.rms_norm(hidden_states, self.weight.shape, self.weight, self.variance_epsilon)


def compute_in_float64(model: PreTrainedModel) -> None:
    """In both passes; transformers' norms round to float32 inside, so two backward passes would not add up to one."""
    model.double()
    for kind in {type(module) for module in model.modules() if hasattr(module, "variance_epsilon")}:
        kind.forward = exact_norm


def deepen(model: PreTrainedModel, layers: int) -> None:
    """Put random layers behind those of the decoder: where it has many, one of them is a small part of the model."""
    torch.manual_seed(0)
    decoder, text = decoder_layers(model), model.config.get_text_config()
    text.num_hidden_layers, text.layer_types = layers, text.layer_types[:1] * layers
    for number in range(len(decoder), layers):
        layer: Any = type(decoder[0])(text, number)
        for parameter in layer.parameters():
            if parameter.ndim > 1:
                parameter.data.normal_(0, 0.02)
        decoder.append(layer)


def train(case: Case, engine: str, folder: Path) -> None:
    """One process of a run; the first one leaves the parameters at the end in `end.safetensors`."""
    torch.set_num_threads(1)
    torch.compiler.set_stance("force_eager")  # torchao compiles its updates, for minutes on a CPU
    if case.pinned:
        os.sched_setaffinity(0, {int(os.environ["LOCAL_RANK"])})
    model, processor = load_start() if case.family is None else of_family(case.family)
    if case.layers is not None:
        deepen(model, case.layers)
    if case.double:
        compute_in_float64(model)
    linear: dict[str, Any] = {"target_modules": "all-linear", "exclude_modules": ".*visual.*"}
    if case.family is not None:
        linear = {"target_modules": r".*language_model.*\.(q|k|v)_proj"}
    adapter = LoraConfig(r=4, **linear) if case.adapter else None
    OnCPU.policy = case.precision
    args, records = case.config(folder, int(os.environ["WORLD_SIZE"]), engine), case.records()
    run: OnCPU
    if isinstance(args, SFTSettings):
        if args.freeze_vision:
            freeze_vision(model)
        run = FineTuning(
            model,
            args,
            data_collator=Examples(
                processor, WatchedRecords([replace(record, trace="look") for record in records]), args
            ),
            train_dataset=Dataset.from_dict({"number": range(len(records))}),
            processing_class=processor,
            peft_config=adapter,
            callbacks=[MetricsWriter()],
        )
    else:
        run = Reinforcement(model, args, records, processing_class=processor, reward_funcs=lengths, peft_config=adapter)
    run.train()
    weights = full_state_dict(run.model_wrapped, run.accelerator)  # whole, on the first process
    # What a vLLM server would be sent.
    merged = dict(whole_weights(run.model_wrapped, run.accelerator, None)) if adapter else {}
    if run.is_world_process_zero():
        wrapper = "_checkpoint_wrapped_module."  # around a layer whose activations are not kept, and in no saved name
        trained = [name.replace(wrapper, "") for name, p in run.model.named_parameters() if p.requires_grad]
        end = {name: weights[name].contiguous() for name in trained}
        end |= {
            name: value.cpu() for name, value in merged.items() if ".layers." in name
        }  # others may share their memory
        save_file(end, folder / "end.safetensors")
    run.accelerator.end_training()


def run(case: Case, engine: str, processes: int, folder: Path) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """Metrics by step and trained parameters at the end of a run on so many processes, each on one thread."""
    in_processes(train, case, engine, processes, folder)
    return list(read_jsonl(folder / "metrics.jsonl")), load_file(folder / "end.safetensors")


def in_processes(
    target: Callable[[Case, str, Path], None], case: Case, engine: str, processes: int, folder: Path
) -> None:
    """Call `target` in so many processes of one group, and wait for all of them."""
    folder.mkdir(parents=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    started = [
        _context.Process(target=_process, args=(target, case, engine, folder, rank, processes, port), daemon=True)
        for rank in range(processes)
    ]
    for one in started:
        one.start()
    end = time.monotonic() + 900
    while any(one.is_alive() for one in started) and time.monotonic() < end:
        if any(one.exitcode for one in started):
            break  # the others wait for it
        time.sleep(0.05)
    for one in started:
        one.join(timeout=2)
        one.kill()
    if any(one.exitcode != 0 for one in started):
        said = "\n".join((folder / f"{rank}.log").read_text()[-3000:] for rank in range(processes))
        raise RuntimeError(f"{case} on {processes} processes under {engine}:\n{said}")


def _process(
    target: Callable[[Case, str, Path], None],
    case: Case,
    engine: str,
    folder: Path,
    rank: int,
    processes: int,
    port: int,
) -> None:
    """One process of a run; what it says goes to a file."""
    with open(folder / f"{rank}.log", "wb", buffering=0) as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    os.environ.update(zip(names, map(str, (rank, rank, processes, processes, "127.0.0.1", port)), strict=True))
    target(case, engine, folder)


def differences(curve: list[float], reference: list[float]) -> dict[str, float]:
    """The largest difference between two loss curves, relative to the loss of its step and to the largest loss."""
    gaps = [abs(loss - expected) for loss, expected in zip(curve, reference, strict=True)]
    return {
        "of_the_step": max(gap / abs(expected) for gap, expected in zip(gaps, reference, strict=True)),
        "of_the_largest": max(gaps) / max(map(abs, reference)),
    }


#: What is trained under every engine.
CASES = {
    "think": Case("think"),
    "mixed": Case("mixed"),
    "think, served": Case("think", served=True),
    "mixed, served": Case("mixed", served=True),
    "mixed, adapter": Case("mixed", adapter=True),
    "mixed, two micro-batches": Case("mixed", accumulation=2, prompts=2 * PROMPTS),
}

#: Further settings under full sharding, and the package that they need.
OPTIONS: dict[str, tuple[Case, tuple[str, ...], str | None]] = {
    "mixed, activations": (
        Case("mixed"),
        ("full-shard, checkpointing", "full-shard, recomputing", "full-shard, reentrant"),
        None,
    ),
    "mixed, host's memory": (Case("mixed"), ("full-shard, offloaded",), None),
    "mixed, sgd": (Case("mixed", settings={"optim": "sgd", "learning_rate": 0.1}), ("ddp", "full-shard"), None),
    "mixed, adamw_torch_8bit": (
        Case("mixed", settings={"optim": "adamw_torch_8bit"}),
        ("ddp", "full-shard"),
        "torchao",
    ),
}


def engines_of(double: bool) -> tuple[str, ...]:
    """The engines that run in a precision: DeepSpeed shares out no weights in float64."""
    return tuple(engine for engine in ENGINES if not (double and engine == "zero3"))


def measure(
    name: str, case: Case, engines: Sequence[str], processes: Sequence[int], folder: Path
) -> list[dict[str, Any]]:
    """One process with whole batches against several, under every engine: one row per run."""
    dtype = "float64" if case.double else "float32"

    def curve(case: Case, engine: str, processes: int) -> list[float]:
        kept = folder / f"{name}-{case.steps}-{dtype}-{engine}-{processes}"
        if not (kept / "end.safetensors").exists():
            shutil.rmtree(kept, ignore_errors=True)
            run(case, engine, processes, kept)
        return [row["loss"] for row in read_jsonl(kept / "metrics.jsonl")]

    reference = curve(replace(case, accumulation=1), "ddp", 1)
    return [
        {
            "case": name,
            "dtype": dtype,
            "engine": engine,
            "processes": number,
            **differences(curve(case, engine, number), reference),
        }
        for engine in engines
        for number in processes
    ]


def rows(steps: int, folder: Path) -> Iterator[dict[str, Any]]:
    """Of every run that the packages at hand allow."""
    for name, case in CASES.items():
        for double in (False, True):
            engines = [engine for engine in engines_of(double) if "zero" not in engine or find_spec("deepspeed")]
            yield from measure(name, replace(case, steps=steps, double=double), engines, PROCESSES, folder)
    for name, (case, further, package) in OPTIONS.items():
        if package is None or find_spec(package):
            for double in (False, True) if package is None else (False,):  # torchao updates in float32
                yield from measure(name, replace(case, steps=steps, double=double), further, PROCESSES[:1], folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--output", type=Path, default=Path("runs/processes"), help="Where the runs are kept.")
    args = parser.parse_args()
    runs = list(rows(args.steps, args.output))
    results = {
        "command": f"python -m experiments.processes --steps {args.steps}",
        "machine": machine_class(),
        "commit": source_commit(),
        "prompts": PROMPTS,
        "group": GROUP,
        "runs": runs,
    }
    atomic_write_text(RESULTS, json.dumps(results, indent=1) + "\n")
    print(
        "largest difference from one process's losses (promised of the largest loss: 1e-5 in float32, 1e-8 in float64)"
    )
    print(*runs[0])
    for row in runs:
        print(*row.values())


if __name__ == "__main__":
    main()
