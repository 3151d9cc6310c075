"""The engine that samples completions on running vLLM servers."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from ral.attention import Prompt
from ral.attention.models import pretrained, special_visual_token_ids
from ral.data.record import Record
from ral.data.record_errors import name_in_errors
from ral.errors import ConfigError
from ral.rollouts.sampling import Completion, Sampling
from ral.rollouts.vllm.client import Client, ServerError
from ral.rollouts.vllm.media import request_media
from ral.rollouts.vllm.transfer import Transfer, on_all

#: Added to the logits of tokens that must not be drawn; the lowest that the API takes.
BANNED = -100.0
#: Why rollouts under a look bias are refused.
NO_LOOK_BIAS = (
    "attention_anchor='explore' samples under a bias on attention, which vLLM cannot add; set rollout_engine=transformers, or "
    "choose another attention_anchor"
)


class VLLMServers:
    """Running servers, as one sampler of completions.

    Args:
        urls: their addresses. Process r of n asks every n-th of them from the r-th on, or the one that falls to it where there are fewer.
        model: the policy whose weights they sample from.
        transfer: how they get these.
        sleep: whether they share the trainer's GPUs, and give their memory back between rollouts.

    Raises ServerError when nothing answers at one of the addresses, ConfigError for a model that cannot be sent.
    """

    def __init__(self, urls: Sequence[str], model: nn.Module, transfer: Transfer, *, sleep: bool = False):
        transfer.refuse(model)
        self.transfer, self.sleep = transfer, sleep
        base: Any = pretrained(model)
        self.config = base.config
        self.banned = {str(token): BANNED for token in special_visual_token_ids(base)}
        self.servers = [Client(url) for url in urls]
        self.mine = self.servers
        self._run = ""  # the mark of this run's weights on the servers
        self._sent = 0

    @property
    def version(self) -> str:
        """What the servers call the weights that were sent last."""
        return f"{self.transfer.adapter or 'ral'}-{self._run}-{self._sent}"

    def sync_weights(self, model: nn.Module, accelerator: Accelerator) -> None:
        """Take up the policy's weights, and forget what was computed with the old ones. All processes must call it.

        Args:
            model: as accelerate has prepared it; sharded weights are gathered one by one.
        """
        if not self._run:
            self._run = broadcast_object_list([secrets.token_hex(4)])[0]
            self.mine = share(self.servers, accelerator.process_index, accelerator.num_processes)
        main = accelerator.is_main_process
        if main and self.sleep:  # the weights first: memory for keys and values may not be there yet
            on_all(self.servers, lambda server: server.post("/wake_up?tags=weights"))
        self.transfer.send(model, accelerator, self.servers)
        self._sent += 1
        if main:
            if self.sleep:
                on_all(self.servers, lambda server: server.post("/wake_up?tags=kv_cache"))
            on_all(self.servers, self._finish)
        accelerator.wait_for_everyone()

    def _finish(self, server: Client) -> None:
        # Its worker forgets image features with the old weights, and its scheduler has to be told so.
        for cache in ("prefix", "encoder"):
            server.post(f"/reset_{cache}_cache")
        server.post("/update_weight_version", {"new_version": self.version})

    def release(self, accelerator: Accelerator) -> None:
        """Servers that share the trainer's GPUs give their memory back. All processes must call it."""
        if not self.sleep:
            return
        accelerator.wait_for_everyone()  # others may still be sampling
        if accelerator.is_main_process:
            on_all(self.servers, lambda server: server.post(f"/sleep?level={self.transfer.sleep_level}"))
        accelerator.wait_for_everyone()

    def sample(
        self,
        records: Sequence[Record],
        prompts: Sequence[Prompt],
        num_generations: int,
        sampling: Sampling,
        generators: Sequence[torch.Generator] | None = None,
        look_bias: Sequence[Tensor] | None = None,
    ) -> list[list[Completion]]:
        """`num_generations` completions for every prompt, all prompts at once; `records` are where their media are.

        The generators give each prompt's seed, so that it is drawn the same whatever it is batched with, as far as the
        server computes the same. Without them the server chooses.

        Raises:
            ServerError: a server samples from other weights than were sent last, or makes another prompt of an image than the
                policy's processor does.
            DataError: a video that the servers cannot take. ConfigError: a look bias.
        """
        if look_bias is not None:
            raise ConfigError(NO_LOOK_BIAS)
        drawn: Sequence[torch.Generator | None] = generators or [None] * len(prompts)
        seeds = [None if generator is None else generator.initial_seed() % 2**63 for generator in drawn]
        parameters = self._parameters(num_generations, sampling)

        def complete(i: int) -> list[Completion]:
            server = self.mine[i % len(self.mine)]
            return self._complete(server, records[i], prompts[i], parameters | {"seed": seeds[i]})

        with ThreadPoolExecutor(max_workers=len(prompts)) as pool:
            completions = list(pool.map(complete, range(len(prompts))))
        if self._sent:
            on_all(self.mine, self._require_version)
        return completions

    def _parameters(self, num_generations: int, sampling: Sampling) -> dict[str, Any]:
        further = {"min_p": sampling.min_p} if sampling.min_p else {}
        if sampling.repetition_penalty != 1:
            further["repetition_penalty"] = sampling.repetition_penalty
        return {
            "n": num_generations,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "max_tokens": sampling.max_completion_length,
            "stop_token_ids": list(sampling.eos_token_ids),
            "logit_bias": self.banned,
            "logprobs": 0,
            "output_kind": 2,  # whole completions only, or all but the last to finish are lost
            **further,
        }

    def _complete(self, server: Client, record: Record, prompt: Prompt, parameters: dict[str, Any]) -> list[Completion]:
        ids = prompt.input_ids.tolist()
        with name_in_errors(record):
            body = request_media(self.config, record, prompt) | {
                "model": self.transfer.adapter or server.model,
                "return_token_ids": True,
                "sampling_params": parameters,
            }
            answer = server.post("/inference/v1/generate", body)
        if answer["prompt_token_ids"] != ids:
            raise ServerError(
                f"{record.origin}: the vLLM server makes {len(answer['prompt_token_ids'])} tokens of this prompt, the policy's "
                f"processor {len(ids)}. Start the server on the same model, with the pixel limits of the run "
                "(--mm-processor-kwargs)."
            )
        return [_completion(choice) for choice in answer["choices"]]

    def _require_version(self, server: Client) -> None:
        """Raise ServerError where the server does not serve what this run has sent last."""
        served = server.get("/weight_info")["weight_version"]
        if served != self.version:
            raise ServerError(
                f"the vLLM server at {server.url} serves the weights {served!r}, this run sent {self.version!r}: it was started "
                "again, or another run uses it. Resume the run from its last checkpoint, with a server of its own"
            )


def share(servers: Sequence[Client], process: int, processes: int) -> list[Client]:
    """The servers of one process: with fewer servers than processes, several processes ask the same one."""
    return list(servers[process::processes]) or [servers[process % len(servers)]]


def _completion(choice: dict[str, Any]) -> Completion:
    """A choice of the server's answer, whose ids hold the end-of-sequence token already."""
    logps = torch.tensor([token["logprob"] for token in choice["logprobs"]["content"]])
    return Completion(torch.tensor(choice["token_ids"]), choice["finish_reason"] == "length", logps)
