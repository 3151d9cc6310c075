"""DeepSpeed's ZeRO-3 in real processes: checkpoints, export, what is sent to a server, what a process holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from experiments import processes
from experiments.processes import SHARDING, Reinforcement, in_processes
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ral.attention.models import decoder_layers, pretrained, vision_tower
from ral.models.loading import export, load_model
from ral.models.sharding import full_state_dict
from ral.rollouts.vllm.transfer import whole_weights
from tests.killing import LORA, Attempt, Case, broken_files, result
from tests.training.test_kills import in_step

pytest.importorskip("deepspeed")

ZERO3 = SHARDING["zero3"]
#: Small weights are shared out, too. The reference moves, so that checkpoints hold it.
FULL = Case("full", 2, {"attention_anchor": "explore", "attention_share": 0.5, "gradient_accumulation_steps": 2,
                        "max_steps": 6, "sync_ref_model": True, "ref_model_sync_steps": 2, **ZERO3})  # fmt: skip
ADAPTER = Case("adapter", 2, {"attention_anchor": "old", "max_steps": 6, "peft": LORA, **ZERO3})


@pytest.mark.parametrize("case", [FULL, ADAPTER], ids=lambda case: case.name)
def test_a_killed_run_goes_on_bit_for_bit_and_its_checkpoints_are_models(case: Case, tmp_path: Path) -> None:
    recipe, run = case.write(tmp_path), tmp_path / "run"
    assert Attempt(recipe, tmp_path / "whole", 2).wait() == [0, 0], (tmp_path / "whole.log").read_text()
    attempt = Attempt(recipe, run, 2)
    while attempt.running and not in_step(5)(run):
        pass
    assert attempt.kill(1)[1] == -9
    assert broken_files(run) == []
    assert Attempt(recipe, run, 2).wait() == [0, 0], run.with_suffix(".log").read_text()
    assert result(run) == result(tmp_path / "whole")

    last = run / "checkpoint-6"
    manifest = json.loads((last / "manifest.json").read_text())["files"]
    assert {f"global_step6/zero_pp_rank_{rank}_mp_rank_00_model_states.pt" for rank in range(2)} <= manifest.keys()
    if case is ADAPTER:
        export(last, tmp_path / "one")
        last = tmp_path / "one"
    saved, final = load_model(last).state_dict(), load_model(run).state_dict()
    assert saved.keys() == final.keys()
    assert any("visual" in name for name in saved)
    assert all(torch.equal(value, final[name]) for name, value in saved.items())


def held(module: nn.Module) -> float:
    """The share of a module's weights that are whole."""
    sizes = [(p.numel(), getattr(p, "ds_numel", p.numel())) for p in module.parameters()]
    return sum(now for now, _ in sizes) / sum(size for _, size in sizes)


class Watched(Reinforcement):
    """Notes the largest share of the layers' weights that are whole while one of them computes, forwards or backwards.

    Leaves it in the run folder, with what is saved and what is sent to a server.
    """

    def train(self, *arguments: Any, **named: Any) -> Any:
        output, folder = super().train(*arguments, **named), Path(str(self.args.output_dir))
        assert held(vision_tower(pretrained(self.model))) == 1
        saved = full_state_dict(self.model_wrapped, self.accelerator)
        sent = dict(whole_weights(self.model_wrapped, self.accelerator, torch.bfloat16))
        if self.is_world_process_zero():
            for name, weights in {"saved": saved, "sent": sent}.items():
                save_file({key: value.clone() for key, value in weights.items()}, folder / f"{name}.safetensors")
        (folder / f"most-{self.args.process_index}.json").write_text(json.dumps(self.most))
        return output

    def start(self) -> None:
        super().start()
        self.most = {"policy": 0.0, "reference": 0.0}
        assert self.reference is not None
        assert self.reference.model is not None
        for name, model in {"policy": self.model, "reference": self.reference.model}.items():
            layers = decoder_layers(pretrained(model))
            for layer in layers:
                layer.mlp.down_proj.register_forward_pre_hook(
                    lambda module, given, n=name, a=layers: self.note(n, a, given[0])
                )

    def note(self, name: str, layers: nn.Module, given: Tensor) -> None:
        def look(*_: object) -> None:
            self.most[name] = max(self.most[name], held(layers))

        look()
        if given.requires_grad:
            given.register_hook(look)


def watch(case: processes.Case, engine: str, folder: Path) -> None:
    """One process of a run; DeepSpeed keeps nothing for later and fetches nothing ahead."""
    SHARDING[engine]["deepspeed"]["zero_optimization"] |= {
        "stage3_max_reuse_distance": 0,
        "stage3_max_live_parameters": 0,
    }
    processes.Reinforcement = Watched  # type: ignore[misc]
    processes.train(case, engine, folder)


def test_no_process_holds_more_than_its_part_and_the_module_that_computes(tmp_path: Path) -> None:
    case: Any = processes.Case("think", 1, layers=12, prompts=2, longest=4)
    in_processes(watch, case, "zero3", 2, tmp_path / "run")
    for rank in range(2):
        most = json.loads((tmp_path / "run" / f"most-{rank}.json").read_text())
        assert all(0 < share < 0.2 for share in most.values()), most
    saved, sent = (load_file(tmp_path / "run" / f"{name}.safetensors") for name in ("saved", "sent"))
    assert saved.keys() == sent.keys()
    assert all(torch.equal(sent[name], value.bfloat16()) for name, value in saved.items())
