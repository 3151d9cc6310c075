"""The headline of the page: the result and its certainty."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ral.report.artefacts import count, numbers
from ral.report.differences import Difference, reference_index, short_label, start_index
from ral.report.experiment import Experiment
from ral.report.findings import TableRow
from ral.report.templating import percent


@dataclass(frozen=True)
class Headline:
    """The sentence on top of the page as (text, colour of the arm or None) parts, and beneath it how sure it is."""

    parts: list[tuple[str, int | None]]
    certainty: str


def headline(
    experiment: Experiment, task: str | None, table: Sequence[TableRow], found: Sequence[Difference]
) -> Headline:
    """The result and its certainty, from the comparisons alone."""
    scored = [row for row in table if row.accuracy is not None]
    if experiment.running:
        return _progress(experiment)
    if task is None or not scored:
        return Headline([("Trained, not yet evaluated.", None)], "")
    start, reference = start_index(experiment.arms), reference_index(experiment.arms)
    if len(scored) == 1:
        (row,) = scored
        parts: list[tuple[str, int | None]] = [(percent(row.accuracy), row.arm), (" of the answers are right.", None)]
        return Headline(parts, _certainty(scored, ()))
    before = next((row for row in scored if row.arm == start), None)
    trained = [row for row in scored if row.arm != start]
    parts = _learned(before, trained, [one for one in found if one.against == start])
    against = [one for one in found if one.against == reference]
    if against:
        parts += [(" ", None), *_attention(against)]
    return Headline(parts, _certainty(scored, found))


def _progress(experiment: Experiment) -> Headline:
    """Progress of the unfinished runs."""
    parts: list[tuple[str, int | None]] = [("In training: ", None)]
    for index, arm in enumerate(experiment.arms):
        steps, last = numbers(arm.first.metrics, "step"), count(arm.first.config.get("max_steps"))
        if steps:
            share = f"step {max(steps):,.0f}" + (f" of {last:,}" if last and last > 0 else "")
            parts += [(f"{short_label(arm.label)} ", None), (share, index), (", ", None)]
    return Headline([*parts[:-1], (".", None)] if len(parts) > 1 else [("In training.", None)], "")


def _learned(
    before: TableRow | None, trained: Sequence[TableRow], found: Sequence[Difference]
) -> list[tuple[str, int | None]]:
    """Accuracy at the start and at the end of training."""
    low, high = (pick(trained, key=lambda row: row.accuracy or 0.0) for pick in (min, max))
    ends: list[tuple[str, int | None]] = [(percent(high.accuracy), high.arm)]
    if percent(low.accuracy) != percent(high.accuracy):
        ends = [(f"{100 * (low.accuracy or 0.0):.0f}", low.arm), ("–", None), *ends]
    if before is None:
        return [("The arms end at ", None), *ends, (".", None)]
    if all(one.clear and one.difference > 0 for one in found) and found:
        verb = "Training lifts accuracy from "
    elif any(one.clear for one in found):
        verb = "Training moves accuracy from "
    else:
        verb = "No clear effect of training: accuracy goes from "
    return [(verb, None), (percent(before.accuracy), before.arm), (" to ", None), *ends, (".", None)]


def _attention(found: Sequence[Difference]) -> list[tuple[str, int | None]]:
    """The arms that differ from the reference."""
    other = found[0].other
    clear = [one for one in found if one.clear]
    if not clear:
        said = f"Nothing sets {found[0].name} apart" if len(found) == 1 else "No other arm is clearly apart"
        return [(f"{said} from {other}.", None)]
    best = max(clear, key=lambda one: abs(one.difference))
    way = "ahead of" if best.difference > 0 else "behind"
    size = f"{abs(best.difference) * 100:.1f} points"
    name = best.name.replace("-", "\u2011")  # large type must not break inside a name
    return [(f"{name} is ", None), (size, best.arm), (f" {way} {other}.", None)]


def _certainty(scored: Sequence[TableRow], found: Sequence[Difference]) -> str:
    """The certainty of the headline, in words."""
    seeds = [one.n for one in found if one.over == "seeds"]
    items = sorted({row.n for row in scored if row.n})
    held_out = f"{items[0]:,} held-out items" if len(items) == 1 else "held-out items"
    if len(scored) == 1:
        (row,) = scored
        if row.interval is None:
            return f"Measured on {held_out}."
        spread = f"95 % interval {percent(row.interval[0], 1)} to {percent(row.interval[1], 1)}"
        over = f"over {row.seeds} seeds" if row.seeds > 1 else f"over {held_out}; one training run"
        return f"{spread} {over}."
    if seeds:
        count = f"{min(seeds)}" if min(seeds) == max(seeds) else f"{min(seeds)} to {max(seeds)}"
        return (
            f"Over {count} paired seeds with {held_out} each; “clear” is p < 0.05 after adjusting for all comparisons."
        )
    return (
        f"One training run for each arm, {held_out}: the intervals say what other items would change, not what another "
        "seed would."
    )
