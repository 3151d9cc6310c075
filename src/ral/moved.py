"""Old module names that still work: `import ral.trainer` gives `ral.training.trainer`.

Nothing inside the package imports a module by an old name.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

#: Old name → where the module is now.
MOVED = {
    "ral.anchors": "ral.objective.anchors",
    "ral.answers": "ral.rewards.answers",
    "ral.balance": "ral.training.balance",
    "ral.checkpoints": "ral.runs.checkpoints",
    "ral.distill": "ral.training.distillation",
    "ral.divergence": "ral.objective.divergence",
    "ral.dumps": "ral.training.dumps",
    "ral.evaluate.along": "ral.evaluate.look_recorder",
    "ral.evaluate.statistics": "ral.statistics",
    "ral.evidence": "ral.training.evidence",
    "ral.groups": "ral.rollouts.group",
    "ral.launch": "ral.training.launch",
    "ral.loading": "ral.models.loading",
    "ral.losses": "ral.training.losses",
    "ral.mathematics": "ral.rewards.mathematics",
    "ral.redaction": "ral.runs.redaction",
    "ral.replay": "ral.training.replay",
    "ral.rollout": "ral.rollouts.sampling",
    "ral.sft": "ral.training.sft",
    "ral.sharding": "ral.models.sharding",
    "ral.testbed.quickstart": "ral.quickstart",
    "ral.trainer": "ral.training.trainer",
    "ral.vllm": "ral.rollouts.vllm",
}


class MovedModules(MetaPathFinder, Loader):
    """Finds moved modules, and modules inside moved packages, by their old names. Both names give the same module object."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return None if _new_name(fullname) is None else ModuleSpec(fullname, self)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        name = _new_name(spec.name)
        assert name is not None  # or it would not have been found
        module = import_module(name)
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Restore the module's own spec, which the import system has just overwritten. The module itself has run already."""
        assert module.__spec__ is not None
        module.__spec__ = module.__spec__.loader_state


def _new_name(name: str) -> str | None:
    for old, new in MOVED.items():
        if name == old or name.startswith(f"{old}."):
            return new + name.removeprefix(old)
    return None


def install() -> None:
    """Let old names be imported from now on."""
    if not any(isinstance(finder, MovedModules) for finder in sys.meta_path):
        sys.meta_path.insert(0, MovedModules())
