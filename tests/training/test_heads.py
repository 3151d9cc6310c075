"""Heads that a run measures at its start, stores, and trains; and those of student and teacher."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ral.attention import forward_groups, prepare_prompt
from ral.config import RALConfig
from ral.data.boxes import tile_mask
from ral.data.prompt import encode_prompt
from ral.data.record import Record
from ral.data.shown_media import shown_media
from ral.errors import ConfigError, DataError, RunError, UsageError
from ral.evaluate.settings import EvalSettings
from ral.runs.chosen_heads import read_chosen_heads
from ral.testbed import load_start
from ral.testbed.rings import ring_records
from ral.training.heads import solution
from ral.training.losses import policy_pass
from tests.tiny import twin
from tests.training.test_trainer import rollouts, spread, trainer

EVIDENCE = {"top": 2, "by": "evidence", "records": 4}


def masses(by: str) -> torch.Tensor:
    """`[layers, heads]`, by eager attention: the mean mass on the box, or on the image, in the rows of the solution's tokens."""
    model, processor = load_start()
    reference, args, found = twin(model), RALConfig("unused", use_cpu=True, template="plain"), []
    for record in ring_records(4, seed=0):
        inputs = encode_prompt(processor, record, args.prompt)
        written, answer = solution(processor, record, prepare_prompt(model, inputs), args)
        ids = torch.cat([inputs["input_ids"], written[None]], dim=1)
        whole = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
        whole["mm_token_type_ids"] = torch.nn.functional.pad(inputs["mm_token_type_ids"], (0, len(written)))
        with torch.no_grad():
            attentions = reference(**whole, output_attentions=True).attentions
        length = inputs["input_ids"].shape[1]
        prompt, shows = prepare_prompt(model, inputs), shown_media(record, processor)
        places = prompt.places
        if by == "evidence":
            places = places[torch.from_numpy(tile_mask(prompt.tiles, shows.boxes, shows.sizes))]
        rows = torch.stack([layer[0][:, length:] for layer in attentions])  # [layers, heads, R, P+R]
        of_itself = rows[..., length:].diagonal(dim1=2, dim2=3)
        on = rows[..., places].sum(-1) / (1 - of_itself)
        found.append(on[..., answer].mean(-1))
    return torch.stack(found).mean(0)


@pytest.mark.parametrize("by", ["evidence", "visual"])
def test_the_best_heads_of_every_layer_are_measured_stored_and_trained(tmp_path: Path, by: str) -> None:
    one = trainer(tmp_path, reward_funcs=spread, attention_layers=[0, -1], attention_heads=EVIDENCE | {"by": by},
                  records=ring_records(4, seed=0), max_steps=1)  # fmt: skip
    one.train()
    expected, stored = masses(by), read_chosen_heads(tmp_path)
    assert stored is not None
    torch.testing.assert_close(torch.tensor(stored.scores), expected, atol=2e-5, rtol=0)
    assert stored.heads == expected.topk(2).indices.tolist() == one.args.attention_heads
    assert f"layer 1: {stored.heads[1][0]}, {stored.heads[1][1]} of 4" in stored.sentence()
    settings = EvalSettings.of_model(tmp_path)
    assert (settings.layer, settings.heads) == (-1, stored.heads[1])
    assert EvalSettings.of_model(tmp_path, layer=0).heads is None
    group, *_ = one.groups[0]
    named = trainer(tmp_path / "named", reward_funcs=spread, attention_layers=[0, -1], attention_heads=stored.heads,
                    records=ring_records(4, seed=0), max_steps=1)  # fmt: skip
    named.train()
    other, *_ = named.groups[0]
    assert all(torch.equal(group.old.rows[layer], other.old.rows[layer]) for layer in (0, 1))


