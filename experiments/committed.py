"""The files of a commit in a folder of their own, for what runs another version or changes files."""

from __future__ import annotations

import subprocess
from pathlib import Path


def unpack_commit(repository: Path, commit: str, folder: Path) -> None:
    """Write all files of a commit into `folder`, which is made if need be.

    By the program `tar`: `tarfile` takes its safe filter from Python 3.11.4 on, and warns without it later.
    """
    folder.mkdir(parents=True, exist_ok=True)
    archive = subprocess.run(["git", "-C", str(repository), "archive", commit], check=True, capture_output=True).stdout
    subprocess.run(["tar", "-x", "-f", "-", "-C", str(folder)], input=archive, check=True)
