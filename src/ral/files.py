"""Small file helpers for recipes and for everything that writes run files."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import AliasEvent

from ral.errors import DataError

#: How the temporary files of atomic writes end.
_PART = ".part"


def atomic_write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path` atomically: readers, also after a crash, see the old file or the new one, never a part.

    Creates missing parent folders. Raises OSError as the file system does, and removes the temporary file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The temporary file must lie on the same file system for the rename to be atomic.
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=_PART)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp makes it private; use what `open` would have given
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def remove_parts(folder: Path) -> None:
    """Remove the temporary files that killed processes left in `folder`."""
    for path in folder.glob(f".*{_PART}"):
        path.unlink()


def atomic_write_text(path: Path, content: str) -> None:
    """`atomic_write_bytes` for text, in UTF-8 with the line ends as they are."""
    atomic_write_bytes(path, content.encode("utf-8"))


def json_line(row: Mapping[str, Any]) -> str:
    """One line of a JSONL file, newline included.

    NaN and infinities become null: JSON does not have them, and browsers would refuse the whole file.

    >>> json_line({"step": 1, "loss": float("nan")})
    '{"step": 1, "loss": null}\\n'
    """
    return json.dumps(_finite(row), ensure_ascii=False, allow_nan=False) + "\n"


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSONL file, in order.

    A last line without a newline comes from an interrupted write and is skipped. Raises DataError with file
    and line for any other line that is not a JSON object, and FileNotFoundError.
    """
    with open(path, encoding="utf-8") as stream:
        for number, line in enumerate(stream, start=1):
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                if not line.endswith("\n"):
                    return
                raise DataError(f"{path}, line {number}: not valid JSON ({error}).") from error
            if not isinstance(row, dict):
                raise DataError(f"{path}, line {number}: expected a JSON object, got {type(row).__name__}.")
            yield row


class _Constructor(SafeConstructor):
    """Safe values of YAML 1.2, whose core has no dates and no default key: `2024-01-01` and `=` are text."""


for _tag in ("timestamp", "value"):
    _Constructor.add_constructor(f"tag:yaml.org,2002:{_tag}", SafeConstructor.construct_yaml_str)


def parse_yaml(text: str) -> Any:
    """Parse a YAML 1.2 text: `no` is a word, `1e-5` is a number, and keys may not repeat.

    Raises DataError, in one line, for anything else, and for a reference (`*name`): references to references can stand for
    more values than any machine holds.
    """
    yaml = YAML(typ="safe", pure=True)
    yaml.Constructor = _Constructor
    try:
        for event in yaml.parse(text):
            if isinstance(event, AliasEvent):
                raise MarkedYAMLError(None, None, "a reference (*name); write the value out", event.start_mark)
        return yaml.load(text)
    except MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise DataError(f"{line}not valid YAML ({error.problem}).") from error
    except (YAMLError, RecursionError, ValueError) as error:  # control characters; brackets without end; no such number
        said = str(error).partition("\n")[0]
        raise DataError(f"not valid YAML ({said}).") from error


def read_yaml(path: Path, what: str = "the file") -> dict[str, Any]:
    """The keys and values of a flat YAML file. Raises DataError as `parse_yaml` does, and for a file that cannot be read."""
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot read {what} ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a text file in UTF-8; expected `key: value` lines in YAML.") from error
    except DataError as error:
        raise DataError(f"{path}, {error}" if str(error).startswith("line") else f"{path}: {error}") from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise DataError(f"{path}: expected a flat mapping, `key: value` lines.")
    return content


def _finite(value: Any) -> Any:
    """`value` with every NaN and infinity in it, at any depth, replaced by None."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _umask() -> int:
    """The process's file mode mask, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