def test_a_resumed_run_goes_on_with_the_heads_of_its_start(tmp_path: Path) -> None:
    how: dict[str, Any] = {
        "reward_funcs": spread,
        "attention_heads": EVIDENCE,
        "save_strategy": "steps",
        "save_steps": 2,
    }
    trainer(tmp_path, max_steps=2, **how).train()
    file = tmp_path / "heads.json"
    found = json.loads(file.read_text())
    file.write_text(json.dumps(found | {"heads": [[3]]}))  # others than this model would choose
    resumed = trainer(tmp_path, max_steps=4, **how)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.args.attention_heads == [[3]]
    file.unlink()
    with pytest.raises(RunError, match=r"bring heads\.json back"):
        trainer(tmp_path, max_steps=6, **how).train(resume_from_checkpoint=True)
    with pytest.raises(DataError, match=r"heads\.json is missing"):
        EvalSettings.of_model(tmp_path)
    file.write_text("{}")
    with pytest.raises(RunError, match="expected the heads"):
        read_chosen_heads(tmp_path)


def test_what_cannot_be_measured_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the top 5 heads, but a layer of the model has 4"):
        trainer(tmp_path, attention_heads={"top": 5, "by": "visual"}).train()
    blind = [Record(id=id, problem="what?", solution="a", problem_type="free-form", origin=id) for id in "ab"]
    for by, lacking in (("evidence", "says where its evidence is"), ("visual", "has an image or a video")):
        with pytest.raises(DataError, match=f"none of the 2 records {lacking}"):
            trainer(tmp_path / by, records=blind, attention_heads={"top": 1, "by": by}).train()
    with pytest.raises(UsageError, match="measured when training starts"):
        _ = RALConfig(str(tmp_path), use_cpu=True, attention_heads=EVIDENCE).heads
    with pytest.raises(ConfigError, match="contains 9, but layer 1 of the model has 4 heads"):
        trainer(tmp_path, attention_heads=[9])


def test_heads_of_student_and_teacher_are_named_together(tmp_path: Path) -> None:
    args: dict[str, Any] = {"output_dir": str(tmp_path), "use_cpu": True}
    with pytest.raises(ConfigError, match="set both attention_heads and teacher_heads, or neither"):
        RALConfig(**args, attention_distill_coef=0.5, attention_heads=[0])
    with pytest.raises(ConfigError, match=r"teacher_heads=\[0\] does nothing with attention_distill_coef=0\.0 and"):
        RALConfig(**args, attention_heads=[0], teacher_heads=[0])
    model, _ = load_start()
    how: dict[str, Any] = {
        "teacher": model,
        "attention_distill_coef": 0.5,
        "attention_coef": 0.0,
        "reward_funcs": spread,
    }
    with pytest.raises(ConfigError, match="teacher_heads contains 7, but layer 1"):
        trainer(tmp_path, attention_heads=[0], teacher_heads=[7], **how)
    apart = {}
    for heads, taught in (([0], [0]), ([0], [3]), ([1, 2], [2, 1])):
        one = trainer(tmp_path / str(taught), attention_heads=heads, teacher_heads=taught, max_steps=1, **how)
        one.train()
        apart[heads[0], taught[0]] = one.state.log_history[0]["distill/attention_jsd"]
    assert apart[0, 0] == pytest.approx(0, abs=1e-9)  # the teacher is the student
    assert apart[1, 2] == pytest.approx(0, abs=1e-9)
    assert apart[0, 3] > 0.05


@pytest.mark.parametrize("anchor", ["ref", "explore", "teacher"])
def test_targets_are_rows_of_the_same_heads(tmp_path: Path, anchor: str) -> None:
    """Before the first update reference, teacher and policy under (almost) no bias are the policy itself."""
    how: dict[str, dict[str, Any]] = {
        "ref": {}, "explore": {"explore_sigma": 1e-6}, "teacher": {"teacher": load_start()[0], "teacher_heads": [2]}
    }  # fmt: skip
    one = trainer(tmp_path, reward_funcs=spread, attention_anchor=anchor, attention_heads=[2], **how[anchor])
    for group in rollouts(one):
        (output,) = policy_pass(one.model, [group], one.args, capture=True, teacher=None)
        torch.testing.assert_close(group.targets.target_rows[1], output.layers[1].detach(), atol=1e-5, rtol=0)
        (every,) = forward_groups(one.model, [group.prompt], [group.scored.ids])
        assert (every.layers[1] - output.layers[1]).abs().max() > 0.1
