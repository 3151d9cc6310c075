"""Reads data into `Record`s: files, folders, hub ids, data sets and rows in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ral.data.box_fields import BOX_SCALES
from ral.data.fields import BOX_COLUMNS, IMAGE_COLUMNS, VIDEO_COLUMNS, Fields, ReadOptions
from ral.data.formats import FORMATS, detect_format
from ral.data.mixture import Mixture
from ral.data.problem_type import guess_type
from ral.data.record import BoxScale, Record
from ral.data.sources import rows, undecoded
from ral.data.values import short
from ral.errors import DataError

__all__ = ["FORMATS", "as_records", "detect_format", "guess_type", "read_records"]

#: What `columns` may give a source's columns the name of.
COLUMN_NAMES = (
    "id", "problem", "solution", "problem_type", "options", *IMAGE_COLUMNS, *VIDEO_COLUMNS, *BOX_COLUMNS, "trace", "system",
    "history", "prompt", "messages", "conversations", "path", "data_type", "extra",
)  # fmt: skip


def read_records(
    source: str | Path,
    *,
    root: str | Path | None = None,
    format: str = "auto",
    split: str = "train",
    allow_outside: bool = False,
    columns: Mapping[str, Any] | None = None,
    box_scale: BoxScale | None = None,
    needs_solution: bool = True,
    on_error: Callable[[DataError], None] | None = None,
) -> Iterator[Record]:
    """The records of a file, a folder, or a dataset on the hub, one at a time.

    Files are JSON, JSON lines, CSV, TSV, parquet, or shards of a webdataset (tar); folders hold such files, or are image
    folders of Hugging Face.

    Args:
        root: folder that media paths are relative to; default: the folder of the data file.
        format: one of `FORMATS`, or "auto": recognised from the fields of each row.
        split: which files of a folder, or which split of a hub dataset.
        allow_outside: accept media paths that leave `root`.
        columns: our name → the source's, for columns called otherwise: `{"problem": "caption", "images": "picture"}`. A dot
            reaches into an object: `{"solution": "meta.label"}`. `extra` lists columns for reward functions only.
        box_scale: what boxes count: "pixels" of the original medium, or shares of its size up to 1 ("unit") or to 1000
            ("thousand"). Default: what the format says; pixels for our own `boxes`.
        needs_solution: refuse rows without an answer; otherwise their solution is "", for rewards that need none.
        on_error: gets the error of each row that cannot be read, which is then left out; default: it is raised.

    Raises `DataError` for a source or row that cannot be read: where, what was expected, what to do.
    """
    if root is None:
        root = source if Path(source).is_dir() else Path(source).parent if Path(source).is_file() else "."
    reading = _read_options(format, Path(root), allow_outside, columns, box_scale, needs_solution)
    for number, (where, row) in enumerate(rows(source, split), start=1):
        try:
            if isinstance(row, DataError):
                raise row
            yield _record(row, where, number, reading, format)
        except DataError as error:
            if on_error is None:
                raise
            on_error(error)


def as_records(
    data: str | Path | Iterable[Mapping[str, Any] | Record],
    *,
    root: str | Path | None = None,
    format: str = "auto",
    split: str = "train",
    columns: Mapping[str, Any] | None = None,
    box_scale: BoxScale | None = None,
    needs_solution: bool = True,
    name: str = "data",
) -> list[Record]:
    """Read records from anything that `read_records` reads, or from rows in memory, each in the format of its fields.

    Args:
        data: a path or hub id; a `datasets.Dataset` or `IterableDataset`, whose images stay encoded until they are
            needed; or any iterable of rows in a known format, or of `Record`s. A `Mixture` stays one.
        root: folder that media paths are relative to and may not leave. Default: for a path as in `read_records`; for
            rows in memory the working directory, with paths that may lie anywhere.
        format, columns, box_scale, needs_solution: as in `read_records`. split: of a path or hub id. name: what messages call rows in memory.

    Raises `DataError`, which names the row, for one that cannot be read.
    """
    reading = _read_options(
        format, Path("." if root is None else root), root is None, columns, box_scale, needs_solution
    )
    if isinstance(data, str | Path):
        how: dict[str, Any] = {"format": format, "split": split, "columns": columns, "box_scale": box_scale}
        how["needs_solution"] = needs_solution
        return list(read_records(data, root=root, **how))
    if isinstance(data, Mixture):
        return data
    if isinstance(data, Mapping):
        raise DataError(f"{name}: is a {type(data).__name__} ({short(list(data))}); give the rows of one split")
    if not isinstance(data, Iterable) and not hasattr(data, "__getitem__"):
        raise DataError(f"{name}: is {short(data)}; expected rows, a `datasets.Dataset`, a path or a hub id")
    records = []
    for number, row in enumerate(undecoded(data), start=1):
        where = f"{name}: row {number}"
        if isinstance(row, Record):
            records.append(row)
        elif isinstance(row, Mapping):
            records.append(_record(row, where, number, reading, format))
        else:
            raise DataError(f"{where}: is {short(row)}; expected an object with named fields, or a `Record`")
    return records


def _read_options(
    format: str,
    base: Path,
    allow_outside: bool,
    columns: Mapping[str, Any] | None,
    box_scale: BoxScale | None,
    needs_solution: bool,
) -> ReadOptions:
    if format not in ("auto", *FORMATS):
        raise DataError(f"format {format!r} is unknown; known are auto, {', '.join(FORMATS)}")
    if box_scale is not None and box_scale not in BOX_SCALES:
        raise DataError(f"box_scale {box_scale!r} is unknown; known are {', '.join(BOX_SCALES)}")
    for ours, theirs in (columns or {}).items():
        if ours not in COLUMN_NAMES:
            raise DataError(f"columns: {ours!r} is no field of a record; known are {', '.join(COLUMN_NAMES)}")
        if not isinstance(theirs, str) and not (ours == "extra" and isinstance(theirs, list | tuple)):
            raise DataError(f"columns: {ours!r}: expected the name of a column of the data, found {short(theirs)}")
    return ReadOptions(base, allow_outside, columns or {}, box_scale, needs_solution)


def _record(row: Mapping[str, Any], where: str, number: int, reading: ReadOptions, format: str) -> Record:
    fields = Fields(row, where, number, reading)
    name = detect_format(fields.row) if format == "auto" else format
    if name is None:
        raise DataError(
            f"{where}: the fields {', '.join(map(repr, fields.row))} are of no known format; expected `problem`, `question`, "
            "`prompt`, `messages` or `conversations` with an answer; name the columns (columns: {problem: …, solution: …}) "
            "or the format"
        )
    return FORMATS[name].read(fields)
