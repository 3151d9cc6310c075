"""Reinforced Attention Learning: post-train vision-language models on where they look, beside what they say."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ral import moved

if TYPE_CHECKING:
    from ral.attention import forward_group
    from ral.config import RALConfig
    from ral.notebook.look import look
    from ral.notebook.saved import read_run
    from ral.training.trainer import RALTrainer

__version__ = "0.2.0"

moved.install()

_HOMES = {
    "forward_group": "ral.attention",
    "look": "ral.notebook.look",
    "RALConfig": "ral.config",
    "RALTrainer": "ral.training.trainer",
    "read_run": "ral.notebook.saved",
}

__all__ = ["RALConfig", "RALTrainer", "forward_group", "look", "read_run"]


def __getattr__(name: str) -> Any:
    """Import on first use, so that `ral --help` does not wait for torch."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'ral' has no attribute {name!r}")
