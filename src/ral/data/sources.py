"""Rows from where data lies: JSON, JSON lines and parquet files, folders of them, and hub ids; a row at a time.

A file is never read whole, so it may be larger than memory. A row that cannot be read is handed on as the
`DataError` that says why, in its place: whether to stop or to count is the caller's choice.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ral.errors import DataError

Row = dict[str, Any]

#: Bytes of one JSON row beyond which it is refused; media belong into files, not into JSON.
MAX_ROW = 64 << 20
_CHUNK = 1 << 20
_SUFFIXES = (".json", ".jsonl", ".ndjson", ".parquet")
_SPLIT_NAMES = {"train", "training", "val", "valid", "validation", "dev", "test", "eval"}


def rows(source: str | Path, split: str = "train") -> Iterator[tuple[str, Row | DataError]]:
    """(where, row) of every row of a local file or folder, or of a dataset on the hub.

    `split` chooses the files of a folder and the split of a hub dataset; a single file is read as it is. A row or
    file that is broken comes as a `DataError`.

    Raises `DataError` when there is nothing to read.
    """
    path = Path(source)
    if path.is_file() or (path.is_dir() and _split_files(path, split)):
        for file in [path] if path.is_file() else _split_files(path, split):
            try:
                yield from _file_rows(file)
            except DataError as error:
                yield str(file), error
    elif path.is_dir() or re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)):
        yield from _datasets_rows(source, split)
    else:
        raise DataError(f"{source}: no such file or folder, and no hub id of the form owner/name; check the path")


def _split_files(folder: Path, split: str) -> list[Path]:
    """Data files of one split: those with its name in theirs; all, if no file is named after a split."""
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in _SUFFIXES and p.name != "dataset_info.json")
    if any(p.name == "state.json" for p in files):
        return []  # written by `Dataset.save_to_disk`
    words = {p: set(re.split(r"[^a-z0-9]+", p.relative_to(folder).as_posix().lower())) for p in files}
    if not any(words[p] & _SPLIT_NAMES for p in files):
        return files
    chosen = [p for p in files if split in words[p]]
    if not chosen:
        names = ", ".join(p.relative_to(folder).as_posix() for p in files[:5])
        raise DataError(f"{folder}: no file of the split {split!r} among {names}; name another split or one file")
    return chosen


def _file_rows(path: Path) -> Iterator[tuple[str, Row | DataError]]:
    suffix = path.suffix.lower()
    if path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty")
    with path.open("rb") as file:
        head = file.read(4096)
    if head.startswith(b"PAR1"):
        yield from _parquet_rows(path)
    elif suffix == ".parquet":
        raise DataError(f"{path}: is not parquet, whatever its name says; rename it to what it is")
    elif head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{path}: is UTF-16; convert it, for example with `iconv -f UTF-16 -t UTF-8`")
    elif head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"[" and suffix not in (".jsonl", ".ndjson"):
        yield from _array_rows(path)
    elif suffix in _SUFFIXES:
        yield from _line_rows(path)
    else:
        raise DataError(f"{path}: is no data file; expected one of {', '.join(_SUFFIXES)}")


def _line_rows(path: Path) -> Iterator[tuple[str, Row | DataError]]:
    """JSON lines: a broken line costs that line only."""
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MAX_ROW):
            number += 1
            where = f"{path}: line {number}"
            if not line.endswith(b"\n") and len(line) == MAX_ROW:
                yield where, DataError(f"{where}: longer than {MAX_ROW >> 20} MiB; keep media in files of their own")
                while line and not line.endswith(b"\n"):
                    line = file.readline(_CHUNK)
            elif line.strip():
                yield where, _parsed(line, where)


def _parsed(line: bytes, where: str) -> Row | DataError:
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return DataError(f"{where}: is not UTF-8 (byte {error.start}); convert the file to UTF-8")
    except (ValueError, RecursionError) as error:
        return DataError(f"{where}: is not JSON ({error}); expected one object a line")
    return _object(row, where)


def _object(row: Any, where: str) -> Row | DataError:
    if isinstance(row, dict):
        return row
    return DataError(f"{where}: is a {type(row).__name__}; expected an object with named fields")


def _array_rows(path: Path) -> Iterator[tuple[str, Row | DataError]]:
    """A JSON array, parsed an element at a time; what follows a syntax error cannot be read."""
    decoder = json.JSONDecoder()
    number, buffer, size = 0, "", _CHUNK
    with path.open(encoding="utf-8-sig") as file:
        try:
            buffer = file.read(size).lstrip()[1:]
            while True:
                buffer = buffer.lstrip().removeprefix(",").lstrip()
                where = f"{path}: row {number + 1}"
                if buffer.startswith("]"):
                    return
                try:
                    row, end = decoder.raw_decode(buffer)
                except (ValueError, RecursionError) as error:
                    more = file.read(size)  # the element may only be cut off by the end of the buffer
                    if not more or len(buffer) > MAX_ROW:
                        yield where, DataError(f"{where}: is not JSON ({error}); the rest of the file was not read")
                        return
                    buffer, size = buffer + more, size * 2
                    continue
                number += 1
                yield where, _object(row, where)
                buffer, size = buffer[end:], _CHUNK
        except UnicodeDecodeError as error:
            where = f"{path}: row {number + 1} or later"
            yield where, DataError(f"{where}: is not UTF-8 ({error.reason}); convert the file to UTF-8")


def _parquet_rows(path: Path) -> Iterator[tuple[str, Row | DataError]]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            _refuse_swollen(path, file.metadata)
            for batch in file.iter_batches(batch_size=32):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}: row {number}", row
    except DataError:
        raise
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        where = f"{path}: row {number + 1}"
        yield where, DataError(f"{where}: the parquet file is damaged ({error}); write it again")


def _refuse_swollen(path: Path, metadata: Any) -> None:
    """A few kilobytes of parquet can stand for gigabytes: what the file says of itself is checked before it is read."""
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        if group.total_byte_size > MAX_ROW * max(1, group.num_rows):
            raise DataError(
                f"{path}: row group {number + 1} unpacks to {group.total_byte_size / 2**30:.1f} GiB for {group.num_rows} rows, "
                f"more than {MAX_ROW >> 20} MiB a row; keep media in files of their own"
            )


def _datasets_rows(source: str | Path, split: str) -> Iterator[tuple[str, Row | DataError]]:
    """Whatever else `datasets` can load, streamed, with its media as undecoded bytes or paths."""
    import datasets

    try:
        if Path(source).is_dir() and any(Path(source).rglob("state.json")):
            loaded = datasets.load_from_disk(str(source))
            data = (loaded[split] if isinstance(loaded, datasets.DatasetDict) else loaded).to_iterable_dataset()
        else:
            data = datasets.load_dataset(str(source), split=split, streaming=True)
        for number, row in enumerate(undecoded(data), start=1):
            yield f"{source}[{split}]: row {number}", row
    except Exception as error:  # the hub, its formats and its scripts raise anything
        raise DataError(
            f"{source}: `datasets` cannot load the split {split!r} ({type(error).__name__}: {error}); "
            "check the id, the split and the network, or give a local file"
        ) from error


def undecoded(data: Iterable[Any]) -> Iterable[Any]:
    """The rows of a `Dataset` or `IterableDataset` with their media as bytes or paths; anything else as it is.

    A transform that the user has set is part of the data, so that such a data set too is left as it is.
    """
    import datasets

    if isinstance(data, datasets.Dataset):
        if data.format["type"] == "custom":
            return data
        data = data.with_format(None).to_iterable_dataset()
    if isinstance(data, datasets.IterableDataset) and data.features is not None:
        return data.with_format(None).decode(False)
    return data
