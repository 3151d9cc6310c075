"""lmms-eval's model type `ral`: asks a trained checkpoint as in training and returns the body of its answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

from accelerate import Accelerator
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from loguru import logger
from tqdm import tqdm

from ral.data.record import ProblemType
from ral.errors import DataError
from ral.evaluate.answering import answer, encode, load_for_answering
from ral.evaluate.lmms import record_of, token_limit
from ral.evaluate.settings import EvalSettings
from ral.rewards.answers import extract_answer


class RAL(lmms):
    """`--model ral --model_args pretrained=RUN/final`.

    Prompts, pixels, frames and the length of answers are those of the run that the checkpoint lies in; each can be given
    among the `--model_args` by its name in `EvalSettings`. A completion without an answer is handed on as an empty text,
    and counted. Several processes (`accelerate launch`) share the requests.

    Args:
        pretrained: a checkpoint folder, a run folder or a hub id.
        problem_type: what kind of answer the prompt asks for when it asks to think.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str,
        batch_size: int | str = 1,
        device: str | None = None,
        max_batch_size: int | None = None,
        problem_type: str = "free-form",
        **settings: Any,
    ) -> None:
        super().__init__()
        try:
            self.settings = EvalSettings.of_model(pretrained, **settings)
        except TypeError as error:
            raise DataError(f"--model_args: {error}") from error
        model, self.processor = load_for_answering(pretrained)
        self.accelerator = Accelerator()
        self.device = device if device and self.accelerator.num_processes == 1 else self.accelerator.device
        self.model = cast(Any, model).to(self.device)
        self.batch_size_per_gpu = int(batch_size)
        self.problem_type = cast(ProblemType, problem_type)
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes

    def generate_until(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        """The answers' bodies, in the order of `requests`; "" where a completion holds none."""
        results: list[GenerationResult] = []
        unparsed = 0
        for start in tqdm(range(0, len(requests), self.batch_size_per_gpu), disable=self.rank > 0, desc="Answering"):
            batch = requests[start : start + self.batch_size_per_gpu]
            records, limits = [], []
            for request in batch:
                _, to_messages, generation, doc_id, task, split = request.args
                origin = f"{task}[{split}]: document {doc_id}"
                messages = to_messages(self.task_dict[task][split][doc_id])
                records.append(record_of(messages, str(doc_id), self.problem_type, origin))
                limits.append(token_limit(self.settings, generation))
            settings = replace(self.settings, max_completion_length=max(limits))
            inputs = [encode(self.processor, record, settings) for record in records]
            for request, item in zip(batch, answer(self.model, self.processor, records, settings, inputs), strict=True):
                body = extract_answer(item.text, settings.scorer, settings.think)
                unparsed += body is None
                counts = TokenCounts(len(item.prompt.input_ids), len(item.completion.ids))
                results.append(GenerationResult(body or "", counts))
                self.cache_hook.add_partial("generate_until", (request.args[0], request.args[2]), body or "")
        if unparsed:
            logger.warning(f"{unparsed} of {len(requests)} completions hold no answer; they are scored as empty")
        return results

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        raise NotImplementedError("a checkpoint trained here is scored by what it answers; choose a generating task")

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[str]:
        raise NotImplementedError("a checkpoint trained here answers one question; choose a task of single turns")
