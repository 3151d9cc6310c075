"""Dumps keep all fields of their records, a new one as well, and those made by earlier versions are read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ral.attention import Prompt, prepare_prompt
from ral.config import RALConfig
from ral.data.prompt import encode_prompt
from ral.data.record import Record
from ral.data.settings import PromptSettings
from ral.rollouts.group import ScoredGroup, TrainingGroup
from ral.runs.resume import without_removed
from ral.testbed import load_start
from ral.testbed.rings import ring_records
from ral.training.dumps import ExamplesDump, FailedReward, RolloutsDump, load_dump, non_finite_fields
from ral.training.losses import micro_batch_loss, policy_pass
from ral.training.record_codec import MEDIA, encode

FIRST = Path(__file__).parent / "first_dump"
MODEL, PROCESSOR = load_start()
PROMPT = prepare_prompt(MODEL, encode_prompt(PROCESSOR, ring_records(1, seed=0)[0], PromptSettings(template="plain")))
RANDOM = torch.Generator().manual_seed(0)


def filled(kind: Any) -> Any:
    """A value of an annotated type, with something in every field, whatever its default."""
    arguments = [kind for kind in get_args(kind) if kind is not NoneType]
    match get_origin(kind):
        case origin if origin is UnionType or str(origin) == "typing.Union":
            return filled(arguments[0])
        case origin if origin is Literal:
            return arguments[-1]
        case origin if origin is list:
            return [filled(arguments[0]), filled(arguments[0])]
        case origin if origin is tuple:
            return filled(arguments[0]), filled(arguments[0])
        case origin if origin in (dict, Mapping):
            return {key: filled(arguments[1]) for key in ((0, 3) if arguments[0] is int else ("a", "b.c/d"))}
    match kind:
        case _ if kind is Tensor:
            return torch.rand(2, 3, generator=RANDOM)
        case _ if kind is Prompt:
            return PROMPT
        case _ if is_dataclass(kind):
            hints = get_type_hints(kind)
            media = MEDIA if kind is Record else set()  # type: ignore[comparison-overlap]
            return kind(**{item.name: filled(hints[item.name]) for item in fields(kind) if item.name not in media})
    return {str: "text", int: 7, float: 0.5, bool: True, Any: [None, {"x": 1}]}[kind]


def assert_equal(one: Any, other: Any, place: str) -> None:
    """Field by field, entry by entry; types as well."""
    assert type(one) is type(other), place
    if isinstance(one, Tensor):
        assert torch.equal(one, other), place
    elif is_dataclass(one):
        for item in fields(one):
            if not (isinstance(one, Prompt) and item.name == "features"):  # computed again
                assert_equal(getattr(one, item.name), getattr(other, item.name), f"{place}.{item.name}")
    elif isinstance(one, Mapping):
        assert list(one) == list(other), place
        for key in one:
            assert_equal(one[key], other[key], f"{place}[{key!r}]")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), place
        for i, pair in enumerate(zip(one, other, strict=True)):
            assert_equal(*pair, f"{place}[{i}]")
    else:
        assert one == other, place


def count(value: Any) -> int:
    """Fields of a record and of all records in it."""
    if is_dataclass(value) and not isinstance(value, Prompt):
        return sum(1 + count(getattr(value, item.name)) for item in fields(value))
    return sum(map(count, value)) if isinstance(value, list | tuple) else 0


def test_all_fields_of_a_group_come_back(tmp_path: Path) -> None:
    group = filled(TrainingGroup)
    assert count(group) > 60, "records inside of records are filled, too"
    dump = RolloutsDump(
        what="a test", step=3, max_steps=9, settings={"beta": 0.5}, micro_batches=[[group], [group, group]],
        factor=0.25, teacher="big",
    )  # fmt: skip
    dump.save(tmp_path, 2)
    read = load_dump(tmp_path, 2, MODEL)
    assert_equal(dump, read, "dump")


def test_all_fields_of_a_batch_of_examples_come_back(tmp_path: Path) -> None:
    batch = {"input_ids": torch.tensor([[1, 2]]), "pixel_values": torch.rand(4, 3)}
    dump = ExamplesDump(what="a test", step=1, max_steps=2, settings={}, micro_batches=[batch, batch], items=5)
    dump.save(tmp_path, 0)
    assert_equal(dump, load_dump(tmp_path, 0, MODEL), "dump")


def test_all_fields_of_a_failed_call_come_back(tmp_path: Path) -> None:
    failed = filled(FailedReward)
    failed.save(tmp_path, 1)
    assert_equal(failed, FailedReward.load(tmp_path, 1), "call")


def test_a_record_that_no_dump_holds_is_refused_by_name() -> None:
    @dataclass
    class Novel:
        value: int

    with pytest.raises(TypeError, match=r"^0\.a: Novel is no record that a dump holds; add it to .*KINDS"):
        encode([{"a": Novel(1)}], {})


def test_what_was_not_finite_before_the_pass_is_named() -> None:
    group = filled(TrainingGroup)
    assert non_finite_fields(group) == []
    for values in group.scored.rewards.values():
        values[0] = torch.nan  # a reward that does not apply
    assert non_finite_fields(group) == []
    group.targets.target_rows[3][0, 0] = torch.inf
    group.old.logps[0, 1] = torch.nan
    assert non_finite_fields(group) == ["targets.target_rows.3", "old.logps"]


# --- dumps of the first format, made by the commit before the second ----------------------------------------------------


def test_a_dump_of_the_first_format_gives_its_loss_again(tmp_path: Path) -> None:
    """Made of one group of the anchor `explore` at its second inner update; that version computed the loss."""
    dump = load_dump(FIRST, 0, MODEL)
    assert isinstance(dump, RolloutsDump)
    assert (dump.what, dump.step, dump.max_steps, dump.factor) == ("a test", 1, 4, 1.0)
    args = RALConfig(output_dir=str(tmp_path), **without_removed(dump.settings, "a dump"))
    [groups] = dump.micro_batches
    outputs = policy_pass(MODEL, groups, args, capture=True, teacher=None)
    loss = micro_batch_loss(MODEL, groups, outputs, args).total(args.attention_coef * dump.factor)
    expected = json.loads((FIRST / "expected.json").read_text())["loss"]
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)
    [group] = groups
    assert group.scored.record.solution == ring_records(1, seed=0)[0].solution
    assert group.old.rows.keys() == group.targets.target_rows.keys() == {1}
    assert group.old.logps.shape == group.targets.biased_logps.shape == group.scored.weights.shape
    assert group.scored.look_bias.shape == (2, len(group.prompt.input_ids))


def test_a_dump_before_the_first_update_has_no_old_pass(tmp_path: Path) -> None:
    facts = json.loads((FIRST / "batch-0.json").read_text())
    (tmp_path / "batch-0.json").write_text(json.dumps(facts))
    tensors = load_file(FIRST / "batch-0.safetensors")
    kept = {name: value for name, value in tensors.items() if ".old_" not in name}
    save_file(kept, tmp_path / "batch-0.safetensors")
    assert load_dump(tmp_path, 0, MODEL).micro_batches[0][0].old is None


def test_a_failed_call_of_the_first_format_is_read() -> None:
    failed = FailedReward.load(FIRST, 0)
    assert (failed.what, failed.step, failed.think, failed.scorer) == ("w", 0, True, "strict")
    assert failed.record.id == "rings-0-0"
    assert failed.record.boxes == ring_records(1, seed=0)[0].boxes
    assert [len(ids) for ids in failed.ids] == [6, 5]


def test_a_scored_group_never_changes() -> None:
    with pytest.raises(AttributeError):
        filled(ScoredGroup).weights = torch.zeros(1)
