"""Parity on videos of unequal length, beside images, and in the layouts that real processors write."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel, Qwen3VLProcessor, Qwen3VLVideoProcessor

from ral.attention import forward_group, forward_groups, prepare_prompt
from ral.data.prompt import encode_prompt
from ral.data.record import Record
from ral.testbed.episodes import encode_video, make_episode
from ral.testbed.model import CHAT_TEMPLATE, MERGE_SIZE, PATCH_SIZE, TEMPORAL_PATCH_SIZE, build_processor
from tests.attention.test_forward import assert_parity, assert_same_gradients, ordinary
from tests.tiny import VISION_KINDS, completions, prompt, tiny_model, twin


@pytest.mark.parametrize("kind", VISION_KINDS)
def test_videos_of_unequal_length_in_one_row_equal_eager_attention(kind: str) -> None:
    """Two videos of different frame counts and a record with image and video, in three groups; gradients, too."""
    model = tiny_model(kind)
    reference = twin(model)
    cases: list[tuple[str, int, tuple[int, ...]]] = [
        ("video", 2, (3, 5)),
        ("video", 5, (4, 1, 2)),
        ("mixed", 3, (2, 6)),
    ]
    inputs = [prompt(media, seed=i, model=kind, patches=n) for i, (media, n, _) in enumerate(cases)]
    ys = [completions(lengths, seed=i) for i, (_, _, lengths) in enumerate(cases)]
    outputs = forward_groups(model, [prepare_prompt(model, one) for one in inputs], ys)
    generator = torch.Generator().manual_seed(0)
    ours, theirs = torch.zeros(()), torch.zeros(())
    for out, one, group in zip(outputs, inputs, ys, strict=True):
        for g, (logps, rows) in enumerate(zip(*ordinary(reference, one, group), strict=True)):
            n, width = rows.shape
            torch.testing.assert_close(out.logps[g, :n], logps, atol=1e-5, rtol=0)
            torch.testing.assert_close(out.attention[g, :n, :width], rows, atol=1e-6, rtol=0)
            a, b = torch.randn(n, generator=generator), torch.randn(rows.shape, generator=generator)
            ours = ours + (out.logps[g, :n] * a).sum() + (out.attention[g, :n, :width] * b).sum()
            theirs = theirs + (logps * a).sum() + (rows * b).sum()
    assert_same_gradients(model, reference, ours, theirs, 1e-4)


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    """Episodes of four and of six seconds, alone and behind an image of another size."""
    pytest.importorskip("minigrid")
    folder, paths = tmp_path_factory.mktemp("videos"), []
    for picks in (2, 3):
        paths.append(folder / f"{picks}.mp4")
        paths[-1].write_bytes(encode_video(make_episode("t-0", [picks]).frames()))
    image = Image.linear_gradient("L").resize((48, 64)).convert("RGB")
    alone = [Record(path.stem, "what was picked up last? <video>", "", videos=(path,)) for path in paths]
    return [*alone, Record("both", "<image> where is this? <video>", "", images=(image,), videos=(paths[1],))]


def fitted(kind: str, processor: Any) -> PreTrainedModel:
    """A tiny model with the vocabulary and the visual tokens of `processor`."""
    token = processor.tokenizer.convert_tokens_to_ids
    names = {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>"}
    names |= {"vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>"}
    model = tiny_model(kind, vocab_size=len(processor.tokenizer))
    for name, text in names.items():
        setattr(model.config, name, token(text))
    return model


def as_qwen3(processor: Any) -> Qwen3VLProcessor:
    sizes = {"patch_size": PATCH_SIZE, "merge_size": MERGE_SIZE, "temporal_patch_size": TEMPORAL_PATCH_SIZE}
    video = Qwen3VLVideoProcessor(size={"shortest_edge": 32 * 32, "longest_edge": 16 * 128 * 128}, **sizes)
    return Qwen3VLProcessor(
        image_processor=processor.image_processor,
        tokenizer=processor.tokenizer,
        video_processor=video,
        chat_template=CHAT_TEMPLATE,
    )


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "qwen3_vl"])
def test_parity_on_what_real_processors_make_of_real_files(kind: str, records: list[Record]) -> None:
    processor: Any = build_processor()
    if kind == "qwen3_vl":
        processor = as_qwen3(processor)
    model = fitted(kind, processor)
    reference = twin(model)
    for record, patches in zip(records, (2, 3, 3), strict=True):
        inputs = encode_prompt(processor, record, think=True, template="plain", fps=1.0, max_pixels=32 * 32)
        assert inputs["video_grid_thw"].tolist() == [[patches, 8, 8]]
        ids = inputs["input_ids"][0]
        assert int((ids == model.config.video_token_id).sum()) == patches * 16
        blocks = patches + 1 if kind == "qwen3_vl" else 1  # Qwen3-VL keeps the template's pair around its own
        assert int((ids == model.config.vision_start_token_id).sum()) == blocks + len(record.images)
        text = processor.tokenizer.decode(ids)
        assert ("<0.5 seconds>" in text) == (kind == "qwen3_vl"), "the middle of the frames at 0 and 1 s"
        assert_parity(model, reference, inputs, completions())


def test_seconds_between_patches_reach_the_positions(records: list[Record]) -> None:
    """The same frames, said to be further apart, have temporal positions that are as much further apart."""
    processor = build_processor()
    model = fitted("qwen2_5_vl", processor)
    inputs = encode_prompt(processor, records[1], think=True, template="plain", fps=1.0)
    assert inputs["second_per_grid_ts"].tolist() == [2.0]

    def steps(seconds: float) -> Tensor:
        made = prepare_prompt(model, inputs | {"second_per_grid_ts": torch.tensor([seconds])})
        return made.position_ids[0][made.visual].unique().diff()

    per_second = model.config.vision_config.tokens_per_second
    assert steps(2.0).tolist() == [2 * per_second] * 2
    assert steps(4.0).tolist() == [4 * per_second] * 2
    assert forward_group(model, inputs, completions()).logps.isfinite().all()
