"""Rollouts from a vLLM server, which has its own Python environment and usually its own GPUs.

`ral` uses the server's HTTP API. It sends prompts as the policy's token ids, with their media. The server returns completions as token
ids, with the log-probabilities of sampling. `ral` writes new weights to a folder that both can access, and the server reads them in
place. Start the server with the model that training starts from:

    VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --enable-scale-out --logprobs-mode processed_logprobs
"""

from ral.rollouts.vllm.merging import merged_state
from ral.rollouts.vllm.server import ServerError, VLLMServer
from ral.rollouts.vllm.video import lossless_video, video_rates

__all__ = ["ServerError", "VLLMServer", "lossless_video", "merged_state", "video_rates"]
