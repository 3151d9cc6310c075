"""Writes the measured figures into README.md: `python -m experiments.figures [--picture quickstart/report.html]`.

Every figure stands between two marks, `<!-- figures: NAME -->` and `<!-- /figures -->`, and is made from a result file that
a command in the repository wrote. The pictures are of a quickstart's report, as Chromium shows it.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import shutil
from pathlib import Path

from experiments.seeds import RESULTS as SEEDS
from experiments.seeds import table as seeds_table
from PIL import Image

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
UPDATE_STEPS = ("P1050-R16-G8-L2", "P1050-R64-G8-L12", "P1050-R256-G8-L2")
_BLOCK = re.compile(r"(<!-- figures: (\w+) -->\n).*?(<!-- /figures -->)", flags=re.DOTALL)


def seeds() -> str:
    """Accuracy and looking over seeds."""
    results = json.loads(SEEDS.read_text(encoding="utf-8"))
    seeds = sorted({run["seed"] for run in results["runs"]})
    return (
        f"{seeds_table(results)}\n\nMeans over seeds {', '.join(map(str, seeds))} with 95 % t-intervals; "
        f"{results['machine']}; `{results['command']}`.\n"
    )


def update_step() -> str:
    """How many times more than ours an update step takes elsewhere."""
    lines = [
        "| prompt, completion tokens, layers | TRL / ours | TRL / ours with the attention term "
        "| eager attention / ours with it | the term's cost | limit |",
        "|---|---|---|---|---|---|",
    ]
    for name in UPDATE_STEPS:
        result = json.loads((ROOT / f"benchmarks/results/update_step-{name}.json").read_text(encoding="utf-8"))
        setting, plain, attention = (
            result["setting"],
            result["time_ratio"]["ours"],
            result["time_ratio"]["ours+attention"],
        )
        eager = f"{attention['eager+attention']:.1f}×" if "eager+attention" in attention else "–"
        lines.append(
            f"| {setting['prompt_tokens']}, {setting['completion_tokens']}, {setting['layers']} | {plain['trl']:.1f}× "
            f"| {attention['trl']:.1f}× | {eager} | {100 * (plain['ours+attention'] - 1):+.0f} % "
            f"| {result['token_ratio_limit']:.1f}× |"
        )
    machine = result["environment"]["machine"]
    lines.append(
        f"\nForward and backward of one group of G = 8 in float32 on {setting['threads']} threads of a "
        f"{machine['cpu_count']}-core CPU, medians of paired rounds, seed 0; *limit* is the ratio of tokens, "
        "G(P+R)/(P+GR), and what lies above it is the frozen vision tower, which runs once per prompt. "
        "`python -m benchmarks.update_step --help`.\n"
    )
    return "\n".join(lines)


FIGURES = {"seeds": seeds, "update_step": update_step}


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
