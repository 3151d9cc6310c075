"""Engines, which sample completions. Training, and evaluation during training, share one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn

from ral.attention import Prompt
from ral.attention.models import pretrained
from ral.data.record import Record
from ral.rollouts.batch import Entry
from ral.rollouts.room import RowSize, device_memory
from ral.rollouts.sampling import Completion, Sampling, sample, stream
from ral.rollouts.vllm import TRANSFERS, VLLMServers


class Engine(Protocol):
    """Samples completions from the policy."""

    def sync_weights(self, model: nn.Module, accelerator: Accelerator) -> None:
        """Take over the policy's current weights. All processes must call it.

        Args:
            model: the policy as accelerate has prepared it.
        """

    def sample(
        self,
        records: Sequence[Record],
        prompts: Sequence[Prompt],
        num_generations: int,
        sampling: Sampling,
        generators: Sequence[torch.Generator] | None = None,
        look_bias: Sequence[Tensor] | None = None,
    ) -> list[list[Completion]]:
        """Sample `num_generations` completions for every prompt.

        Args:
            records: the records of the prompts, with their media.
            generators: one per prompt; without them the engine chooses its own random numbers.
            look_bias: per prompt `[G, P]`, see `ral.rollouts.sampling.sample`.
        """


def release(engine: Engine, accelerator: Accelerator) -> None:
    """Let an engine give back the memory that it needs for sampling alone, until its next `sync_weights`; all processes must call this.

    An engine without a method of this name holds none.
    """
    if (give_back := getattr(engine, "release", None)) is not None:
        give_back(accelerator)


@dataclass
class PolicyEngine:
    """The policy samples itself, with transformers.

    Attributes:
        model: as training calls it, so that tokens are sampled in the precision that they are trained in.
        rows: completions at once; None: as many as there is room for.
    """

    model: nn.Module
    rows: int | None = None

    def sync_weights(self, model: nn.Module, accelerator: Accelerator) -> None:
        """Take over the module, as accelerate may have replaced it; the weights are the policy's anyway."""
        self.model = extract_model_from_parallel(model)

    def sample(
        self,
        records: Sequence[Record],
        prompts: Sequence[Prompt],
        num_generations: int,
        sampling: Sampling,
        generators: Sequence[torch.Generator] | None = None,
        look_bias: Sequence[Tensor] | None = None,
    ) -> list[list[Completion]]:
        rows = self._rows(num_generations, sampling)(max(len(prompt.input_ids) for prompt in prompts))
        return sample(self.model, prompts, num_generations, sampling, generators, look_bias, rows=rows)

    def stream(self, prompts: Iterable[Prompt], sampling: Sampling) -> Iterator[tuple[int, Prompt, Completion]]:
        """One completion of every prompt, with the prompt and its number, as they end; prompts are taken as there is room."""
        entries = (Entry(i, prompt) for i, prompt in enumerate(prompts))
        for entry, (completion,) in stream(self.model, entries, 1, sampling, self._rows(1, sampling)):
            yield entry.number, entry.prompt, completion

    def _rows(self, num_generations: int, sampling: Sampling) -> Callable[[int], int]:
        """By the length of the longest prompt: completions at once."""
        if (rows := self.rows) is not None:
            return lambda longest: rows
        memory = device_memory(pretrained(self.model).device)
        return lambda longest: self._row_size.rows(memory, longest, sampling.max_completion_length, num_generations)

    @cached_property
    def _row_size(self) -> RowSize:
        return RowSize.of(pretrained(self.model))


#: Prompts that an engine without `stream` is given at once.
SERVED = 64


def most_likely(
    engine: Engine, asked: Iterable[tuple[Record, Prompt]], sampling: Sampling
) -> Iterator[tuple[int, Record, Prompt, Completion]]:
    """The most likely completion of every prompt, with its number, as they end. Few more prompts exist at once than are decoded."""
    greedy = replace(sampling, temperature=0, repetition_penalty=1.0)  # as `ral eval` answers
    if isinstance(engine, PolicyEngine):
        records: dict[int, Record] = {}

        def prompts() -> Iterator[Prompt]:
            for i, (record, prompt) in enumerate(asked):
                records[i] = record
                yield prompt

        for number, prompt, completion in engine.stream(prompts(), greedy):
            yield number, records.pop(number), prompt, completion
        return
    waiting, first = iter(asked), 0
    while chunk := list(islice(waiting, SERVED)):
        completions = engine.sample([record for record, _ in chunk], [prompt for _, prompt in chunk], 1, greedy)
        for i, ((record, prompt), (completion,)) in enumerate(zip(chunk, completions, strict=True), start=first):
            yield i, record, prompt, completion
        first += len(chunk)


def _policy(model: nn.Module, settings: Any) -> PolicyEngine:
    return PolicyEngine(model, settings.rollout_rows)


def _vllm(model: nn.Module, settings: Any) -> VLLMServers:
    folder = Path(settings.vllm_weights or f"{settings.output_dir}/vllm-weights").resolve()
    dtype = torch.bfloat16 if settings.bf16 else torch.float16 if settings.fp16 else None
    transfer = TRANSFERS[settings.vllm_transfer](folder, dtype)
    return VLLMServers(settings.vllm_urls, model, transfer, sleep=settings.vllm_sleep)


#: By the setting `rollout_engine`: the engine of a policy and its `RALConfig`.
ENGINES: dict[str, Callable[[nn.Module, Any], Engine]] = {"transformers": _policy, "vllm": _vllm}
