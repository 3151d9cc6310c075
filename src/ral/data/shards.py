"""Webdataset shards: tar archives in which adjacent files `key.json`, `key.jpg`, `key.txt` … form one sample.

An archive is streamed, a sample at a time. JSON files hold fields, texts are fields called like their suffix, and images
and videos are the sample's media: at the places where its JSON names them, else in the order of the archive.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ral.data.media_suffixes import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from ral.data.strict_json import STRICT, RepeatedKey
from ral.errors import DataError

Row = dict[str, Any]

#: Bytes of one file of a shard beyond which it is refused: a sample is held in memory.
MAX_MEMBER = 1 << 30
_TEXT_SUFFIXES = {".txt", ".text", ".cls", ".caption", ".question", ".problem", ".answer", ".solution"}
_BLOCK = 512


@dataclass(frozen=True)
class _File:
    """A file of a sample: its `name` in the archive, its `field` (what follows the key), and its `content`."""

    name: str
    field: str
    content: bytes

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.name).suffix.lower()

    @property
    def medium(self) -> str | None:
        """The column it belongs to, if it is a medium."""
        return "images" if self.suffix in IMAGE_SUFFIXES else "videos" if self.suffix in VIDEO_SUFFIXES else None


def shard_rows(path: Path) -> Iterator[tuple[str, Row | DataError]]:
    """A row for every sample of an archive, compressed or not. What follows damage is not read."""
    sample: list[_File] = []
    key, end = "", 0
    try:
        with tarfile.open(path, "r|*") as archive:
            for member in archive:
                end = member.offset_data + -(-member.size // _BLOCK) * _BLOCK
                if member.isdir():
                    continue
                owner, field = _key(member.name)
                if sample and owner != key:
                    yield _row(path, key, sample)
                    sample = []
                key = owner
                sample.append(_File(member.name, field, _content(path, archive, member)))
        if sample:
            yield _row(path, key, sample)
        _refuse_more(path, end)
    except DataError as error:
        yield str(path), error
    except (tarfile.TarError, EOFError, OSError) as error:
        where = f"{path}: after sample {key!r}"
        yield where, DataError(f"{where}: the archive is damaged ({error}); write it again")


def _key(name: str) -> tuple[str, str]:
    """(key, field) of a file: its path up to the first dot of its name, and what follows."""
    place = PurePosixPath(name)
    stem, _, field = place.name.partition(".")
    return str(place.parent / stem), field


def _content(path: Path, archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member) if member.isreg() else None
    if file is None:
        raise DataError(f"{path}: {member.name!r} is a link; write the archive with the files themselves")
    if member.size > MAX_MEMBER:
        raise DataError(f"{path}: {member.name!r} has {member.size:,} bytes, more than {MAX_MEMBER:,}; make it smaller")
    return file.read()


def _refuse_more(path: Path, end: int) -> None:
    """Refuse an uncompressed archive without zeros at its end (truncated), or with more data after them."""
    with path.open("rb") as file:
        if file.read(_BLOCK)[257:262] != b"ustar":
            return
        file.seek(end)
        tail = file.read(2 * _BLOCK)
        if len(tail) < _BLOCK:
            raise DataError(f"{path}: the archive is cut off behind its last sample; write it again")
        while tail:
            if tail.strip(b"\0"):
                raise DataError(f"{path}: more follows the archive's end; it was not read; write one archive of it")
            tail = file.read(1 << 20)


def _row(path: Path, key: str, files: list[_File]) -> tuple[str, Row | DataError]:
    where = f"{path}: sample {key!r}"
    try:
        row: Row = {}
        for file in files:
            if file.medium is None:
                fields = _fields(file, where)
                if twice := fields.keys() & row.keys():
                    raise DataError(f"{where}: the field {min(twice)!r} stands in two of its files; drop one")
                row |= fields
        _place_media(row, [file for file in files if file.medium], where)
        if not {"id", "problem_id"} & row.keys():
            row["id"] = key
        return where, row
    except DataError as error:
        return where, error


def _fields(file: _File, where: str) -> Row:
    """The fields of a file that is no medium."""
    if file.suffix != ".json" and file.suffix not in _TEXT_SUFFIXES:
        raise DataError(f"{where}: {file.name!r} is no JSON, text, image or video; leave it out of the archive")
    try:
        text = file.content.decode("utf-8-sig")
        said = STRICT.decode(text) if file.suffix == ".json" else text
    except (ValueError, RecursionError, RepeatedKey) as error:
        raise DataError(f"{where}: {file.name!r} cannot be read ({error}); write it again") from error
    return said if isinstance(said, dict) else {file.field: said}


def _place_media(row: Row, media: list[_File], where: str) -> None:
    """Put the media where the row names them; if it names none, into `images` and `videos`."""
    names = {name: file for file in media for name in (file.name, PurePosixPath(file.name).name)}
    placed: set[str] = set()

    def place(value: Any) -> Any:
        if isinstance(value, str) and (file := names.get(value.removeprefix("./"))):
            placed.add(file.name)
            return {"bytes": file.content, "path": file.name}
        if isinstance(value, list):
            return [place(item) for item in value]
        return {name: place(item) for name, item in value.items()} if isinstance(value, dict) else value

    row |= {name: place(value) for name, value in row.items()}
    left = [file for file in media if file.name not in placed]
    if left and placed:
        raise DataError(f"{where}: its JSON names media but not {left[0].name!r}; name it, too, or leave it out")
    for file in left:
        column = row.setdefault(file.medium or "", [])
        if not isinstance(column, list) or any(not isinstance(item, dict) for item in column):
            raise DataError(f"{where}: `{file.medium}` names media that are not in the archive; name those that are")
        column.append({"bytes": file.content, "path": file.name})
