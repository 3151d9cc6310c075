"""Rows of a benchmark's table, from the hub or a local copy, with typed access to their fields."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image

from ral.data.media import image_from_bytes
from ral.data.sources import rows
from ral.errors import DataError


@dataclass(frozen=True)
class TableRow:
    """One row: its `values` by column, its `number` from 1, the `config` (sub-table) it is of, and where it stands.

    `media` is the folder that image and video paths are relative to; None if there is none. The accessors raise
    `DataError` naming the row and the column.
    """

    values: Mapping[str, Any]
    number: int
    config: str
    origin: str
    media: Path | None

    def fail(
        self, column: str, expected: str, remedy: str = "check that this is the benchmark's own table"
    ) -> DataError:
        found = repr(self.values.get(column))
        return DataError(f"{self.origin}: column {column!r}: expected {expected}, found {found:.80}; {remedy}")

    def text(self, column: str) -> str:
        """A text, or a number as text; never empty."""
        value = self.values.get(column)
        if isinstance(value, bool) or not isinstance(value, str | int | float) or not str(value).strip():
            raise self.fail(column, "a text")
        return str(value).strip()

    def texts(self, column: str) -> tuple[str, ...]:
        """A list of texts, or one written out as a Python or JSON list."""
        value = self.values.get(column)
        if isinstance(value, str):
            try:
                value = ast.literal_eval(value)
            except (ValueError, SyntaxError, RecursionError) as error:
                raise self.fail(column, "a list of texts") from error
        if not isinstance(value, Sequence) or not value:
            raise self.fail(column, "a list of texts")
        return tuple(str(item) for item in value)

    def index(self, column: str, count: int) -> int:
        """A whole number from 0 to `count` − 1."""
        value = self.values.get(column)
        if not isinstance(value, int | str) or not str(value).isdecimal() or not int(value) < count:
            raise self.fail(column, f"a number from 0 to {count - 1}")
        return int(value)

    def letter(self, column: str, count: int) -> str:
        """An option letter, "B" or "(B)", of `count` options."""
        letter = self.text(column).strip("().").upper()
        if len(letter) != 1 or not 0 <= ord(letter) - ord("A") < count:
            raise self.fail(column, f"a letter of {count} options")
        return letter

    def image(self, column: str) -> Path | Image.Image:
        return self.as_image(self.values.get(column), column)

    def images(self, column: str) -> tuple[Path | Image.Image, ...]:
        values = self.values.get(column)
        if not isinstance(values, Sequence) or isinstance(values, str) or not values:
            raise self.fail(column, "a list of images")
        return tuple(self.as_image(value, column) for value in values)

    def as_image(self, value: Any, column: str) -> Path | Image.Image:
        if isinstance(value, Mapping):
            value = value["bytes"] if value.get("bytes") is not None else value.get("path")
        if isinstance(value, bytes):
            return image_from_bytes(value, self.origin)
        if isinstance(value, str):
            return self.file(column, value)
        if isinstance(value, Image.Image):
            return value
        raise self.fail(column, "an image")

    def file(self, column: str, *places: str) -> Path:
        """The first of `places` that exists in the media folder, else the only file there of that name."""
        if self.media is None:
            raise DataError(
                f"{self.origin}: {places[0]!r} lies outside the table: download and unpack the benchmark's media "
                "and name their folder"
            )
        root = self.media.resolve()
        for place in places:
            path = (root / place).resolve()
            if path.is_relative_to(root) and path.is_file():
                return path
        found = {path for place in places for path in _files_by_name(root).get(Path(place).name, ())}
        if len(found) != 1:
            why = "is not there" if not found else f"could be any of {len(found)} files"
            raise self.fail(
                column,
                f"a file in {self.media}, but {places[0]!r} {why}",
                "unpack the benchmark's media there with their folders",
            )
        return found.pop()


def read_rows(source: str | Path, split: str, configs: Sequence[str], media: Path | None) -> Iterator[TableRow]:
    """Rows of a benchmark, one sub-table of `configs` after the other ("" for the only one).

    `source` is a hub id, a local copy of its repository (a sub-table is then the folder or file of that name), or one
    file with all rows (a column `config` then says which sub-table a row is of). `media` defaults to the local folder.
    """
    path = Path(source)
    if media is None and path.exists():
        media = path if path.is_dir() else path.parent
    number = 0
    for config, part in _parts(source, configs):
        found = _hub_rows(str(part), config, split) if not Path(part).exists() else rows(part, split)
        for origin, values in found:
            number += 1
            if isinstance(values, DataError):
                raise values
            yield TableRow(values, number, config or str(values.get("config", "")), origin, media)


def _parts(source: str | Path, configs: Sequence[str]) -> Iterator[tuple[str, str | Path]]:
    """(sub-table, where its rows are)."""
    path = Path(source)
    if path.is_file() or list(configs) == [""]:
        yield "", source
        return
    for config in configs:
        if not path.is_dir():
            yield config, source
            continue
        places = sorted(place for place in path.rglob("*") if config in (place.name, place.stem))
        if not places:
            raise DataError(f"{path}: no folder or file of the sub-table {config!r}; copy the whole repository there")
        yield config, places[0]


def _hub_rows(source: str, config: str, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
    import datasets

    name = f"{source}[{config}][{split}]" if config else f"{source}[{split}]"
    try:
        table = datasets.load_dataset(source, config or None, split=split, streaming=True)
        for number, values in enumerate(table.decode(False), start=1):
            yield f"{name}: row {number}", values
    except Exception as error:  # the hub, its formats and the network raise anything
        raise DataError(
            f"{name}: cannot be loaded ({type(error).__name__}: {error}); check the network, or give a local copy"
        ) from error


@lru_cache(maxsize=4)
def _files_by_name(root: Path) -> dict[str, list[Path]]:
    files: dict[str, list[Path]] = {}
    for path in root.rglob("*"):
        if path.is_file():
            files.setdefault(path.name, []).append(path)
    return files
