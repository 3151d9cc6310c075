"""What a testbed checkpoint can do and where it looks: `python -m experiments.testbed.measure [MODEL]`."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor

from experiments.testbed.batch import Turn, encode_turns
from ral.data.record import Record
from ral.testbed import start_checkpoint
from ral.testbed.rings import ring_records

FORMAT = re.compile(r"<think>row \d col \d</think><answer>(\w+)</answer>")
_NEW_TOKENS = 16
#: The tokens whose rows are looked at, by the token that each row predicts.
_PREDICTING = {"row": "row", "col": " col", "answer": "<answer>"}


def complete(
    model: Any, processor: Any, records: list[Record], *, think: bool, samples: int = 0, temperature: float = 1.0
) -> list[list[str]]:
    """One greedy completion per record (`samples=0`) or `samples` drawn ones, as text without control tokens."""
    inputs = encode_turns(processor, [Turn(record, think) for record in records], "left")
    how = (
        {"do_sample": True, "temperature": temperature, "top_k": 0, "num_return_sequences": samples}
        if samples
        else {"do_sample": False}
    )
    out = model.generate(**inputs, max_new_tokens=_NEW_TOKENS, **how)
    texts = processor.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    size = max(samples, 1)
    return [texts[i : i + size] for i in range(0, len(texts), size)]


def score(completions: list[list[str]], records: list[Record], *, think: bool) -> dict[str, float]:
    """Accuracy, share of valid formats, and share of groups that hold both right and wrong completions."""
    right, valid, mixed = [], [], []
    for group, record in zip(completions, records, strict=True):
        answers = [_answer(text, think) for text in group]
        hits = [answer == record.solution for answer in answers]
        right += hits
        valid += [answer is not None for answer in answers]
        mixed.append(any(hits) and not all(hits))
    return {
        "accuracy": sum(right) / len(right),
        "format": sum(valid) / len(valid),
        "mixed": sum(mixed) / len(mixed),
    }


@torch.no_grad()
def looking(model: Any, processor: Any, records: list[Record]) -> list[dict[str, dict[str, float]]]:
    """Per layer and predicting row: where the head mean of the visual attention of the model's greedy completions lies.

    Rows are those that predict the place's two numbers and the answer. `mass` is the share of visual attention on
    tokens whose centre is in the target's box, `pointing` how often the largest weight is there, `visual` the share of
    all attention that falls on the image. `model` must have been loaded with `attn_implementation="eager"`.
    Completions in another format are left out.
    """
    found: list[dict[str, list[tuple[float, float, float]]]] = []
    tokenizer = processor.tokenizer
    for record in records:
        [[completion]] = complete(model, processor, [record], think=True)
        if not FORMAT.fullmatch(completion):
            continue
        inputs = encode_turns(processor, [Turn(record, True, completion)], "right")
        ids = inputs["input_ids"][0]
        visual = (ids == model.config.image_token_id).nonzero()[:, 0]
        inside = _tokens_in_box(record, inputs["image_grid_thw"][0], processor.image_processor)
        attentions = model(**inputs, output_attentions=True).attentions  # per layer [1, H, T, T]
        found = found or [{name: [] for name in _PREDICTING} for _ in attentions]
        for layer, attention in zip(found, attentions, strict=True):
            for name, token in _PREDICTING.items():
                row = int((ids == tokenizer.encode(token)[0]).nonzero()[-1])
                weights = attention[0, :, row].mean(0)[visual]
                layer[name].append(
                    (
                        float(weights[inside].sum() / weights.sum()),
                        float(inside[weights.argmax()]),
                        float(weights.sum()),
                    )
                )
    return [
        {
            name: dict(zip(("mass", "pointing", "visual"), torch.tensor(rows).mean(0).tolist(), strict=True))
            for name, rows in layer.items()
        }
        for layer in found
    ]


def measure(model: Any, processor: Any, records: list[Record], samples: int = 8) -> dict[str, dict[str, float]]:
    """`score` of greedy and sampled completions (temperatures 0.9 and 1) in both formats."""
    report = {}
    for name, think in (("think", True), ("direct", False)):
        report[f"{name} greedy"] = score(complete(model, processor, records, think=think), records, think=think)
        for temperature in (0.9, 1.0):
            drawn = complete(model, processor, records, think=think, samples=samples, temperature=temperature)
            report[f"{name} T={temperature}"] = score(drawn, records, think=think)
    return report


def _answer(text: str, think: bool) -> str | None:
    if not think:
        return text if text.isalpha() else None
    match = FORMAT.fullmatch(text)
    return match[1] if match else None


def _tokens_in_box(record: Record, grid_thw: Tensor, image_processor: Any) -> Tensor:
    """Which visual tokens, in reading order, have their centre in the record's first box: bool `[h·w]`."""
    _, height, width = (grid_thw // image_processor.merge_size).tolist()
    token = image_processor.patch_size * image_processor.merge_size
    y = (torch.arange(height) + 0.5)[:, None] * token
    x = (torch.arange(width) + 0.5)[None, :] * token
    box = record.boxes[0]
    return ((x >= box.x0) & (x < box.x1) & (y >= box.y0) & (y < box.y1)).flatten()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", type=Path, default=start_checkpoint())
    parser.add_argument("-n", type=int, default=256, help="held-out images")
    parser.add_argument("--seed", type=int, default=1_000, help="of the images and the sampling")
    args = parser.parse_args()
    processor = AutoProcessor.from_pretrained(args.model)
    model = AutoModelForImageTextToText.from_pretrained(args.model, attn_implementation="eager").eval()
    records = ring_records(args.n, args.seed)
    torch.manual_seed(args.seed)
    for name, values in measure(model, processor, records).items():
        print(name, json.dumps(values))
    for index, layer in enumerate(looking(model, processor, records)):
        print(f"layer {index}", json.dumps(layer))


if __name__ == "__main__":
    main()
