"""The folder of an evaluation: the right to write into it, and the items of an interrupted evaluation."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from ral.data.record import Record
from ral.errors import DataError
from ral.evaluate.items import Item
from ral.evaluate.settings import EvalSettings
from ral.files import atomic_write_text, json_line, read_jsonl
from ral.runs.names import EVALUATION, ITEMS, MEDIA, SUMMARY


def identity(model: nn.Module, task: str, records: Sequence[Record], settings: EvalSettings) -> dict[str, Any]:
    """The facts that must agree before an evaluation is continued."""
    data = hashlib.blake2b(digest_size=8)
    for record in records:
        data.update(repr((record.id, record.problem, record.options, record.solution)).encode())
    return {"task": task, "data": data.hexdigest(), "weights": _fingerprint(model), **asdict(settings)}


def _fingerprint(model: nn.Module) -> str:
    """A digest of about 64 values of every parameter: another checkpoint in the same place is noticed, in no time."""
    digest = hashlib.blake2b(digest_size=8)
    for name, parameter in model.named_parameters():
        values = parameter.detach().flatten()
        digest.update(name.encode())
        digest.update(values[:: max(1, len(values) // 64)].float().cpu().numpy().tobytes())
    return digest.hexdigest()


def claim(output: Path, identity: dict[str, Any]) -> None:
    """Write `identity` into a new folder. Raises DataError for a folder that holds anything else."""
    file = output / EVALUATION
    if not file.is_file():
        if (output / ITEMS).exists() or (output / SUMMARY).exists():
            raise DataError(f"{output}: holds items but no {EVALUATION}; choose another folder or give --overwrite")
        atomic_write_text(file, json.dumps(identity, indent=2) + "\n")
        return
    try:
        held = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{file}: not valid JSON ({error}); give --overwrite to evaluate anew") from error
    differing = [f"{k} was {held.get(k)!r}, now {now!r}" for k, now in identity.items() if held.get(k) != now]
    if differing:
        raise DataError(
            f"{output}: holds another evaluation ({'; '.join(differing)}); choose another folder or give --overwrite"
        )


def remove(output: Path) -> None:
    """Delete the evaluation that a folder holds, and nothing else in it."""
    for name in (SUMMARY, ITEMS, EVALUATION):
        (output / name).unlink(missing_ok=True)
    shutil.rmtree(output / MEDIA, ignore_errors=True)


def read_begun(file: Path) -> dict[str, Item]:
    """The items that are there, by id; a last line that was cut off is removed from the file. Raises DataError."""
    if not file.exists():
        return {}
    rows = list(read_jsonl(file))
    atomic_write_text(file, "".join(map(json_line, rows)))
    items = [Item.from_json(row, f"{file}:{number}") for number, row in enumerate(rows, start=1)]
    return {item.id: item for item in items}
