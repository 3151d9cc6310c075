"""Reads CSV, TSV and parquet files row by row."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ral.errors import DataError

Row = dict[str, Any]


def csv_rows(path: Path, max_row: int) -> Iterator[tuple[str, Row | DataError]]:
    """Rows of a table of text, separated by commas or (`.tsv`) tabs, under a first line of names. An empty cell is None."""
    csv.field_size_limit(max_row)  # a setting of the whole module; an image in base64 is a long cell
    with path.open(encoding="utf-8-sig", newline="") as file:
        table = csv.reader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
        where = f"{path}: line 1"
        try:
            names = _names(next(table), where)
            while True:
                where = f"{path}: line {table.line_num + 1}"
                if not (cells := next(table)):  # a blank line
                    continue
                if len(cells) == len(names):
                    yield where, {name: cell or None for name, cell in zip(names, cells, strict=True)}
                else:
                    yield where, DataError(f"{where}: has {len(cells)} cells under {len(names)} names; write it again")
        except StopIteration:
            return
        except csv.Error as error:
            yield where, DataError(f"{where}: is no table ({error}); write it again; the rest of the file was not read")
        except UnicodeDecodeError as error:
            yield where, DataError(f"{where} or later: is not UTF-8 ({error.reason}); convert the file to UTF-8")


def _names(header: list[str], where: str) -> list[str]:
    """The names of the columns. A first one without a name is the index that pandas writes."""
    names = ["index", *header[1:]] if header and not header[0].strip() else header
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice or not all(name.strip() for name in names):
        raise DataError(f"{where}: expected a name for every column, each once, found {', '.join(names)}; rename them")
    return names


def parquet_rows(path: Path, max_row: int) -> Iterator[tuple[str, Row | DataError]]:
    """Rows of a parquet file; what follows damage is not read."""
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if twice := [name for name, count in Counter(names).items() if count > 1]:
                raise DataError(f"{path}: the column {twice[0]!r} stands twice; rename one")
            _refuse_swollen(path, file.metadata, max_row)
            for batch in file.iter_batches(batch_size=32):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}: row {number}", row
    except DataError:
        raise
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        where = f"{path}: row {number + 1}"
        yield where, DataError(f"{where}: the parquet file is damaged ({error}); write it again")


def _refuse_swollen(path: Path, metadata: Any, max_row: int) -> None:
    """A few kilobytes of parquet can stand for gigabytes: what the file says of itself is checked before it is read."""
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        if group.total_byte_size > max_row * max(1, group.num_rows):
            raise DataError(
                f"{path}: row group {number + 1} unpacks to {group.total_byte_size / 2**30:.1f} GiB for {group.num_rows} rows, "
                f"more than {max_row >> 20} MiB a row; keep media in files of their own"
            )
