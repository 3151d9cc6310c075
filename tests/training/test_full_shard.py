"""What a process holds of the weights when each layer is whole only while it computes, in a run of two."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from experiments import processes
from experiments.processes import Case, Reinforcement, in_processes
from torch import nn
from torch.distributed.tensor import DTensor

from ral.attention.models import decoder_layers, pretrained
from ral.models import sharding

#: So many decoder layers that one of them is a small part of the model.
CASE = Case("think", 1, layers=24, prompts=2, longest=4, precision="fp32")


def held_bytes(parameters: Iterable[nn.Parameter]) -> int:
    """Of this process: whole weights as long as they are gathered, else its shards."""
    return sum(p.to_local().nbytes if isinstance(p, DTensor) else p.nbytes for p in parameters)


def whole_bytes(parameters: Iterable[nn.Parameter]) -> int:
    return sum(p.numel() * p.element_size() for p in parameters)


class Watched(Reinforcement):
    """Notes the largest share of policy and reference that is held while a layer computes, forwards or backwards, or is saved.

    Units that stay gathered are left out of both sides: the captured layer, embeddings, norm and tower.
    """

    phase = "rollouts"

    def start(self) -> None:
        super().start()
        self.most: dict[str, float] = defaultdict(float)
        assert self.reference is not None
        assert self.reference.model is not None
        for name, model in {"policy": self.model, "reference": self.reference.model}.items():
            layers = decoder_layers(pretrained(model))[:-1]
            for layer in layers:
                layer.mlp.register_forward_hook(lambda module, given, output, n=name, a=layers: self.note(n, a, output))

    def note(self, name: str, layers: Any, output: torch.Tensor) -> None:
        def look(*_: object) -> None:
            key = name if name == "reference" else f"policy, {self.phase}"
            share = held_bytes(layers.parameters()) / whole_bytes(layers.parameters())
            self.most[key] = max(self.most[key], share)

        look()
        if output.requires_grad:
            output.register_hook(look)

    def train(self, *arguments: Any, **named: Any) -> Any:
        """Also saves the weights at the end: a tensor that is made whole counts beside what is held."""
        output = super().train(*arguments, **named)
        layers = decoder_layers(pretrained(self.model))[:-1]
        gather = sharding.whole

        def watched(value: torch.Tensor) -> torch.Tensor:
            made = gather(value)
            share = (held_bytes(layers.parameters()) + made.nbytes) / whole_bytes(layers.parameters())
            self.most["policy, saving"] = max(self.most["policy, saving"], share)
            return made

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sharding, "whole", watched)
            self.save_model()
        return output

    def training_step(self, *arguments: Any, **named: Any) -> torch.Tensor:
        self.phase = "update"
        loss = super().training_step(*arguments, **named)
        self.phase = "rollouts"
        return loss


def share(case: Case, engine: str, folder: Path) -> None:
    """One process of the run; leaves what it held most, and how large the kept units are."""
    processes.Reinforcement = Watched  # type: ignore[misc]
    seen: list[Watched] = []
    fill = Watched.start
    Watched.start = lambda self: (seen.append(self), fill(self))[1]  # type: ignore[method-assign]
    processes.train(case, engine, folder)
    (folder / f"most-{seen[0].args.process_index}.json").write_text(json.dumps(seen[0].most))


def test_no_process_holds_more_than_its_part_and_the_layers_that_compute(tmp_path: Path) -> None:
    in_processes(share, CASE, "full-shard", 2, tmp_path / "run")
    for rank in range(2):
        most = json.loads((tmp_path / "run" / f"most-{rank}.json").read_text())
        assert most.keys() == {"policy, rollouts", "policy, update", "policy, saving", "reference"}
        # A half, the layer that computes, and in the backward pass the one that is fetched for afterwards.
        assert all(0.5 < value <= 0.6 for value in most.values()), most
