"""Probes of looking against transformers' eager attention, and what an evaluation writes of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel
from typer.testing import CliRunner

from ral.attention import prepare_prompt
from ral.cli import app
from ral.data.record import Box, Record
from ral.data.spans import answer_span
from ral.errors import DataError
from ral.evaluate.looking import look, look_on
from ral.evaluate.probes import Seen, masking_check, neutral_record, probe, summarise
from ral.evaluate.settings import PROBES, EvalSettings
from ral.testbed.model import build_processor
from tests.families.trained import as_trained
from tests.tiny import IMAGE, VIDEO, VISION_KINDS, completions, prompt, tiny_model, twin

MEDIA = ["image", "images", "video", "mixed"]


def eager(model: PreTrainedModel, inputs: dict, ids: Tensor, hidden: Tensor | None = None, first_query: int = 0) -> Any:
    """transformers' own forward over prompt and completion; the keys `hidden` get no attention from `first_query` on."""
    length = inputs["input_ids"].shape[1]
    whole = torch.cat([inputs["input_ids"], ids[None]], dim=1)
    everything = inputs | {"input_ids": whole, "attention_mask": torch.ones_like(whole)}
    everything["mm_token_type_ids"] = (whole == IMAGE).int() + 2 * (whole == VIDEO).int()
    everything = as_trained(model.config, everything)
    if hidden is not None:
        seen = torch.ones(whole.shape[1], whole.shape[1], dtype=torch.bool).tril()
        seen[first_query:, hidden] = False
        everything["position_ids"] = positions(model, inputs, ids)
        everything["attention_mask"] = torch.zeros(1, 1, *seen.shape).masked_fill(~seen, float("-inf"))
    with torch.no_grad():
        out = twin(model)(**everything, output_attentions=True)
    logps = out.logits[0, length - 1 : -1].double().log_softmax(-1).gather(-1, ids[:, None])[:, 0]
    return logps, [layer[0] for layer in out.attentions]


def positions(model: PreTrainedModel, inputs: dict, ids: Tensor) -> Tensor:
    ready = prepare_prompt(model, inputs)
    own = torch.arange(len(ids)) + ready.next_position
    return torch.cat([ready.position_ids, own.expand(3, -1)], dim=1)[:, None]


def seen_item(
    model: PreTrainedModel, inputs: dict, ids: Tensor, answer: slice, box: Box, per_head: bool = False
) -> Seen:
    ready = prepare_prompt(model, inputs)
    (found,) = look(model, [ready], [ids], [answer.start], per_head)
    sizes = [(8 * map_.shape[1], 8 * map_.shape[0]) for map_ in found.layers[0].maps]
    return Seen("item", ready, ids, answer, found, [box], sizes)


@pytest.mark.parametrize("kind", VISION_KINDS)
@pytest.mark.parametrize("medium", MEDIA)
def test_every_head_is_that_of_eager_attention(kind: str, medium: str) -> None:
    model, inputs, (ids,) = tiny_model(kind), prompt(medium, model=kind), completions((5,))
    ready = prepare_prompt(model, inputs)
    (found,) = look(model, [ready], [ids], [2], per_head=True)
    _, attentions = eager(model, inputs, ids)
    row, tokens = inputs["input_ids"].shape[1] + 1, inputs["input_ids"][0]
    places = torch.cat([(tokens == IMAGE).nonzero()[:, 0], (tokens == VIDEO).nonzero()[:, 0]])
    for layer, weights in zip(found.layers, attentions, strict=True):
        assert len(layer.heads) == 4
        for head, expected in zip(layer.heads, weights[:, row, places], strict=True):
            np.testing.assert_allclose(np.concatenate([m.ravel() for m in head.maps]), expected, atol=1e-6)
        average = [np.mean(maps, axis=0) for maps in zip(*(head.maps for head in layer.heads), strict=True)]
        for map_, expected in zip(layer.maps, average, strict=True):
            np.testing.assert_allclose(map_, expected, atol=1e-6)


@pytest.mark.parametrize("kind", VISION_KINDS)
@pytest.mark.parametrize("medium", MEDIA)
def test_rows_behind_the_image_are_those_of_eager_attention(kind: str, medium: str) -> None:
    model, inputs = tiny_model(kind), prompt(medium, model=kind)
    (found,) = look_on(model, [prepare_prompt(model, inputs)])
    _, attentions = eager(model, inputs, torch.tensor([3]))
    tokens = inputs["input_ids"][0]
    visual = ((tokens == IMAGE) | (tokens == VIDEO)).nonzero()[:, 0]
    places = torch.cat([(tokens == IMAGE).nonzero()[:, 0], (tokens == VIDEO).nonzero()[:, 0]])
    for rows, weights in zip(found.values(), attentions, strict=True):
        expected = weights.mean(0)[int(visual.max()) + 2 : len(tokens)][:, places]
        assert len(rows) == len(tokens) - int(visual.max()) - 2 > 0
        np.testing.assert_allclose(rows, expected, atol=1e-6)


