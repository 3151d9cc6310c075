"""Image, video and text in one batch: each record gets what it gets alone, at any batch size."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from ral.attention import Prompt, prepare_prompt
from ral.config import RALConfig
from ral.data.prompt import encode_prompt
from ral.data.record import Record
from ral.rollouts.sampling import Sampling, eos_token_ids, sample
from ral.testbed import load_start
from ral.testbed.episodes import episode_records, told_records
from ral.testbed.rings import ring_records
from ral.training.trainer import RALTrainer

G = 2
MODEL, PROCESSOR = load_start()
MEDIA = {"template": "plain", "fps": 1.0, "max_pixels": 32 * 32}


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    """Twelve: images, videos of two lengths, text, and image beside video, in no order."""
    pytest.importorskip("minigrid")
    cache = tmp_path_factory.mktemp("episodes")
    short, long = (episode_records(2, 0, picks=[picks], cache=cache) for picks in (2, 3))
    images, told = ring_records(4, 0), told_records(2, 0)
    both = [
        Record(f"both-{i}", "<image> what colour was picked up last? <video>", "red", images=i_.images, videos=v.videos)
        for i, (i_, v) in enumerate(zip(ring_records(2, 9), (short[0], long[1]), strict=True))
    ]
    renamed = [Record(f"long-{i}", r.problem, r.solution, videos=r.videos) for i, r in enumerate(long)]
    return [
        images[0],
        short[0],
        told[0],
        both[0],
        renamed[0],
        images[1],
        told[1],
        renamed[1],
        *images[2:],
        both[1],
        short[1],
    ]


def spread(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    """Signal in every group, whatever is said."""
    return [float(i) for i in range(len(completions))]


def trained(folder: Path, records: list[Record], size: int, anchor: str, accumulation: int) -> dict[str, Tensor]:
    args = RALConfig(
        output_dir=str(folder), use_cpu=True, num_generations=G, per_device_train_batch_size=size * G,
        gradient_accumulation_steps=accumulation, max_steps=2, max_completion_length=10, learning_rate=1e-3,
        lr_scheduler_type="constant", attention_anchor=anchor, attention_coef=5.0, save_strategy="no", disable_tqdm=True,
        optim="sgd", max_grad_norm=0.0, temperature=1.5, beta=0.04, **MEDIA,
    )  # fmt: skip
    run = RALTrainer(copy.deepcopy(MODEL), args, train_dataset=records, processing_class=PROCESSOR, reward_funcs=spread)
    run.train()
    return {name: (p.detach() - MODEL.get_parameter(name)) for name, p in run.model.named_parameters()}


@pytest.mark.parametrize("anchor", ["old", "group"])
def test_a_step_on_mixed_records_is_the_same_at_every_batch_size(
    anchor: str, records: list[Record], tmp_path: Path
) -> None:
    """Twelve records a step, in micro-batches of one to four: two updates move the weights by the same."""
    alone = trained(tmp_path / "1", records, 1, anchor, 12)
    moved = torch.cat([change.flatten() for change in alone.values()]).norm()
    assert moved > 1e-4
    for size in (2, 3, 4):
        together = trained(tmp_path / str(size), records, size, anchor, 12 // size)
        difference = torch.cat([(together[name] - alone[name]).flatten() for name in alone]).norm()
        assert difference < 1e-3 * moved, size


def prepared(record: Record) -> Prompt:
    inputs = encode_prompt(PROCESSOR, record, think=True, **MEDIA)
    return prepare_prompt(MODEL, inputs)


def test_drawn_completions_do_not_depend_on_how_far_their_prompt_is_padded(records: list[Record]) -> None:
    sampling = Sampling(16, eos_token_ids(MODEL), temperature=1.2)
    wide = Record("wide", "what is this? <image>", "", images=(Image.new("RGB", (128, 128), "red"),))
    large = prepare_prompt(MODEL, encode_prompt(PROCESSOR, wide, think=True, template="plain"))
    for record in records[:5]:
        prompt = prepared(record)
        assert len(large.input_ids) > 2 * len(prompt.input_ids)
        found = []
        for companion in (prompt, prepared(records[2]), large):
            group, _ = sample(
                MODEL, [prompt, companion], 4, sampling, [torch.Generator().manual_seed(i) for i in range(2)]
            )
            found.append([completion.ids.tolist() for completion in group])
        assert found[0] == found[1] == found[2], record.id
        assert len({tuple(ids) for ids in found[0]}) > 1
