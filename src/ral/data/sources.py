"""Reads rows from JSON, JSON lines, CSV, TSV and parquet files, webdataset shards, folders of these, and hub ids.

A file is never read whole, so it may be larger than memory. A row that cannot be read is yielded as the `DataError` that
says why, in its place. The caller decides whether to stop or to count it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from ral.data.media_suffixes import VIDEO_SUFFIXES
from ral.data.shards import shard_rows
from ral.data.strict_json import LENIENT, STRICT, RepeatedKey
from ral.data.tables import csv_rows, parquet_rows
from ral.data.values import written_out
from ral.errors import DataError

Row = dict[str, Any]

#: Bytes of one JSON row beyond which it is refused; media belong into files, not into JSON.
MAX_ROW = 64 << 20
_CHUNK = 1 << 20
_SUFFIXES = (".json", ".jsonl", ".ndjson", ".parquet", ".csv", ".tsv")
_SHARDS = (".tar", ".tar.gz", ".tgz")
_BETWEEN = re.compile(r"[\s,]*")
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
            within = file.parent.relative_to(path) if path.is_dir() else Path()
            read = _file_rows(file)
            try:
                yield from _with_files(read, within) if file.stem == "metadata" else read
            except DataError as error:
                yield str(file), error
    elif path.is_dir() or re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)):
        yield from _datasets_rows(source, split)
    else:
        raise DataError(f"{source}: no such file or folder, and no hub id of the form owner/name; check the path")


def _with_files(read: Iterator[tuple[str, Row | DataError]], folder: Path) -> Iterator[tuple[str, Row | DataError]]:
    """The rows of an image folder's metadata, with the files that they name as media; `folder` is where it stands.

    Once a row names its file, one that names none is an error: its question would be asked without its picture.
    """
    naming = False
    for where, row in read:
        names = [] if isinstance(row, DataError) else [name for name in row if _names_files(name)]
        if isinstance(row, DataError) or not (names or naming):
            yield where, row
        elif not any(row[name] for name in names) and not any(row[name] == [] for name in names):
            yield where, DataError(f"{where}: field 'file_name': expected the file of the row, found nothing; name it")
        else:
            naming = True
            yield where, _with_media(row, names, folder)


def _names_files(name: str) -> bool:
    """Whether a column names files: `file_name`, `file_names`, or these behind the name of a column and a line."""
    return re.fullmatch(r"(.*_)?file_names?", name) is not None


def _with_media(row: Row, names: list[str], folder: Path) -> Row:
    """A row with the media that its columns `names` name."""
    media = {name: value for name, value in row.items() if name not in names}
    for name in names:
        value = written_out(row[name])  # CSV writes lists as text
        files = value if isinstance(value, list) else [value]
        kind = "video" if files and PurePosixPath(str(files[0])).suffix.lower() in VIDEO_SUFFIXES else "image"
        column = re.sub("_?file_names?$", "", name) or (f"{kind}s" if isinstance(value, list) else kind)
        if not value or column in row:
            media[name] = row[name]  # two names for the medium: the reader says so
        else:
            media[column] = [str(folder / str(file)) for file in files]
    return media


def _is_shard(path: Path) -> bool:
    return path.name.lower().endswith(_SHARDS)


def _split_files(folder: Path, split: str) -> list[Path]:
    """Data files of one split: those with its name in theirs; all, if no file is named after a split.

    An archive beside data files holds their media; without such files, it is a shard.
    """
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in _SUFFIXES and p.name != "dataset_info.json")
    files = files or sorted(p for p in folder.rglob("*") if _is_shard(p))
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
        yield from parquet_rows(path, MAX_ROW)
    elif suffix == ".parquet":
        raise DataError(f"{path}: is not parquet, whatever its name says; rename it to what it is")
    elif _is_shard(path):
        yield from shard_rows(path)
    elif head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{path}: is UTF-16; convert it, for example with `iconv -f UTF-16 -t UTF-8`")
    elif suffix in (".csv", ".tsv"):
        yield from csv_rows(path, MAX_ROW)
    elif suffix == ".json" and head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"[":
        yield from _array_rows(path)
    elif suffix in _SUFFIXES:
        yield from _line_rows(path)
    else:
        raise DataError(f"{path}: is no data file; expected one of {', '.join((*_SUFFIXES, *_SHARDS))}")


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
        row = STRICT.decode(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return DataError(f"{where}: is not UTF-8 (byte {error.start}); convert the file to UTF-8")
    except RepeatedKey as error:
        return DataError(f"{where}: {error}; rename or drop one")
    except (ValueError, RecursionError) as error:
        return DataError(f"{where}: is not JSON ({error}); expected one object a line")
    return _object(row, where)


def _object(row: Any, where: str) -> Row | DataError:
    if isinstance(row, dict):
        return row
    return DataError(f"{where}: is a {type(row).__name__}; expected an object with named fields")


def _array_rows(path: Path) -> Iterator[tuple[str, Row | DataError]]:
    """A JSON array, parsed an element at a time; what follows a syntax error cannot be read."""
    number, size = 0, _CHUNK
    with path.open(encoding="utf-8-sig") as file:
        try:
            buffer = file.read(size)
            at = len(buffer) - len(buffer.lstrip()) + 1
            while True:
                at = _BETWEEN.match(buffer, at).end()  # type: ignore[union-attr]  # it matches anywhere
                where = f"{path}: row {number + 1}"
                if buffer.startswith("]", at):
                    if buffer[at + 1 :].strip() or any(chunk.strip() for chunk in iter(lambda: file.read(_CHUNK), "")):
                        yield where, DataError(f"{where}: more follows the end of the array; join it into one array")
                    return
                try:
                    found, end = _element(buffer, at, where)
                except (ValueError, RecursionError) as error:
                    more = file.read(size)  # the element may only be cut off by the end of the buffer
                    if not more or len(buffer) - at > MAX_ROW:
                        yield where, DataError(f"{where}: is not JSON ({error}); the rest of the file was not read")
                        return
                    buffer, at, size = buffer[at:] + more, 0, size * 2
                    continue
                number += 1
                yield where, found
                at, size = end, _CHUNK
        except UnicodeDecodeError as error:
            where = f"{path}: row {number + 1} or later"
            yield where, DataError(f"{where}: is not UTF-8 ({error.reason}); convert the file to UTF-8")


def _element(buffer: str, at: int, where: str) -> tuple[Row | DataError, int]:
    """The element of an array that begins here, and where it ends. Raises ValueError where it is cut off."""
    try:
        row, end = STRICT.raw_decode(buffer, at)
    except RepeatedKey as error:
        _, end = LENIENT.raw_decode(buffer, at)
        return DataError(f"{where}: {error}; rename or drop one"), end
    return _object(row, where), end


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
    datasets = sys.modules.get("datasets")  # an import of seconds; without it nothing is a data set of its own
    if datasets is None:
        return data
    if isinstance(data, datasets.Dataset):
        if data.format["type"] == "custom":
            return data
        data = data.with_format(None).to_iterable_dataset()
    if isinstance(data, datasets.IterableDataset) and data.features is not None:
        return data.with_format(None).decode(False)
    return data
