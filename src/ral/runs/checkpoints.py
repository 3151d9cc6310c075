"""Trustworthy checkpoints: a manifest, written last, holds the hash of every file.

checkpoint-N/manifest.json    {"processes": …, "resumable": …, "files": {name: {"bytes": …, "sha256": …}}}

A folder without a manifest is an interrupted save or removal. All files are on the disk before the manifest. So neither a killed
process nor a lost machine leaves a manifest whose files are missing.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ral.errors import RunError
from ral.files import atomic_write_text

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"


class CheckpointError(RunError):
    """A checkpoint that cannot be saved or resumed; the message says which, why, and what to do."""


def checkpoints(folder: Path | str) -> list[Path]:
    """Every `checkpoint-N` of a run folder, whole or not, oldest first."""
    found = [path for path in Path(folder).glob("checkpoint-*") if path.is_dir() and path.name[11:].isdecimal()]
    return sorted(found, key=lambda path: int(path.name[11:]))


def last_checkpoint(folder: Path | str) -> Path | None:
    """The newest checkpoint of a run folder whose save was finished, or None; its files are not read."""
    finished = [path for path in checkpoints(folder) if (path / MANIFEST).is_file()]
    return finished[-1] if finished else None


#: How torch, transformers and DeepSpeed name the files that one process writes, with its number.
_OWN = re.compile(r"(?:__|rng_state_|zero_pp_rank_)(\d+)")


#: The number of a process, and of all processes: its share of the files are those it wrote by itself, and of the main one all others.
Share = tuple[int, int]


def _is_in(name: str, share: Share) -> bool:
    process, processes = share
    own = _OWN.search(name)
    return process == (int(own[1]) % processes if own else 0)  # there may be fewer processes now


def digests(checkpoint: Path, share: Share = (0, 1)) -> dict[str, dict[str, Any]]:
    """Size and hash of each file in a process's share, by its name; brings the files to the disk."""
    files = {}
    for path in sorted(checkpoint.rglob("*")):
        name = path.relative_to(checkpoint).as_posix()
        if path.is_file() and path.name != MANIFEST and _is_in(name, share):
            with open(path, "rb") as stream:
                os.fsync(stream.fileno())
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            files[name] = {"bytes": path.stat().st_size, "sha256": digest}
    return files


def seal(
    checkpoint: Path, *, processes: int, resumable: bool = True, files: dict[str, dict[str, Any]] | None = None
) -> None:
    """Write the manifest of a checkpoint, after every process has written its files.

    Args:
        processes: number of training processes. resumable: whether the checkpoint holds more than weights.
        files: the `digests` of all processes together; computed here if not given.
    """
    files = digests(checkpoint) if files is None else dict(sorted(files.items()))
    manifest = {"processes": processes, "resumable": resumable, "files": files}
    atomic_write_text(checkpoint / MANIFEST, json.dumps(manifest, indent=1) + "\n")


def remove(checkpoint: Path) -> None:
    """Delete a checkpoint, its manifest first. So after a kill, the rest counts as unfinished, not as damaged."""
    (checkpoint / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(checkpoint, ignore_errors=True)


def keep_newest(folder: Path | str, limit: int, best: Path | None = None) -> None:
    """Remove what is unfinished, and of the finished checkpoints the oldest until `limit` are left.

    The newest and `best` always stay. Age counts from the manifest's writing, not by the step: a run that went on from an
    earlier checkpoint leaves damaged ones of later steps behind.
    """
    found = checkpoints(folder)
    finished = [path for path in found if (path / MANIFEST).is_file()]
    finished.sort(key=lambda path: (path / MANIFEST).stat().st_mtime_ns)
    protected = {*finished[-1:], *({best} if best in finished else ())}
    spare = [path for path in finished if path not in protected]
    unfinished = [path for path in found if path not in finished]
    for path in (*unfinished, *spare[: max(0, len(finished) - max(limit, len(protected)))]):
        remove(path)


def read_manifest(checkpoint: Path) -> dict[str, Any] | None:
    """The manifest of a checkpoint; None where it is missing or cannot be read."""
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
        return {"processes": manifest["processes"], "resumable": manifest["resumable"], "files": manifest["files"]}
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def fault(checkpoint: Path, share: Share = (0, 1)) -> str | None:
    """Why a run cannot go on from a checkpoint, in words; None for a good one. Reads and hashes each file in a process's share."""
    if not checkpoint.is_dir():
        return "missing: there is no such folder"
    if not (checkpoint / MANIFEST).is_file():
        return f"unfinished: {MANIFEST}, written last and removed first, is not there"
    manifest = read_manifest(checkpoint)
    if manifest is None:
        return f"damaged: {MANIFEST} cannot be read"
    for name, expected in manifest["files"].items():
        path = checkpoint / name
        if not path.is_file():
            return f"missing: {name} is not there any more"
        if (size := path.stat().st_size) != expected["bytes"]:
            return f"damaged: {name} has {size:,} bytes, not the {expected['bytes']:,} that were saved"
        if not _is_in(name, share):
            continue
        with open(path, "rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != expected["sha256"]:
                return f"damaged: {name} is not what was saved (its SHA-256 differs)"
    return None if manifest["resumable"] else "weights alone: it was saved with save_only_model"


def good_checkpoint(checkpoint: Path | str, fault: Callable[[Path], str | None] = fault) -> Path:
    """The checkpoint, if a run can go on from it, as `fault` finds. Raises CheckpointError."""
    checkpoint = Path(checkpoint)
    if (problem := fault(checkpoint)) is not None:
        raise CheckpointError(f"{checkpoint} cannot be used. {problem}.")
    return checkpoint


def newest_good_checkpoint(folder: Path | str, fault: Callable[[Path], str | None] = fault) -> Path:
    """The newest checkpoint of a run folder that a run can go on from, as `fault` finds; others are logged with their fault.

    Raises CheckpointError, which lists them, where there is none.
    """
    faults: list[str] = []
    for checkpoint in reversed(checkpoints(folder)):
        problem = fault(checkpoint)
        if problem is None:
            for passed_over in faults:
                logger.warning("%s; going on from %s", passed_over, checkpoint.name)
            return checkpoint
        faults.append(f"{checkpoint.name} is passed over ({problem})")
    raise CheckpointError(_no_good_one(folder, faults))


def _no_good_one(folder: Path | str, faults: Sequence[str]) -> str:
    seen = ": " + "; ".join(faults) if faults else ", as it has none"
    return (
        f"{folder}: no checkpoint to resume from{seen}. Copy a good one back, or start again without --resume "
        "(--overwrite, where the folder holds a run)."
    )
