"""Rollouts from a vLLM server, which has its own Python environment and usually its own GPUs.

The server is asked through its HTTP API: prompts go as the token ids the policy is trained on with their media beside them,
completions come back as token ids with the log-probabilities they were drawn at. New weights are written to a folder that
both see, and the server reads them in place. It is started on the model that training starts from:

    VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --enable-scale-out --logprobs-mode processed_logprobs
"""

from ral.rollouts.vllm.merging import merged_state
from ral.rollouts.vllm.server import ServerError, VLLMServer
from ral.rollouts.vllm.video import lossless_video, video_rates

__all__ = ["ServerError", "VLLMServer", "lossless_video", "merged_state", "video_rates"]
