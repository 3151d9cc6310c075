"""Blocks of pictures that the answer needs: their cut, their worth, and passes that are no larger than those that train."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ral.attention import Prompt, forward_groups, prepare_prompt
from ral.config import RALConfig
from ral.data.prompt import encode_prompt
from ral.data.record import Record
from ral.evaluate.looking import prompt_and_rest
from ral.families.cropped import centred
from ral.families.tiles import Tile
from ral.testbed.rings import ring_records
from ral.training import evidence_by_masking
from ral.training.evidence import answer_tokens
from ral.training.evidence_by_masking import answer_logps, blocks, from_masking
from ral.training.evidence_sources import SOURCES
from tests.data.conftest import write_video
from tests.training.test_evidence import MODEL, PROCESSOR, TEXTS, found, groups, settings


def test_masking_finds_the_blocks_that_the_answer_needs(tmp_path: Path) -> None:
    """Each block's fall is that of a pass in which it alone is hidden; the worth is its share of the largest."""
    args = settings(tmp_path, evidence_from="masking", evidence_blocks=4, temperature=1.0)
    [record] = ring_records(1, seed=0)
    texts = [f"<think>{record.trace}</think><answer>{record.solution}</answer>", TEXTS[1]]
    [group] = groups(1, texts, [1.0, 0.0])
    [one] = SOURCES["masking"](args, PROCESSOR, MODEL, [group])
    assert one.evidence is not None
    worth = one.evidence[group.prompt.places].view(4, 2, 4, 2)
    assert (worth == worth[:, :1, :, :1]).all()
    blocks = worth[:, 0, :, 0]
    assert blocks.max() == 1
    [box] = record.boxes
    best = int(blocks.flatten().argmax())
    assert (best // 4, best % 4) == (int(box.y0) // 16, int(box.x0) // 16)  # a block is a cell of the board
    first, rest = prompt_and_rest(group.prompt, len(group.prompt.input_ids) - 1)
    written, span = torch.cat([rest, group.ids[0]]), answer_tokens(texts, group.ids, PROCESSOR, "strict", True)[0]
    [at] = span[: len(group.ids[0])].nonzero()[:, 0].tolist()
    logps = []
    for number in (best, (best + 5) % 16):
        hidden = torch.zeros(8, 8, dtype=torch.bool)
        hidden[number // 4 * 2 : number // 4 * 2 + 2, number % 4 * 2 : number % 4 * 2 + 2] = True
        bias = torch.zeros(2, len(first.input_ids))
        bias[1, group.prompt.places[hidden.flatten()]] = float("-inf")
        [output] = forward_groups(MODEL, [first], [[written, written]], layers=(), look_bias=[bias])
        logps.append(output.logps[:, 1 + at].detach())
    falls = [float(before - after) for before, after in logps]
    assert falls[0] > 0.1
    other = (best + 5) % 16
    assert float(blocks.flatten()[other]) == pytest.approx(max(falls[1], 0) / falls[0], abs=1e-4)


def test_masking_knows_nothing_of_text_or_of_answers_that_cannot_be_read(tmp_path: Path) -> None:
    [one] = found(tmp_path, ["<think>row 1", "<think>row 2"], evidence_from="masking")
    assert one.evidence is None


# --- the cut ------------------------------------------------------------------------------------------------------


def numbered(tiles: list[Tile], side: int) -> list[int]:
    """The number of each token's block, −1 for none."""
    number = torch.full((sum(tile.tokens for tile in tiles),), -1)
    for block, mask in enumerate(blocks(tiles, side)):
        assert (number[torch.from_numpy(mask)] == -1).all(), "a token is in one block"
        number[torch.from_numpy(mask)] = block
    return number.tolist()


def test_padding_is_in_no_block_and_every_picture_has_its_own() -> None:
    padded = [Tile(n, 4, 4, centred(1.0, 2.0)) for n in range(2)]
    one = [*[-1] * 4, 0, 0, 1, 1, 2, 2, 3, 3, *[-1] * 4]
    assert numbered(padded, 2) == one + [block if block < 0 else block + 4 for block in one]
    tall = [Tile(n, 4, 4, centred(2.0, 1.0)) for n in range(2)]
    assert numbered(tall, 2)[:16] == [-1, 0, 1, -1, -1, 0, 1, -1, -1, 2, 3, -1, -1, 2, 3, -1]
    assert sorted(set(numbered(tall, 2))) == list(range(-1, 8))


def test_on_a_larger_canvas_a_token_across_the_edge_is_in_the_last_block() -> None:
    """Of columns that end at 0.4, 0.8, 1.2 and 1.6 of the picture, the third shows some of it and the fourth nothing."""
    assert numbered([Tile(0, 1, 4, (0.0, 0.0, 1.6, 1.0), newline=True), Tile(1, 1, 2)], 2) == [0, 1, 1, -1, -1, 2, 3]


def test_a_strip_that_is_thinner_than_a_token_is_seen_by_those_it_crosses() -> None:
    assert numbered([Tile(0, 2, 2, centred(1.0, 50.0))], 1) == [0, 0, 0, 0]
    assert numbered([Tile(0, 3, 1, centred(1.0, 50.0))], 1) == [-1, 0, -1]


def test_a_video_has_one_block_for_a_place_in_all_its_pictures(tmp_path: Path) -> None:
    """Two videos and an image: the image's blocks are its own, and so are those of each video."""
    paths = [write_video(tmp_path / f"{n}.mp4", frames=20, size=(64, 64)) for n in range(2)]
    [ring] = ring_records(1, seed=0)
    record = Record("v", "<image><video><video>?", "", images=ring.images, videos=tuple(paths))
    prompt = prepare_prompt(MODEL, encode_prompt(PROCESSOR, record, think=True, template="plain", num_frames=6))
    assert [tile.medium for tile in prompt.tiles] == [0, 1, 1, 1, 2, 2, 2]
    found = numbered(list(prompt.tiles), 2)
    cells = prompt.tiles[0].tokens
    assert sorted(set(found[:cells])) == [0, 1, 2, 3]
    for first, expected in ((1, [4, 5, 6, 7]), (4, [8, 9, 10, 11])):
        pictures = [found[cells * n : cells * (n + 1)] for n in range(first, first + 3)]
        assert pictures[0] == pictures[1] == pictures[2]
        assert sorted(set(pictures[0])) == expected


# --- the passes ---------------------------------------------------------------------------------------------------


def asked(n: int, others: int, longest: int) -> list[Any]:
    """Groups with a right answer and `others` long wrong ones."""
    [record] = ring_records(1, seed=0)
    right = f"<think>{record.trace}</think><answer>{record.solution}</answer>"
    wrong = [f"<think>{'row 1 ' * (longest - i)}</think><answer>red</answer>" for i in range(others)]
    found = groups(n, [right, *wrong], [1.0, 0.0])
    return [replace(one, reward=torch.tensor([1.0, *[0.0] * others])) for one in found]


@pytest.mark.parametrize("repeated", [False, True])
def test_the_result_is_the_same_however_many_copies_a_pass_holds(
    repeated: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = settings(tmp_path, evidence_from="masking", evidence_blocks=4, temperature=0.9)
    if repeated:
        monkeypatch.setattr(
            evidence_by_masking, "forward_groups", lambda *words, **more: forward_groups(*words, repeated=True, **more)
        )
    trials = [evidence_by_masking._trial(args, PROCESSOR, one, repeated) for one in asked(2, 1, 3)]
    with torch.no_grad():
        whole = answer_logps(MODEL, [replace(trial, copies=17) for trial in trials], args)
        assert [len(one) for one in whole] == [17, 17]
        assert float((whole[0][:1] - whole[0][1:]).max()) > 0.1
        for copies in ((1, 1), (2, 5), (4, 17), (16, 3)):
            parts = answer_logps(MODEL, [replace(one, copies=n) for one, n in zip(trials, copies, strict=True)], args)
            for part, expected in zip(parts, whole, strict=True):
                torch.testing.assert_close(part, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("repeated", [False, True])
@pytest.mark.parametrize(("others", "longest"), [(1, 3), (1, 40), (4, 9), (30, 50)])
def test_no_pass_holds_more_tokens_than_the_one_that_trains(
    others: int, longest: int, repeated: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args, batch = settings(tmp_path, evidence_from="masking", evidence_blocks=4), asked(2, others, longest)
    passes: list[int] = []
    copies: list[int] = []

    def tokens(prompts: Any, completions: Any) -> int:
        each = [(len(p.input_ids), len(y)) for p, ys in zip(prompts, completions, strict=True) for y in ys]
        if repeated:
            return len(each) * max(prompt + own for prompt, own in each)
        return sum(len(p.input_ids) for p in prompts) + sum(own for _, own in each)

    def counted(model: Any, prompts: list[Prompt], completions: Any, **more: Any) -> Any:
        passes.append(tokens(prompts, completions))
        copies.append(sum(map(len, completions)))
        return forward_groups(model, prompts, completions, **more)

    monkeypatch.setattr(evidence_by_masking, "forward_groups", counted)
    monkeypatch.setattr(evidence_by_masking, "why_repeated", lambda base: "so" if repeated else None)
    from_masking(args, PROCESSOR, MODEL, batch)
    assert sum(copies) == 2 * 17
    assert max(passes) <= tokens([one.prompt for one in batch], [one.ids for one in batch])
    if others == 30:
        assert len(passes) == 1, "what fits goes into one pass"


def test_without_blocks_or_without_a_readable_answer_no_pass_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evidence_by_masking, "forward_groups", None)
    args: RALConfig = settings(tmp_path, evidence_from="masking")
    unread = groups(1, ["<think>row 1", "<think>row 2"], [1.0, 0.3])
    [text] = groups(1, TEXTS, [1.0, 0.3])
    words = replace(text.prompt, grids=(), places=text.prompt.places[:0])
    for one in (*unread, replace(text, prompt=words)):
        [targets] = from_masking(args, PROCESSOR, MODEL, [one])
        assert targets.evidence is None
        assert targets.answer is not None
