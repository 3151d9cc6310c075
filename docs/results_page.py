"""Puts the study's page of results and the files it links to on the site; they live in `experiments`, beside their code."""

from __future__ import annotations

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

EXPERIMENTS = Path(__file__).parents[1] / "experiments"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The site's files with `results.md` and, under `results`, every result file."""
    page = (EXPERIMENTS / "results.md").read_text(encoding="utf-8").replace("](../docs/", "](")
    files.append(File.generated(config, "results.md", content=page))
    for path in sorted((EXPERIMENTS / "results" / "study").glob("*.json")):
        address = path.relative_to(EXPERIMENTS).as_posix()
        files.append(File.generated(config, address, abs_src_path=str(path)))
    return files
