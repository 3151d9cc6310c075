"""The model that vLLM is tried with: `python -m tests.rollouts.vllm.served FOLDER` writes it for a server to start on."""

from __future__ import annotations

import sys
from typing import Any

import torch

from ral.testbed import load_start


def untied() -> tuple[Any, Any]:
    """The embedded model, its output embedding a copy of the input's, and its processor."""
    model, processor = load_start()
    model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    return model, processor


if __name__ == "__main__":
    for part in untied():
        part.save_pretrained(sys.argv[1])
