"""Stores a checkpoint at half precision, to be shipped: `python -m experiments.testbed.half_precision MODEL OUTPUT`.

The weights are rounded to float16 in the file; the configuration keeps the type that they are loaded and computed in.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

WEIGHTS = "model.safetensors"
#: What of a run's last model is not a part of the model.
_LEFT_OUT = shutil.ignore_patterns(WEIGHTS, "training_args.*")


def to_half_precision(model: Path, output: Path) -> None:
    """Copy the checkpoint folder `model` to `output`, which must not exist, with its weights in float16."""
    shutil.copytree(model, output, ignore=_LEFT_OUT)
    weights = {name: weight.half() for name, weight in load_file(model / WEIGHTS).items()}
    save_file(weights, output / WEIGHTS, metadata={"format": "pt"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="checkpoint folder")
    parser.add_argument("output", type=Path, help="new folder")
    args = parser.parse_args()
    to_half_precision(args.model, args.output)


if __name__ == "__main__":
    main()
