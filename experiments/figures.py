"""Writes the measured figures into README.md: `python -m experiments.figures [--picture quickstart/report.html]`.

Every figure stands between two marks, `<!-- figures: NAME -->` and `<!-- /figures -->`, and is made from a result file that
a command in the repository wrote. The pictures are of a quickstart's report, as Chromium shows it.
"""

from __future__ import annotations

import argparse
import io
import re
import shutil
from pathlib import Path

from benchmarks.common import RESULTS as BENCHMARKS
from benchmarks.page import Results, conditions, targets_table
from PIL import Image

from experiments.results import contrasts, summary_table
from experiments.studies import PRIMARY_SHORTCUT
from experiments.table import Table

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PRIMARY = ("grpo", "old", "explore", "explore-bias", "grpo-long", "evidence")
SHORTCUT = (*PRIMARY_SHORTCUT, "evidence-random", "evidence-shuffled", "evidence-masking", "ease")
_BLOCK = re.compile(r"(<!-- figures: (\w+) -->\n).*?(<!-- /figures -->)", flags=re.DOTALL)


def study() -> str:
    """The primary comparison over seeds."""
    table = Table("rings")
    seeds = table.seeds(table.study.baseline)
    cell = table.cells[table.study.baseline, seeds[0]]
    arms = " ".join(PRIMARY)
    return (
        f"{summary_table(table, PRIMARY)}\n\nMeans over seeds {seeds[0]} to {seeds[-1]} with Student's 95 % intervals, differences "
        f"paired by seed; {cell.machine}; `python -m experiments.study rings --arms {arms}`. All arms, controls and what these "
        "seeds could have shown: [experiments/results.md](experiments/results.md).\n"
    )


def shortcut() -> str:
    """The primary comparison where a hint is nearly always right in training, and wrong in the test, and the arms that decide about it."""
    table = Table("shortcut-word-97")
    arms, seeds = [arm for arm in SHORTCUT if arm in table.arms], table.seeds(table.study.baseline)
    fewer = "".join(
        f"; {table.study.arms[arm].label}: {table.seeds(arm)[0]} to {table.seeds(arm)[-1]}"
        for arm in arms
        if table.seeds(arm) != seeds
    )
    return (
        f"{summary_table(table, arms)}\n\n{contrasts(table, arms)}\n\nMeans over seeds {seeds[0]} to {seeds[-1]}{fewer}, as above; accuracy is of 512 "
        f"questions whose hint is wrong; `python -m experiments.study shortcut-word-97 --arms {' '.join(arms)}`.\n"
    )


def distillation() -> str:
    """What a teacher's attention is worth beside its tokens."""
    table = Table("distill")
    seeds = table.seeds(table.study.baseline)
    return (
        f"{summary_table(table, table.arms)}\n\nMeans over seeds {seeds[0]} to {seeds[-1]}, as above; "
        "`python -m experiments.study distill`.\n"
    )


def performance() -> str:
    """What was promised of speed and memory, and what was measured."""
    results = Results(BENCHMARKS)
    return (
        f"{targets_table(results)}\n\n{conditions(results)} Ratios above that of the tokens come from the frozen vision tower, "
        "which runs once per prompt. `python -m benchmarks.suite`; all of it: [docs/performance.md](docs/performance.md).\n"
    )


FIGURES = {"study": study, "shortcut": shortcut, "distillation": distillation, "performance": performance}


def with_figures(text: str) -> str:
    """The text with every marked block made anew."""
    return _BLOCK.sub(lambda match: f"{match[1]}{FIGURES[match[2]]()}{match[3]}", text)


#: Pictures of a report by file: what is shown (None: the first screen), and where its slider stands.
PICTURES = {
    "report.png": (None, None),
    "report-looks.png": ("#looks .stepper", "End"),
    "report-completions.png": ("#training .stepper", "Home"),
}


def pictures(report: Path, folder: Path = ROOT / "docs/assets") -> None:
    """The pictures of a report as small PNGs."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 930})
        page.goto(report.resolve().as_uri())
        for name, (part, key) in PICTURES.items():
            if part is not None and key is not None:
                page.locator(f"{part} input[type=range]").press(key)
            shot = page.screenshot() if part is None else page.locator(part).screenshot()
            Image.open(io.BytesIO(shot)).convert("RGB").quantize(64).save(folder / name, optimize=True)
        browser.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--picture", type=Path, metavar="REPORT", help="also take the pictures of the documentation from this report"
    )
    report = parser.parse_args().picture
    README.write_text(with_figures(README.read_text(encoding="utf-8")), encoding="utf-8")
    if report is not None:
        pictures(report)


if __name__ == "__main__":
    main()
