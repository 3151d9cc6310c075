"""The tokens of a prompt that show the evidence: of images, videos and documents."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from ral.attention import prepare_prompt
from ral.config import RALConfig
from ral.data.box_density import tile_density
from ral.data.boxes import box_mask
from ral.data.prompt import encode_prompt
from ral.data.record import Box, Record
from ral.families.tiles import Tile, cut, interior, split
from ral.rollouts.group import ScoredGroup, Targets, TrainingGroup
from ral.rollouts.sampling import Completion
from ral.testbed import load_start
from ral.testbed.episodes import LEG, episode_records
from ral.testbed.model import build_text_model, build_tokenizer
from ral.testbed.needles import needle_records
from ral.testbed.rings import pointing_records, ring_records
from ral.training.evidence import answer_tokens, evidence_tokens
from ral.training.evidence_sources import SOURCES
from ral.training.forward import packed_forward, rows_of
from ral.training.losses import attention_term, policy_pass
from ral.training.targets import keep_old

MODEL, PROCESSOR = load_start()


def test_of_an_image_they_are_the_cells_of_its_box() -> None:
    [record] = ring_records(1, seed=0)
    prompt = prepare_prompt(MODEL, encode_prompt(PROCESSOR, record, think=True, template="plain"))
    found = evidence_tokens(record, prompt, PROCESSOR)
    assert found is not None
    assert not found[~prompt.visual].any()
    cells = found[prompt.places].view(8, 8)
    assert torch.equal(cells, torch.from_numpy(box_mask((8, 8), (64, 64), record.boxes)))
    assert 0 < cells.sum() < 8


def test_boxes_of_the_second_image_are_marked_in_the_second_image() -> None:
    left, right = (Image.new("RGB", (64, 64), colour) for colour in ("red", "blue"))
    record = Record("two", "<image> <image> which?", "red", images=(left, right), boxes=(Box(0, 0, 8, 8, medium=1),))
    prompt = prepare_prompt(MODEL, encode_prompt(PROCESSOR, record, think=True, template="plain"))
    found = evidence_tokens(record, prompt, PROCESSOR)
    assert found is not None
    assert found[prompt.places].nonzero().flatten().tolist() == [64]


def test_of_a_video_they_are_in_the_patch_of_the_frame(tmp_path: Path) -> None:
    pytest.importorskip("minigrid")
    [record] = episode_records(1, 0, picks=[3], cache=tmp_path)
    inputs = encode_prompt(PROCESSOR, record, think=True, template="plain", fps=1.0)
    prompt = prepare_prompt(MODEL, inputs)
    found = evidence_tokens(record, prompt, PROCESSOR, fps=1.0)
    assert found is not None
    [(t, h, w)] = prompt.grids
    patches = found[prompt.places].view(t, h * w).any(dim=1)
    assert patches.nonzero().flatten().tolist() == [record.boxes[0].frame // LEG]
    unseen = replace(record, boxes=tuple(replace(box, frame=1) for box in record.boxes))
    assert evidence_tokens(unseen, prompt, PROCESSOR, fps=1.0) is None


def test_of_a_document_they_spell_the_span() -> None:
    tokenizer = build_tokenizer()
    [record] = needle_records(1, 0)
    prompt = prepare_prompt(build_text_model(tokenizer), encode_prompt(tokenizer, record, think=True, template="plain"))
    found = evidence_tokens(record, prompt, tokenizer)
    assert found is not None
    [span] = record.evidence
    assert tokenizer.decode(prompt.input_ids[found]) == record.problem[span.start : span.stop]


def test_without_boxes_it_is_not_known() -> None:
    [record] = ring_records(1, seed=0)
    prompt = prepare_prompt(MODEL, encode_prompt(PROCESSOR, record, think=True, template="plain"))
    assert evidence_tokens(replace(record, boxes=()), prompt, PROCESSOR) is None


@pytest.mark.parametrize(
    ("think", "texts", "expected"),
    [
        (True, ["<think> row 2 col 3 </think><answer> blue </answer>", "<think> blue"], ["blue", ""]),
        (False, ["blue", "blue <answer> red </answer>"], ["blue", "red"]),
    ],
)
def test_the_answer_is_its_body_alone(think: bool, texts: list[str], expected: list[str]) -> None:
    tokenizer = PROCESSOR.tokenizer
    ids = [torch.tensor(tokenizer.encode(text)) for text in texts]
    found = answer_tokens(texts, ids, PROCESSOR, "strict", think)
    assert found.shape == (2, max(map(len, ids)))
    for row, tokens, body in zip(found, ids, expected, strict=True):
        assert tokenizer.decode(tokens[row[: len(tokens)]]).strip() == body
        assert not row[len(tokens) :].any()


# --- the settings of evidence -------------------------------------------------------------------------------------


def groups(n: int, texts: list[str], rewards: list[float]) -> list[ScoredGroup]:
    """`n` ring searches with the same completions."""
    found, zeros = [], torch.zeros(len(texts))
    for record in ring_records(n, seed=0):
        prompt = prepare_prompt(MODEL, encode_prompt(PROCESSOR, record, think=True, template="plain"))
        completions = [Completion(torch.tensor(PROCESSOR.tokenizer.encode(text)), False) for text in texts]
        longest = max(len(one.ids) for one in completions)
        found.append(
            ScoredGroup(
                record=record, prompt=prompt, completions=completions, texts=texts, rewards={}, reward=torch.tensor(rewards),
                advantages=zeros, attention_advantages=zeros, weights=torch.ones(len(texts), longest),
            )
        )  # fmt: skip
    return found


def settings(folder: Path, **changes: object) -> RALConfig:
    values = {"attention_anchor": "evidence", "use_cpu": True, "num_generations": 2, "per_device_train_batch_size": 4}
    return RALConfig(output_dir=str(folder), **(values | changes))  # type: ignore[arg-type]


TEXTS = ["<think>row 2 col 3</think><answer>blue</answer>", "<think>row 1</think><answer>red</answer>"]


def found(folder: Path, texts: list[str] = TEXTS, n: int = 1, **changes: object) -> list[Targets]:
    args = settings(folder, **changes)
    return SOURCES[args.evidence_from](args, PROCESSOR, MODEL, groups(n, texts, [1.0, 0.3]))


def test_rows_of_the_answer_of_all_tokens_or_of_the_first_and_only_of_rewarded_completions(tmp_path: Path) -> None:
    lengths = [len(PROCESSOR.tokenizer.encode(text)) for text in TEXTS]
    first = {"first": {"evidence_first": 4}}
    counts = {
        rows: found(tmp_path, evidence_rows=rows, **first.get(rows, {}))[0].answer.sum(dim=1).tolist()  # type: ignore[union-attr]
        for rows in ("answer", "all", "first")
    }
    assert counts == {"answer": [1, 1], "all": lengths, "first": [4, 4]}
    [gated] = found(tmp_path, evidence_reward=0.5)
    assert gated.answer is not None
    assert gated.answer.sum(dim=1).tolist() == [1, 0]


def test_a_placebo_marks_as_many_tokens_elsewhere_and_shuffled_those_of_the_other_prompt(tmp_path: Path) -> None:
    true, other = (one.evidence for one in found(tmp_path, n=2))
    assert true is not None
    assert other is not None
    for control in ("centre", "rolled", "random"):
        placebo = found(tmp_path, n=2, evidence_control=control)[0].evidence
        assert placebo is not None
        assert 0 < placebo.sum() <= 9
        assert not torch.equal(placebo, true)
    shuffled = [one.evidence for one in found(tmp_path, n=2, evidence_control="shuffled")]
    places = [one.prompt.visual for one in groups(2, TEXTS, [1.0, 0.0])]
    assert torch.equal(shuffled[0][places[0]], other[places[1]])  # type: ignore[index]
    assert torch.equal(shuffled[1][places[1]], true[places[0]])  # type: ignore[index]


def test_the_mixture_is_that_of_the_boxes_on_visual_tokens(tmp_path: Path) -> None:
    [one] = found(tmp_path, evidence_target="mixture", attention_keys="visual")
    [group] = groups(1, TEXTS, [0.0, 0.0])
    assert one.density is not None
    expected = tile_density([Tile(0, 8, 8)], group.record.boxes, [(64, 64)], 0.25, 0.1)
    assert expected is not None
    torch.testing.assert_close(one.density[group.prompt.places].double(), torch.from_numpy(expected), atol=1e-7, rtol=0)
    assert not one.density[~group.prompt.visual].any()
    assert found(tmp_path)[0].density is None


def test_later_rows_look_at_the_box_that_the_completion_stated_last(tmp_path: Path) -> None:
    said = '<think>it is at [0, 0, 16, 16], no, {"bbox_2d": [32, 48, 64, 64]} then</think><answer>blue</answer>'
    silent = "<think>row 1</think><answer>red</answer>"
    [one] = found(tmp_path, [said, silent], evidence_from="completion", evidence_rows="all")
    assert one.evidence is not None and one.answer is not None  # noqa: PT018
    tokenizer, ids = PROCESSOR.tokenizer, PROCESSOR.tokenizer.encode(said)
    ends = [len(tokenizer.encode(said[: said.index(stop) + 1])) for stop in ("],", "]}")]
    visual = groups(1, TEXTS, [0.0, 0.0])[0].prompt.places
    cells = one.evidence[0, : len(ids), visual].view(len(ids), 8, 8)
    assert one.answer[0].tolist() == [t >= ends[0] for t in range(len(ids))]
    assert not one.answer[1].any()
    first, second = (torch.zeros(8, 8, dtype=torch.bool) for _ in range(2))
    first[:2, :2], second[6:, 4:] = True, True
    for t in range(ends[0], len(ids)):
        assert torch.equal(cells[t], first if t < ends[1] else second)
    [answers] = found(tmp_path, [said, silent], evidence_from="completion")
    assert answers.answer.sum() == 1  # type: ignore[union-attr]
    assert found(tmp_path, [silent, silent], evidence_from="completion")[0].evidence is None
    [moved] = found(tmp_path, [said, silent], evidence_from="completion", evidence_control="centre")
    assert moved.evidence is not None
    assert not torch.equal(moved.evidence, one.evidence)


def test_stated_boxes_of_another_scale_are_left_out_and_counted(tmp_path: Path) -> None:
    shares, pixels = (f"<think>at {box}</think><answer>blue</answer>" for box in ("[.1, .1, .9, .9]", "[0, 0, 64, 32]"))
    outside = "<think>at [90, 90, 99, 99] or [0, 0, 8, 8]</think><answer>red</answer>"
    rows = {"evidence_from": "completion", "evidence_rows": "all"}
    for texts, space, left_out, said in (
        ([shares, pixels], None, (1, 2), [False, True]),
        ([shares, shares], None, (2, 2), [False, False]),
        ([shares, pixels], "unit", (1, 2), [True, False]),
        ([shares, outside], None, (2, 3), [False, True]),
        (TEXTS, None, (0, 0), [False, False]),
    ):
        [one] = found(tmp_path, texts, evidence_box_space=space, **rows)
        assert one.boxes_left_out is not None
        assert tuple(one.boxes_left_out.tolist()) == left_out
        assert one.answer is not None
        assert one.answer.any(dim=1).tolist() == said if any(said) else one.evidence is None
    assert found(tmp_path)[0].boxes_left_out is None


def test_the_setting_says_in_what_the_model_writes_boxes(tmp_path: Path) -> None:
    """The right upper quarter of a picture of 64 × 64, in every space."""
    written = {
        "image": "[32, 0, 64, 32]", "thousandths": "[500, 0, 1000, 500]", "thousandths_yx": "[0, 500, 500, 1000]",
        "unit": "[0.5, 0, 1, 0.5]", "loc": "<box>0 512 512 1024</box>",
    }  # fmt: skip
    visual = groups(1, TEXTS, [0.0, 0.0])[0].prompt.places
    for space, box in written.items():
        said = f"<think>{box}</think><answer>blue</answer>"
        [one] = found(tmp_path, [said, said], evidence_from="completion", evidence_rows="all", evidence_box_space=space)
        assert one.evidence is not None
        cells = one.evidence[0, -1, visual].view(8, 8)
        assert cells[:4, 4:].all()
        assert cells.sum() == 16


def test_a_box_that_is_the_answer_itself_trains_no_row_of_the_answer(tmp_path: Path) -> None:
    """Its evidence is known, so that `learning_warnings` tells this case apart from a rollout without a box."""
    answers = [f"<think>here</think><answer>[{x}, 0, 64, 64]</answer>" for x in (0, 32)]
    [one] = found(tmp_path, answers, evidence_from="completion")
    assert one.evidence is not None
    assert one.answer is not None
    assert not one.answer.any()


def test_interior_keys_leave_out_the_edge_of_the_picture(tmp_path: Path) -> None:
    [group] = groups(1, TEXTS, [1.0, 0.0])
    inside = group.prompt.interior[group.prompt.places].view(8, 8)
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[1:-1, 1:-1] = True
    assert torch.equal(inside, expected)
    assert not group.prompt.interior[~group.prompt.visual].any()
    tiles = (*cut(0, 1, 2, 3), Tile(0, 2, 2, newline=True))  # left and right half, then the whole
    kept = [tile.grid(part).tolist() for tile, part in zip(tiles, split(interior(tiles), tiles), strict=True)]
    assert kept[0] == [[False] * 3, [False, True, True], [False] * 3]
    assert kept[1] == [[False] * 3, [True, True, False], [False] * 3]
    assert kept[2] == [[False] * 2] * 2
    args = settings(tmp_path, attention_keys="interior", attention_anchor="old")
    [output] = packed_forward(MODEL, [group], args, layers=[-1])
    [rows] = rows_of(output, args).values()
    assert rows.shape[-1] == 36
    whole = output.attention[..., group.prompt.interior.nonzero()[:, 0]]
    torch.testing.assert_close(rows, whole / whole.sum(dim=-1, keepdim=True).clamp_min(1e-30))


def test_what_the_pointed_rings_are_taught_to_say_is_where_their_box_is(tmp_path: Path) -> None:
    [record] = pointing_records(1, seed=0)
    [spoken] = found(tmp_path, [f"<think>{record.trace}</think><answer>red</answer>"] * 2, evidence_from="completion")
    assert spoken.evidence is not None and spoken.answer is not None  # noqa: PT018
    rows = spoken.evidence[spoken.answer]
    assert len(rows) == 2
    prompt = groups(1, TEXTS, [0.0, 0.0])[0].prompt  # of the same image
    assert torch.equal(rows[0], evidence_tokens(record, prompt, PROCESSOR))  # type: ignore[arg-type]


@pytest.mark.parametrize("rows", ["all", "answer"])
def test_the_kl_to_the_mixture_on_stated_boxes_trains_the_model_with_numbers(tmp_path: Path, rows: str) -> None:
    """EASE without labels: rows before the first box, and a rollout that states none, have no mixture. Against the formula."""
    said = "<think>it is at [0, 0, 16, 16] then</think><answer>blue</answer>"
    args = settings(
        tmp_path, evidence_from="completion", evidence_rows=rows, evidence_target="mixture", evidence_divergence="kl",
        attention_keys="visual", attention_layers=[0],
    )  # fmt: skip
    scored = groups(1, [said, TEXTS[1]], [1.0, 0.3])
    [targets] = SOURCES["completion"](args, PROCESSOR, MODEL, scored)
    group = TrainingGroup(scored=scored[0], targets=targets)
    [output] = policy_pass(MODEL, [group], args, capture=True, teacher=None)
    keep_old(group, output, args, 1)
    term = attention_term(group, output, args)

    [captured], visual = output.layers.values(), group.prompt.visual
    assert targets.answer is not None and targets.density is not None  # noqa: PT018
    counted = targets.answer
    assert 0 < counted.sum() < group.scored.mask.sum()
    p = captured[counted].double()[:, : len(visual)][:, visual]
    p, q = (x / x.sum(-1, keepdim=True) for x in (p, targets.density[..., visual][counted].double()))
    expected = (p * (p / q).log()).sum()
    torch.testing.assert_close(term.loss.double(), expected, rtol=1e-5, atol=0)
    wanted, found = (torch.autograd.grad(x, captured, retain_graph=True)[0] for x in (expected, term.loss))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    weights = [p for p in MODEL.parameters() if p.requires_grad]
    gradients = [g for g in torch.autograd.grad(term.loss, weights, allow_unused=True) if g is not None]
    assert all(g.isfinite().all() for g in gradients)
    assert any(g.any() for g in gradients)
