"""Positions as Qwen2-VL and Qwen2.5-VL were trained, beside transformers 4.49's own code: `python -m experiments.positions PEER`.

That version's `get_rope_index` is taken out of its files, so it is not installed:

    pip download --no-deps transformers==4.49.0 && unzip -q transformers-4.49.0-*.whl -d PEER

Random mixes of images and videos, with text between them or none, grids up to 64 by 64 tokens and videos of hours, go to it,
to `ral.families`, and to the oracle of the tests (`tests/families/trained.py`).
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from tests.families.trained import trained_positions
from torch import Tensor

from experiments.differential import peer
from ral.families.qwen_vl import Qwen2_5VL, Qwen2VL

FAMILIES = {"qwen2_vl": Qwen2VL, "qwen2_5_vl": Qwen2_5VL}
#: Ids of tokens, as the checkpoints have them.
VISION_START, IMAGE, VIDEO, WORD = 151652, 151655, 151656, 7
MERGE = 2


def config(kind: str, tokens_per_second: int) -> Any:
    vision = SimpleNamespace(spatial_merge_size=MERGE, tokens_per_second=tokens_per_second)
    ids = {"image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": VISION_START}
    return SimpleNamespace(model_type=kind, vision_config=vision, **ids)


def mix(draw: random.Random, kind: str) -> dict[str, Any]:
    """A prompt of up to six media. A block of the checkpoint's own begins with a token of text, so none touches another."""
    ids: list[int] = []
    grids: dict[int, list[tuple[int, int, int]]] = {IMAGE: [], VIDEO: []}
    seconds = []
    for _ in range(draw.randint(1, 6)):
        token = draw.choice((IMAGE, VIDEO))
        side = draw.choice((2, 5, 12, 64))
        h, w = draw.randint(1, side), draw.randint(1, side)
        t = 1 if token == IMAGE else draw.randint(1, max(1, min(400, 4000 // (h * w))))
        ids += [WORD] * draw.choice((0, 0, 1, 7, 300)) + [VISION_START] + [token] * (t * h * w)
        grids[token].append((t, MERGE * h, MERGE * w))
        if token == VIDEO:
            seconds.append(draw.choice((1.0, 0.5, 2 / 24, 2 / 1.87, 0.7, 1 / 3, draw.uniform(0.01, 60))))
    ids += [WORD] * draw.choice((0, 1, 40))
    inputs: dict[str, Any] = {"input_ids": torch.tensor([ids])}
    for name, token in (("image_grid_thw", IMAGE), ("video_grid_thw", VIDEO)):
        if grids[token]:
            inputs[name] = torch.tensor(grids[token])
    if seconds and kind == "qwen2_5_vl" and draw.random() < 0.9:
        inputs["second_per_grid_ts"] = torch.tensor(seconds)
    inputs["mm_token_type_ids"] = (inputs["input_ids"] == IMAGE).int() + 2 * (inputs["input_ids"] == VIDEO).int()
    return inputs


def published(folder: Path, kind: str) -> Any:
    """`get_rope_index` of transformers 4.49: of a configuration and inputs, `[3, B, T]`."""
    file = folder / "transformers" / "models" / kind / f"modeling_{kind}.py"
    function = peer(file, torch=torch)["get_rope_index"]

    def positions(config: Any, inputs: dict[str, Any]) -> Tensor:
        given = {name: value for name, value in inputs.items() if name != "mm_token_type_ids"}
        found: Tensor = function(SimpleNamespace(config=config), **given)[0]
        return found

    return positions


def compare(folder: Path, kind: str, count: int, seed: int) -> dict[str, int]:
    """Over `count` prompts: tokens, and prompts whose positions differ, for the package and for the oracle."""
    draw, theirs = random.Random(seed), published(folder, kind)
    found = {"prompts": count, "tokens": 0, "package": 0, "oracle": 0}
    for _ in range(count):
        settings, inputs = config(kind, draw.choice((2, 2, 1, 4, 25))), mix(draw, kind)
        right = theirs(settings, inputs)
        found["tokens"] += right.shape[-1]
        found["package"] += not torch.equal(FAMILIES[kind]().batch_positions(settings, inputs), right)
        found["oracle"] += not torch.equal(trained_positions(settings, inputs["input_ids"][0], inputs), right)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where transformers 4.49's wheel was unpacked")
    parser.add_argument("--n", type=int, default=2000, help="prompts of each family")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for kind in FAMILIES:
        found = compare(args.folder, kind, args.n, args.seed)
        print(f"{kind}: {found['prompts']} prompts, {found['tokens']} tokens; different: "
              f"package {found['package']}, oracle of the tests {found['oracle']}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
