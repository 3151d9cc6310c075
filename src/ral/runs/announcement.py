"""The first lines of a run: what its recipe alone says, before anything slow is imported."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ral.runs.names import REPORT

#: Bytes of files whose rows are counted; counting more would delay the first line.
_COUNTED = 256 << 20


def announcement(recipe: Path, settings: Mapping[str, Any], shipped: Mapping[str, Path]) -> str:
    """Where the run goes and where its live report is, then model, data and length as far as the recipe says them.

    Args:
        settings: keys and values of recipe and command line, not yet checked. shipped: folders of models by name.
    """
    folder = Path(str(settings["output_dir"]))
    model = str(settings.get("model"))
    size = parameters(shipped.get(model, Path(model)))
    parts = [f"loading {model}" + (f" ({short(size)} parameters)" if size else "")]
    if isinstance(adapter := settings.get("peft"), dict):
        parts[0] += f" under an adapter of rank {adapter.get('r', 8)}"
    for key, word in (("data", "on"), ("eval_data", "held out")):
        if (data := settings.get(key)) is not None:
            parts.append(f"{word} {', '.join(_sources(data))}")
    if (steps := settings.get("max_steps")) is not None:
        parts.append(f"{steps} steps")
    return f"{recipe} → {folder}; its live report: {folder / REPORT}\n{'; '.join(parts)}"


def _sources(data: Any) -> Iterator[str]:
    """The sources that `data` names, with their rows where these are quick to count."""
    if isinstance(data, Mapping) and "path" not in data:
        for one in data.values():
            yield from _sources(one)
        return
    for one in data if isinstance(data, list) else [data]:
        path = str(one.get("path")) if isinstance(one, Mapping) else str(one)
        rows = count_rows(Path(path))
        yield path if rows is None else f"{path} ({rows:,} rows)"


def count_rows(path: Path) -> int | None:
    """Rows of a file of JSON lines; None for anything else, and for a file too large to count at once."""
    if (
        not re.fullmatch(r"\.(jsonl|ndjson)", path.suffix.lower())
        or not path.is_file()
        or path.stat().st_size > _COUNTED
    ):
        return None
    with path.open("rb") as lines:
        return sum(bool(line.strip()) for line in lines)


def parameters(folder: Path) -> int | None:
    """Parameters of the model in a folder, by the headers of its safetensors files; None if there are none."""
    files = sorted(folder.glob("model*.safetensors")) if folder.is_dir() else []
    try:
        return sum(map(_parameters, files)) or None
    except (OSError, ValueError, KeyError, TypeError):  # a broken file is refused where it is loaded
        return None


def _parameters(file: Path) -> int:
    with file.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(min(size, 100 << 20)))  # the format allows no longer header
    return sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")


def short(number: int) -> str:
    """A number as one says it: 749.9k, 7.6B."""
    for size, unit in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if number >= size:
            return f"{number / size:.1f}{unit}"
    return str(number)
