"""The page and figure of measured performance: `python -m benchmarks.page [FOLDER]`.

Takes the results of a suite in FOLDER into `benchmarks/results`, if one is given, and writes `docs/performance.md` and
`docs/assets/performance.svg` from what is there.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from benchmarks.common import RESULTS
from benchmarks.suite import ATTENTION, EAGER, OURS, TRL
from ral.files import atomic_write_text

DOCS = Path(__file__).parents[1] / "docs"
FIGURE = DOCS / "assets" / "performance.svg"
Result = dict[str, Any]


@dataclass(frozen=True)
class Target:
    """A figure that was promised: at least, or at most, `bound`."""

    what: str
    bound: float
    measured: float | None
    unit: str = "×"
    at_most: bool = False

    def line(self) -> str:
        sign = "≤" if self.at_most else "≥"
        if self.measured is None:
            return f"| {self.what} | {sign} {self.bound:g} {self.unit} | not measured | |"
        met = self.measured <= self.bound if self.at_most else self.measured >= self.bound
        return f"| {self.what} | {sign} {self.bound:g} {self.unit} | {self.measured:.3g} {self.unit} | {'yes' if met else '**no**'} |"


class Results:
    """What was measured, by benchmark and sizes."""

    def __init__(self, folder: Path):
        found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
        self.all = [result for result in found if "benchmark" in result]  # others have pages of their own

    def of(self, benchmark: str, **sizes: Any) -> Iterator[Result]:
        for result in self.all:
            if result["benchmark"] == benchmark:
                setting = result.get("setting", {})
                if all(setting.get(name) == value for name, value in sizes.items()):
                    yield result

    def ratio(self, peer: str, own: str, benchmark: str, **sizes: Any) -> float | None:
        """How many times longer the peer takes, paired by round; None where it was not measured."""
        found = [r["time_ratio"][own][peer] for r in self.of(benchmark, **sizes) if {peer, own} <= r["seconds"].keys()]
        return found[0] if found else None

    def memory(self, peer: str, own: str, benchmark: str, **sizes: Any) -> float | None:
        """How many times more memory the peer takes above what it starts from."""
        found = [r["memory_gib"] for r in self.of(benchmark, **sizes) if {peer, own} <= r["seconds"].keys()]
        return found[0][peer] / found[0][own] if found else None


def targets(results: Results) -> list[Target]:
    """Every promise with what was measured."""
    small: dict[str, Any] = {"layers": 2, "hidden": 128, "images": 1, "image_size": 240, "group": 8}
    large, deep = small | {"layers": 12, "hidden": 512}, small | {"layers": 12}
    long = {"layers": 12, "images": 4}
    step, found = "update_step", []
    for tokens, bound in ((16, 5.0), (64, 3.5), (256, 2.0)):
        measured = results.ratio(TRL, ATTENTION, step, completion_tokens=tokens, **small)
        found.append(Target(f"TRL's update / ours with the attention term, R = {tokens}", bound, measured))
    for tokens in (16, 64):
        sizes = large | {"completion_tokens": tokens}
        limit = [r["facts"][ATTENTION]["token_ratio_limit"] for r in results.of(step, **sizes)]
        measured = results.ratio(TRL, ATTENTION, step, **sizes)
        share = None if measured is None else 100 * measured / limit[0]
        found.append(
            Target(f"the same as a share of the ratio of tokens, 47M parameters, R = {tokens}", 80, share, "%")
        )
    for name, sizes in (("1000", deep | {"completion_tokens": 64}), ("4000", long)):
        for kind, ratio in (("time", results.ratio), ("peak memory", results.memory)):
            cost = ratio(ATTENTION, OURS, step, **sizes)
            percent = None if cost is None else 100 * (cost - 1)
            found.append(Target(f"the attention term's {kind}, 12 layers, P ≈ {name}", 5, percent, "%", at_most=True))
    sizes = small | {"completion_tokens": 16}
    found += [
        Target("eager attention's update / ours with the term", 12, results.ratio(EAGER, ATTENTION, step, **sizes)),
        Target("eager attention's peak memory / ours", 8, results.memory(EAGER, ATTENTION, step, **sizes)),
        Target("TRL's peak memory / ours, P ≈ 4000", 4, results.memory(TRL, ATTENTION, step, images=4, group=8)),
    ]
    for name, think, bound in (("thinking, R = 48", True, 2.5), ("RAL-zero, R = 8", False, 4.0)):
        measured = results.ratio(TRL, OURS, "training_step", think=think, image_size=240)
        found.append(Target(f"TRL's whole step / ours, {name}", bound, measured))
    for layers in (2, 12):
        measured = results.ratio("generate", OURS, "rollout", completion_tokens=48, prompts=1, layers=layers)
        found.append(Target(f"`generate` / our rollout, R = 48, {layers} layers", 3, measured))
    memory, time = growth(results)
    found.append(Target("memory per token at 16k visual tokens / at 1k", 1.1, memory, at_most=True))
    found.append(Target("time at 16k visual tokens / at 1k (attention alone: 256)", 256, time, at_most=True))
    for lengths in ("sampled", "equal"):
        speedup = [r["speedup"][lengths] for r in results.of("processes")]
        what = f"two processes / one, a core each, the same batches, completions of {lengths} length"
        found.append(Target(what, 1.8, speedup[0] if speedup else None))
    minutes = [r["whole"] / 60 for r in results.of("quickstart")]
    what = "the quickstart: training, evaluation and report"
    found.append(Target(what, 3, minutes[0] if minutes else None, "min", at_most=True))
    return found


def by_length(results: Results) -> list[tuple[int, float, float]]:
    """Tokens, seconds and GiB of our update with the attention term over the length of the prompt."""
    points = results.of("update_step", image_size=256, completion_tokens=16, layers=2, hidden=128)
    return sorted(
        (r["facts"][ATTENTION]["prompt_tokens"], r["seconds"][ATTENTION], r["memory_gib"][ATTENTION]) for r in points
    )


def growth(results: Results) -> tuple[float | None, float | None]:
    """Of the longest prompt against the shortest: memory per token, and time."""
    points = by_length(results)
    if len(points) < 2:
        return None, None
    (short, fast, little), (long, slow, much) = points[0], points[-1]
    return (much / long) / (little / short), slow / fast


def figure(results: Results) -> None:
    plt.rcParams["svg.hashsalt"] = "ral"  # the same results give the same file
    picture, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), constrained_layout=True)
    sizes = {"layers": 2, "hidden": 128, "images": 1, "image_size": 240, "group": 8, "frames": 0}
    points = sorted(
        (
            r["setting"]["completion_tokens"],
            r["time_ratio"][ATTENTION][TRL],
            r["facts"][ATTENTION]["token_ratio_limit"],
        )
        for r in results.of("update_step", **sizes)
        if TRL in r["seconds"]
    )
    if points:
        tokens, measured, limit = zip(*points, strict=True)
        left.plot(tokens, measured, "o-", label="measured")
        left.plot(tokens, limit, "--", color="grey", label="ratio of tokens G(P+R)/(P+GR)")
        left.set(
            xscale="log",
            xlabel="completion tokens R",
            ylabel="TRL's time / ours with the term",
            title="Update, P ≈ 1000, G = 8",
        )
        left.set_ylim(bottom=0)
        left.legend()
    lengths = by_length(results)
    if lengths:
        prompt, seconds, memory = zip(*lengths, strict=True)
        right.plot(prompt, seconds, "o-", label="seconds")
        right.plot(prompt, memory, "s-", label="peak memory, GiB")
        right.plot(prompt, [memory[0] * p / prompt[0] for p in prompt], ":", color="grey", label="memory, if linear")
        right.set(xscale="log", yscale="log", xlabel="prompt tokens P", title="Update over the prompt's length")
        right.legend()
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    picture.savefig(FIGURE, metadata={"Date": None})
    plt.close(picture)


def table(results: Results, benchmark: str, unit: str) -> str:
    """Every cell of a benchmark, an arm a line."""
    lines = [
        f"| prompt, R, G, prompts, model | arm | seconds | {unit} a second | of matmul peak | peak GiB |",
        "|---|---|---|---|---|---|",
    ]
    for result in results.of(benchmark):
        s = result["setting"]
        for arm, seconds in result["seconds"].items():
            seen = "video" if s["frames"] else ""
            sizes = f"{result['facts'][arm]['prompt_tokens']} {seen}, {s['completion_tokens']}, {s['group']}, {s['prompts']}"
            lines.append(
                f"| {sizes}, {s['layers']}×{s['hidden']} | {arm} | {seconds:.3g} | {result['items_per_second'][arm]:.0f} "
                f"| {100 * result['share_of_matmul_peak'][arm]:.0f} % | {result['memory_gib'][arm]:.2f} |"
            )
    return "\n".join(lines)


UNITS = {
    "update_step": ("Update", "tokens of the packed row"),
    "rollout": ("Rollout", "sampled tokens"),
    "training_step": ("Whole step: data, rollout, reward, two updates", "sampled tokens"),
    "evaluation": ("Evaluation", "records"),
    "data_loading": ("Data loading", "records"),
}


def targets_table(results: Results) -> str:
    lines = [target.line() for target in targets(results)]
    return "\n".join(["| what | promised | measured | met |", "|---|---|---|---|", *lines])


def conditions(results: Results) -> str:
    """Where and how all of it was measured, as a sentence."""
    machines = {
        (r["environment"]["machine"]["cpu_count"], r["environment"]["machine"]["architecture"]) for r in results.all
    }
    commits = {r["environment"]["commit"][:7] for r in results.all}
    threads = {str(r["threads"]) for r in results.all if "threads" in r}
    return (
        f"{', '.join(f'{count}-core {kind} CPU' for count, kind in sorted(machines))}, {', '.join(sorted(threads))} threads, float32, "
        f"random weights, commit {', '.join(sorted(commits))}."
    )


def against_earlier(result: Result) -> str:
    """The whole step, its rollouts and an evaluation against an earlier commit."""
    what = {
        "step": "16 prompts × 8 completions of 48 tokens, a prompt a micro-batch, two updates: the whole step",
        "rollouts": "its rollouts",
        "step_clock": "the whole step, wall-clock",
        "evaluation": "an evaluation while training, images, videos and texts",
    }
    lines = ["| what | before | now | ratio |", "|---|---|---|---|"]
    for name, text in what.items():
        before, now = (result["seconds"][arm][name] for arm in ("before", "now"))
        lines.append(f"| {text} | {before:.3g} s | {now:.3g} s | {result['ratio'][name]:.3g} × |")
    return "\n".join(lines)


def page(results: Results) -> str:
    parts = [
        "# Performance\n",
        "Written by `python -m benchmarks.page` from `benchmarks/results`, which `python -m benchmarks.suite` measures. "
        f"{conditions(results)} The arms of a cell are timed in turn, and a ratio is the median of the ratios of its rounds; memory is "
        "what a step adds to the process. The docstring of each file in `benchmarks` describes its arms.\n",
        "![Time against TRL's, and time and memory over the prompt's length](assets/performance.svg)\n",
        targets_table(results),
    ]
    for name, (title, unit) in UNITS.items():
        if any(results.of(name)):
            parts += [f"\n## {title}\n", table(results, name, unit)]
    for result in results.of("earlier"):
        parts += [
            f"\n## Against commit {result['before']}\n",
            f"Written by `python -m benchmarks.earlier`, {result['threads']} threads, medians of {result['rounds']} rounds in turn. "
            "CPU seconds of the process, unless it says wall-clock.\n",
            against_earlier(result),
        ]
    return "\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path)
    folder = parser.parse_args().folder
    for path in sorted(folder.glob("*.json")) if folder else ():
        shutil.copy(path, RESULTS / path.name)
    results = Results(RESULTS)
    figure(results)
    atomic_write_text(DOCS / "performance.md", page(results))


if __name__ == "__main__":
    main()
