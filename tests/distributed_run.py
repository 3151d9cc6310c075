"""One process of a run whose global batch is the same on any number of processes; started by `test_distributed`.

torchrun --nproc_per_node N -m tests.distributed_run FOLDER STEPS
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from ral.config import RALConfig
from ral.data.record import Record
from ral.testbed import load_start
from ral.testbed.rings import ring_records
from ral.trainer import RALTrainer

G, PROMPTS = 4, 4


def lengths(completions: list[str], **columns: object) -> list[float]:
    """Signal in nearly every group."""
    return [float(sum(map(ord, text)) % 7) for text in completions]


def main() -> None:
    folder, steps = Path(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    model, processor = load_start()
    rings = ring_records(10, seed=0)
    told = [Record(f"text {i}", f"what colour is number {i}?", "red") for i in range(6)]
    args = RALConfig(
        output_dir=str(folder),
        use_cpu=True,
        template="plain",
        num_generations=G,
        per_device_train_batch_size=PROMPTS * G // int(os.environ.get("WORLD_SIZE", "1")),
        max_steps=steps,
        max_completion_length=10,
        temperature=1.3,
        learning_rate=1e-4,
        attention_anchor="explore",
        attention_coef=5.0,
        beta=0.04,
        gradient_norm_steps=1,
        logging_steps=1,
        save_strategy="no",
        disable_tqdm=True,
        ddp_find_unused_parameters=False,
    )
    mixed = [record for pair in zip(rings, told, strict=False) for record in pair] + rings[6:]
    run = RALTrainer(model, args, train_dataset=mixed, processing_class=processor, reward_funcs=lengths)
    run.train()
    if run.is_world_process_zero():
        save_file({name: p.detach().contiguous() for name, p in model.named_parameters()}, folder / "end.safetensors")


if __name__ == "__main__":
    main()
