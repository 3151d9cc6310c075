"""Decoding by flash kernels: keys of a prompt are read once for all its completions, and scores are never stored.

A kernel sees one set of keys for each query. A completion's newest token attends to two: its prompt's, which others share, and its own.
Each gives an output and the logarithm of its sum of exponentials, by which the two are weighed.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.attention.varlen import AuxRequest, varlen_attn

#: Channels of a head that the kernels take at most, and of which they take multiples.
MOST_CHANNELS, CHANNELS = 256, 8
#: Compute capability of the first GPUs that have the kernels (Ampere).
FIRST = (8, 0)


def usable(values: Tensor) -> bool:
    """Whether there is a kernel for values `[B, H_kv, T, D]` like these: 16 bits, on a GPU that has it."""
    channels = values.shape[-1]
    return (
        values.dtype in (torch.float16, torch.bfloat16)
        and channels <= MOST_CHANNELS
        and channels % CHANNELS == 0
        and values.is_cuda
        and torch.cuda.get_device_capability(values.device) >= FIRST
    )


def token_major(held: Tensor) -> Tensor:
    """The same `[B, H_kv, T, D]`, in memory as `[B, T, H_kv, D]`, which the kernels read; no copy if it is so already."""
    return held.transpose(1, 2).contiguous().transpose(1, 2)


def attend(
    query: Tensor, keys: Tensor, values: Tensor, first: Tensor, used: Tensor, scaling: float
) -> tuple[Tensor, Tensor]:
    """Attention of N tokens to the keys of B sequences, N/B tokens to each sequence in turn.

    Args:
        query: `[N, H, D]`. keys, values: `[B, H_kv, T, D]`, `token_major`.
        first: `[B]` int32, where each sequence's keys begin. used: `[B]` int32, how many there are.

    Returns:
        Output `[N, H, D]`, and `[N, H]` the logarithm of the sum of exponentials of the scores.
    """
    sequences, _, length, _ = keys.shape
    width = len(query) // sequences
    count = torch.arange(sequences + 1, device=query.device, dtype=torch.int32)
    # A sequence reaches to the next one's first key, of which `used` are real.
    starts = torch.cat([first + count[:-1] * length, count[-1:] * length])
    flat_keys, flat_values = (held.transpose(1, 2).flatten(0, 1) for held in (keys, values))
    output, logsumexp = varlen_attn(
        query, flat_keys, flat_values, count * width, starts, width, length, return_aux=AuxRequest(lse=True), scale=scaling,
        enable_gqa=True, seqused_k=used,
    )  # fmt: skip
    return output, logsumexp.transpose(0, 1)


def joined(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> Tensor:
    """Attention `[N, H, D]` to two sets of keys together, from the outputs and logarithms of each."""
    share = torch.sigmoid(one[1].float() - other[1].float())[..., None]
    return torch.lerp(other[0].float(), one[0].float(), share).to(one[0].dtype)