@pytest.mark.parametrize("all_text", [False, True])
@pytest.mark.parametrize("kind", VISION_KINDS)
@pytest.mark.parametrize("medium", MEDIA)
def test_masking_is_exactly_a_key_that_is_not_there(kind: str, medium: str, all_text: bool) -> None:
    model, inputs, (ids,) = tiny_model(kind), prompt(medium, model=kind), completions((6,))
    answer, box = slice(2, 5), Box(0, 0, 8, 8, medium=0)
    item = seen_item(model, inputs, ids, answer, box)
    (found,) = masking_check(model, [item], all_text)
    assert found is not None
    tokens = inputs["input_ids"][0]
    first = int(torch.isin(tokens, torch.tensor([IMAGE, VIDEO])).nonzero().max()) + 2 if all_text else len(tokens) - 1
    hidden = torch.isin(tokens, torch.tensor([IMAGE if medium != "video" else VIDEO])).nonzero()[0]
    before, _ = eager(model, inputs, ids, hidden[:0], first)
    after, _ = eager(model, inputs, ids, hidden, first)
    assert found["tokens"] == 1
    assert found["logp"] == pytest.approx(float(before[answer].sum()), abs=1e-5)
    assert found["box"] == pytest.approx(float((after - before)[answer].sum()), abs=1e-5)
    assert found["box"] != 0
    assert np.isfinite(found["random"])


def test_a_box_over_most_of_the_image_has_no_control() -> None:
    """Over half of it at most has one: the other half."""
    model, (ids,) = tiny_model(), completions((4,))
    inputs = prompt("image")
    (tile,) = prepare_prompt(model, inputs).tiles
    rows, columns = tile.rows, tile.columns
    assert rows % 2 == 0
    half, more = (seen_item(model, inputs, ids, slice(0, 1), Box(0, 0, 999, 8 * n)) for n in (rows // 2, rows // 2 + 1))
    found, none = masking_check(model, [half, more])
    assert found["tokens"] == rows * columns // 2
    assert none is None
    assert summarise([{"masking": None}]) == {"n": 1}


def test_what_is_always_looked_at_is_divided_out_and_left_out() -> None:
    model, (ids,) = tiny_model(), completions((4,))
    item = seen_item(model, prompt("image"), ids, slice(0, 1), Box(0, 0, 8, 8))
    (same,) = probe(model, [item], [item.prompt], ["relative", "sinks"])
    for layer in same["relative"]:  # asked neutrally itself, the row is its own neutral row
        assert layer["lift"] == pytest.approx(1, abs=1e-5)
    for layer, count, kept in zip(item.look.layers, same["sinks"], same["without_sinks"], strict=True):
        values = layer.maps[0].ravel()
        if not count:
            assert kept["mass"] == pytest.approx(values[0] / values.sum())


def test_the_neutral_question_stands_where_the_question_stood() -> None:
    def neutral(problem: str) -> str:
        return neutral_record(Record("1", problem, "x", options=("A. x",), images=(Image.new("RGB", (8, 8)),))).problem

    assert neutral("Which? <image>") == "Write a general description of the image. <image>"
    assert neutral("<image>Which?") == "<image>Write a general description of the image."
    assert neutral("Which?") == "Write a general description of the image."


def test_the_answer_is_all_of_its_tokens() -> None:
    tokenizer = build_processor().tokenizer
    ids = torch.tensor(tokenizer.encode("<think>red blue</think><answer>blue ring</answer><|im_end|>"))
    span = answer_span(tokenizer, ids, "blue ring")
    assert span is not None
    assert tokenizer.decode(ids[span]).strip() == "blue ring"


def test_probes_are_named_in_one_order() -> None:
    assert EvalSettings(probes="sinks, heads").probes == "heads,sinks"
    assert EvalSettings(probes="all").probes == ",".join(PROBES)
    with pytest.raises(DataError, match="'sink'; known are all, heads"):
        EvalSettings(probes="sink")


def test_an_evaluation_writes_what_was_asked_for(tmp_path: Path) -> None:
    words = [
        "eval",
        "start",
        "--tasks",
        "rings",
        "--n",
        "24",
        "--template",
        "plain",
        "--max-completion-length",
        "24",
        "--probes",
        "all",
        "--show",
        "0",
    ]
    done = CliRunner().invoke(app, [*words, "--output", str(tmp_path)])
    assert done.exit_code == 0, done.output
    summary = json.loads((tmp_path / "rings" / "summary.json").read_text())
    items = [json.loads(line) for line in (tmp_path / "rings" / "items.jsonl").read_text().splitlines()]
    layers = json.loads((Path(__file__).parents[2] / "src/ral/testbed/assets/start/config.json").read_text())
    depth, heads = (layers["text_config"][name] for name in ("num_hidden_layers", "num_attention_heads"))
    found = summary["probes"]
    assert found["n"] == sum(item["probes"] is not None for item in items) > 12
    assert [len(layer) for layer in found["heads"]] == [heads] * depth
    assert len(found["relative"]) == len(found["without_sinks"]) == len(found["sinks"]) == depth
    mass = np.mean([[head["mass"] for head in layer] for layer in found["heads"]], axis=1)
    assert mass.max() > 0.1
    # The testbed's model answers from the ring's square: hidden, its answer gets less likely than for other squares.
    masking = found["masking"]
    assert masking["box"] < masking["random"]
    assert masking["ci"][0] <= masking["difference"] <= masking["ci"][1] < 0
    assert masking["n"] == found["masking-text"]["n"] == found["n"]
    again = CliRunner().invoke(app, [*words, "--output", str(tmp_path)])
    assert again.exit_code == 0, "a finished evaluation is the same evaluation"
