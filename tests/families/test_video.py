"""Videos of the families that read them, from real files through real processors, and plain refusals of the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from experiments.families.check import TOLERANCES, differences
from experiments.families.processors import PROCESSORS, model_for
from PIL import Image
from transformers import PreTrainedModel

from ral.attention import forward_groups, prepare_prompt
from ral.data.prompt import encode_prompt
from ral.data.record import Box, Record
from ral.data.shown_media import shown_media
from ral.errors import DataError
from ral.evaluate.looking import look
from ral.training.evidence import evidence_tokens

#: Those with video beside Qwen's, and frames in one picture.
KINDS = {"internvl": 1, "smolvlm": 1, "llava_onevision": 1, "gemma4": 1, "glm4v": 2}


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two videos of two seconds, of different shapes."""
    folder, made = tmp_path_factory.mktemp("clips"), []
    for number, (width, height) in enumerate(((96, 64), (64, 96))):
        made.append(folder / f"{number}.mp4")
        generator = np.random.default_rng(number)
        with av.open(str(made[-1]), "w") as container:
            stream: Any = container.add_stream("mpeg4", rate=4)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            for _ in range(8):
                pixels = generator.integers(0, 255, (height, width, 3), dtype=np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            container.mux(stream.encode())
    return made[0], made[1]


def built(kind: str) -> tuple[Any, PreTrainedModel]:
    if kind == "smolvlm":
        pytest.importorskip("num2words")
    made = PROCESSORS[kind]()
    return made[0], model_for(kind, made)


@pytest.mark.parametrize("kind", KINDS)
def test_two_videos_are_computed_as_the_model_does_and_every_frame_has_its_map(
    kind: str, clips: tuple[Path, Path]
) -> None:
    (processor, model), each = built(kind), KINDS[kind]
    box = Box(2.0, 2.0, 60.0, 90.0, medium=1)
    record = Record("0", "<video>then<video>what?", "a", videos=clips, boxes=(box,))
    inputs = encode_prompt(processor, record, think=False, template="plain", num_frames=4)
    prompt, shows = prepare_prompt(model, inputs), shown_media(record, processor, 4)
    assert len(shows.pictures) == 8 // each
    assert [tile.picture for tile in prompt.tiles if tile.columns] == list(range(8 // each))
    assert [tile.medium for tile in prompt.tiles if tile.columns] == [0] * (4 // each) + [1] * (4 // each)
    assert sum(tile.tokens for tile in prompt.tiles) == len(prompt.places)
    found = differences(model, inputs)
    assert all(found[name] <= limit for name, limit in TOLERANCES.items()), found
    (seen,) = look(model, [prompt], [torch.tensor([5, 6])], [1])
    assert len(seen.at(3).maps) == 8 // each
    inside = evidence_tokens(record, prompt, processor, 4)
    assert inside is not None
    second = torch.cat([torch.full((tile.tokens,), tile.picture >= 4 // each) for tile in prompt.tiles])
    assert not inside[prompt.places][~second].any(), "the first video has no box"
    assert inside[prompt.places][second].sum() > second.sum() / 2


def test_an_image_prompt_and_a_video_prompt_share_a_row(clips: tuple[Path, Path]) -> None:
    """GLM writes both with one token, so that the model takes the features of a row in the order of its prompts."""
    processor, model = built("glm4v")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8))
    records = [Record("0", "<video>what?", "a", videos=clips[:1]), Record("1", "<image>what?", "a", images=(image,))]
    prompts = [
        prepare_prompt(model, encode_prompt(processor, record, think=False, template="plain", num_frames=4))
        for record in records
    ]
    ys = [[torch.tensor([5, 6, 7])], [torch.tensor([8, 9])]]
    for together, prompt, y in zip(forward_groups(model, prompts, ys), prompts, ys, strict=True):
        (alone,) = forward_groups(model, [prompt], [y])
        torch.testing.assert_close(together.logps, alone.logps, atol=1e-5, rtol=0)
        torch.testing.assert_close(together.attention, alone.attention, atol=1e-6, rtol=0)


def test_what_is_not_read_is_refused_by_name(clips: tuple[Path, Path]) -> None:
    image = Image.new("RGB", (40, 30))
    both = Record("0", "<image><video>?", "a", images=(image,), videos=clips[:1], origin="row 3")
    for kind, name in (("internvl", "InternVLProcessor"), ("glm4v", "Glm4vProcessor")):
        with pytest.raises(
            DataError, match=f"row 3: has images and videos; a model with a {name} reads frames as images"
        ):
            encode_prompt(built(kind)[0], both, think=False, template="plain")
    clip = Record("0", "<video>?", "a", videos=clips[:1], origin="row 7")
    for kind, name in (("idefics3", "Idefics3Processor"), ("llava_next", "LlavaNextProcessor")):
        with pytest.raises(DataError, match=f"row 7: has a video, which models with a {name} are not shown"):
            encode_prompt(built(kind)[0], clip, think=False, template="plain")
