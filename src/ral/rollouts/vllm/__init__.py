"""Rollouts from vLLM servers, which have their own Python environment and their own GPUs, or share the trainer's.

`ral` uses the servers' HTTP API. It sends prompts as the policy's token ids, with their media as the policy has encoded them. A server
returns completions as token ids, with the log-probabilities of sampling. New weights travel through a folder that both can access, or
over the GPUs' network. Start a server with the model that training starts from:

    VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --enable-scale-out --logprobs-mode processed_logprobs
"""

from ral.rollouts.vllm.client import ServerError
from ral.rollouts.vllm.server import VLLMServers
from ral.rollouts.vllm.transfer import TRANSFERS

__all__ = ["TRANSFERS", "ServerError", "VLLMServers"]
