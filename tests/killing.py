"""A recipe trained in real processes that can be killed at any moment: used by the suite and by `experiments`.

Processes are forked from a server that has the package imported, so that an attempt costs a second and not ten.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ral.files import read_jsonl
from ral.runs.checkpoints import MANIFEST, checkpoints, fault

#: Metrics that differ between two runs of the same updates.
TIMES = {"step_seconds", "tokens_per_second", "memory_peak_gib"}

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["ral.training.launch"])

SETTINGS: dict[str, Any] = {
    "model": "start",
    "template": "plain",
    "use_cpu": True,
    "disable_tqdm": True,
    "num_generations": 4,
    "per_device_train_batch_size": 4,
    "max_completion_length": 8,
    "temperature": 1.3,
    "learning_rate": 1e-3,
    "gradient_norm_steps": 2,
    "max_steps": 8,
    "save_steps": 2,
    "seed": 3,
}
LORA = {"r": 4, "target_modules": ["q_proj", "k_proj", "v_proj"]}


@dataclass(frozen=True)
class Case:
    """What is trained: `SETTINGS` with these changes, by this many processes."""

    name: str
    processes: int = 1
    changes: Mapping[str, Any] = field(default_factory=dict)

    def write(self, folder: Path) -> Path:
        """The recipe, with the data it trains on beside it."""
        from ral.testbed.rings import ring_records

        folder.mkdir(parents=True, exist_ok=True)
        rows = []
        for i, record in enumerate(ring_records(8, seed=0)):
            record.images[0].save(folder / f"{i}.png")  # type: ignore[union-attr]
            rows.append({"problem": record.problem, "solution": record.solution, "image": f"{i}.png"})
        (folder / "data.json").write_text(json.dumps(rows))
        path = folder / f"{self.name}.yaml"
        path.write_text(yaml.safe_dump({**SETTINGS, "data": str(folder / "data.json"), **self.changes}))
        return path


class Attempt:
    """The processes of one `ral train`; goes on where `output` holds a finished checkpoint, else starts (again).

    Args:
        largest_file: bytes that no file may exceed: what a full disk does to a save.
    """

    def __init__(self, recipe: Path, output: Path, processes: int = 1, largest_file: int | None = None):
        self.log = output.with_suffix(".log")
        self.log.unlink(missing_ok=True)
        port = _free_port()
        self.started = time.monotonic()
        self.processes = [
            _context.Process(target=_train, args=(recipe, output, self.log, rank, processes, port, largest_file))
            for rank in range(processes)
        ]
        for process in self.processes:
            process.start()

    @property
    def running(self) -> bool:
        return any(process.is_alive() for process in self.processes)

    def wait(self, seconds: float = 600) -> list[int | None]:
        """Exit codes, once all have ended; one that fails takes the others with it, as a launcher does."""
        end = time.monotonic() + seconds
        while self.running and time.monotonic() < end:
            if any(process.exitcode for process in self.processes):
                return self._end()
            time.sleep(0.05)
        return self._end()

    def kill(self, victim: int) -> list[int | None]:
        """SIGKILL to one process; the others have two seconds to notice."""
        self.processes[victim].kill()
        self.processes[victim].join()
        return self._end()

    def interrupt(self, victim: int) -> list[int | None]:
        """SIGTERM to one process, which all of them are to follow."""
        self.processes[victim].terminate()
        return self.wait()

    def _end(self) -> list[int | None]:
        for process in self.processes:
            process.join(timeout=2)
            if process.is_alive():
                process.kill()
                process.join()
        return [process.exitcode for process in self.processes]


def _train(
    recipe: Path, output: Path, log: Path, rank: int, processes: int, port: int, largest_file: int | None
) -> None:
    import torch.distributed as dist

    from ral.recipe import load_recipe
    from ral.runs.checkpoints import last_checkpoint
    from ral.training import launch

    with open(log, "ab", buffering=0) as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    if processes > 1:
        names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
        os.environ.update(zip(names, map(str, (rank, rank, processes, processes, "127.0.0.1", port)), strict=True))
    resume = last_checkpoint(output) is not None
    task = load_recipe(recipe, ["--output_dir", str(output)])
    if task.args.fsdp:
        from experiments.processes import Reinforcement

        launch.RALTrainer = Reinforcement  # type: ignore[misc]  # which shards on CPU, too
    launch.train(task, resume=resume, overwrite=not resume)
    if dist.is_initialized():
        raise RuntimeError("the run has ended and left its process group up")


def broken_files(output: Path) -> list[str]:
    """What a reader of the run folder would stumble over; nothing, at whatever moment the run was killed."""
    found = [
        f"{path.name}: {problem}"
        for path in checkpoints(output)
        if (path / MANIFEST).exists() and (problem := fault(path)) is not None
    ]
    for name in ("metrics.jsonl", "samples.jsonl"):
        try:
            list(read_jsonl(output / name))  # a last line that was cut off is left out by every reader
        except FileNotFoundError:
            pass
        except ValueError as error:
            found.append(str(error))
    if (output / "config.yaml").exists() and "model" not in yaml.safe_load((output / "config.yaml").read_text()):
        found.append("config.yaml")
    return found


def flip_bit(path: Path, place: int | None = None) -> None:
    """What a failing disk does: one bit of the byte at `place`, in the middle if not given."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if place is None else place] ^= 1
    path.write_bytes(content)


def result(output: Path) -> dict[str, Any]:
    """What two runs of the same updates have in common: the weights' bytes, the metrics without times, the samples."""
    [weights] = (output / "final").glob("*.safetensors")
    return {
        "weights": weights.read_bytes(),
        "metrics": [{k: v for k, v in row.items() if k not in TIMES} for row in read_jsonl(output / "metrics.jsonl")],
        "samples": (output / "samples.jsonl").read_text(),
        "left": sorted(path.name for path in output.iterdir() if path.name.startswith(".")),
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
