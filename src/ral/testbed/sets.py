"""The registry of the testbed's data sets: generators, sizes and seeds, by purpose.

Recipes (`data: rings`), evaluations (`ral eval --tasks rings`), cold starts (`experiments.testbed.cold_start`) and the planner
read it. A set that is added to `SETS` is known to all of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal, cast

from ral.data.mixture import Mixture, shares
from ral.data.named_sources import Source, named_sets, sources_of
from ral.data.readers import read_records
from ral.data.record import DataError, Record
from ral.testbed.easy_vqa import easy_vqa_records
from ral.testbed.episodes import episode_records, told_records
from ral.testbed.needles import needle_records
from ral.testbed.rings import pointing_records, ring_records
from ral.testbed.shortcut import HINTS, both_ways, shortcut_records

Split = Literal["train", "test"]
#: Draws `n` records with a seed. A longer draw begins with a shorter one of the same seed.
Draw = Callable[[int, int], list[Record]]

#: Seeds of what a recipe trains on and holds out. Evaluations draw with −1, −2, …, and cold starts with 100, 101, …: no image,
#: episode or text is met for two purposes.
SEEDS: Mapping[Split, int] = {"train": 1, "test": 2}
COLD_START_SEED = 100

#: Kinds of questions taught about episodes: more than reinforcement asks, as from one alone the model learns by heart.
TAUGHT = ("colour", "place", "order")


@dataclass(frozen=True)
class EmbeddedSet:
    """One data set of the testbed.

    Attributes:
        sizes: records of a split, where no other number is asked for.
        read: the first `n` records of a split, which recipes train on and hold out.
        evaluated: `n` held-out records (None: the set's own number) of an evaluation with a seed ≥ 0.
        worked: `n` records with worked answers for a cold start, drawn with a seed.
        cluster: the column that names the image that several evaluated records share; "" if none do.
        note: what a reader of its accuracy must know.
    """

    name: str
    sizes: Mapping[Split, int]
    read: Callable[[Split, int], list[Record]]
    evaluated: Callable[[int | None, int], list[Record]]
    worked: Draw
    cluster: str = ""
    note: str = ""


def drawn(name: str, draw: Draw, train: int, test: int, worked: Draw | None = None) -> EmbeddedSet:
    """A set whose records are made by a generator, as many as one likes: every purpose draws with seeds of its own."""
    return EmbeddedSet(
        name=name,
        sizes={"train": train, "test": test},
        read=lambda split, n: draw(n, SEEDS[split]),
        evaluated=lambda n, seed: draw(test if n is None else n, -1 - seed),
        worked=worked or draw,
    )


def _easy_vqa(split: Split, n: int) -> list[Record]:
    records = easy_vqa_records(split)
    if n > len(records):
        raise DataError(f"easy-vqa[:{n}]: the {split} split has {len(records):,} records; ask for no more")
    return records[:n]


def _easy_vqa_evaluated(n: int | None, seed: int) -> list[Record]:
    return [
        replace(record, extra={"image": Path(str(record.images[0])).stem})
        for record in easy_vqa_records("test", n, seed)
    ]


#: How often the hint of a shortcut set is right in training, in per cent.
HINT_RIGHT = (80, 90, 95, 97)


def _shortcut(hint: str, right: int) -> EmbeddedSet:
    """Trained on hints that are right in `right` per cent, tested on hints that are wrong."""

    def read(split: Split, n: int) -> list[Record]:
        share = right / 100 if split == "train" else 0.0
        return shortcut_records(n, SEEDS[split], hint=hint, right=share)

    return EmbeddedSet(
        name=f"shortcut-{hint}-{right}",
        sizes={"train": 4096, "test": 512},
        read=read,
        evaluated=lambda n, seed: shortcut_records(512 if n is None else n, -1 - seed, hint=hint),
        worked=partial(both_ways, hint=hint),
        note="The hint of every question is wrong.",
    )


def _agreeing(hint: str) -> EmbeddedSet:
    """The control of the shortcut sets: the hint is always right."""
    draw = partial(shortcut_records, hint=hint, right=1.0)
    return replace(drawn(f"shortcut-{hint}-100", draw, 4096, 512), note="The hint of every question is right.")


SETS: dict[str, EmbeddedSet] = {
    one.name: one
    for one in (
        drawn("rings", ring_records, 4096, 512),
        drawn("pointed-rings", pointing_records, 4096, 512),  # whose worked thinking states a box
        drawn("episodes", episode_records, 2048, 256, worked=partial(episode_records, questions=TAUGHT)),  # videos
        drawn("told", told_records, 2048, 256, worked=partial(told_records, questions=TAUGHT)),  # episodes in words
        drawn("needles", needle_records, 4096, 512),  # texts
        EmbeddedSet(
            "easy-vqa",
            sizes={"train": 38_575, "test": 9_673},
            read=_easy_vqa,
            evaluated=_easy_vqa_evaluated,
            worked=partial(easy_vqa_records, "train"),
            cluster="image",
            note="About 74 % of the questions are yes or no.",
        ),
        *(_shortcut(hint, right) for hint in HINTS for right in HINT_RIGHT),
        *map(_agreeing, HINTS),
    )
}

_FIRST = re.compile(r"(?P<name>[\w-]+)\[:(?P<n>\d+)\]")


def find_set(source: str) -> tuple[EmbeddedSet, int | None] | None:
    """The set that a recipe's `data` names, and how many of its records: `rings`, or `rings[:1280]` for the first 1,280.

    None where `source` names no set. Raises DataError for a set's name with no records.
    """
    first = _FIRST.fullmatch(source)
    name = first["name"] if first else source
    if name not in SETS:
        return None
    n = int(first["n"]) if first else None
    if n == 0:
        raise DataError(f"{source}: ask for at least one record")
    return SETS[name], n


def load_data(data: Any, split: Split, **reading: Any) -> list[Record]:
    """The records of one split of a testbed's set by name (`find_set`), or whatever `read_records` reads.

    Of several sources (`ral.data.named_sources.sources_of`), the records of all, one source after the other, which training shuffles;
    with weights, a `Mixture` of them. `reading` holds arguments of `read_records`, and what that raises is raised.
    """
    sources = sources_of(data)
    read = [list(read_source(source, split, **reading)) for source in sources]
    if any(source.weight is not None for source in sources):
        return Mixture(read, [1.0 if source.weight is None else source.weight for source in sources])
    return list(chain.from_iterable(read))


def load_sets(data: Any, split: Split = "test", **reading: Any) -> list[Record] | dict[str, list[Record]]:
    """The records of a held-out set, or of several by name, see `ral.data.named_sources.named_sets`."""
    sets = {
        name: [record for source in sources for record in read_source(source, split, **reading)]
        for name, sources in named_sets(data).items()
    }
    return sets.get("", sets)


def read_source(source: Source, split: str, **reading: Any) -> Iterator[Record]:
    """The records of one source, a file's one at a time; no more than its `max_records`.

    Raises DataError for a split that a set of the testbed does not have.
    """
    most = source.max_records
    if (found := find_set(source.path)) is not None:
        one, n = found
        if split not in one.sizes:
            raise DataError(f"{source.path}: has the splits {', '.join(one.sizes)}, not {split!r}")
        known = cast(Split, split)
        n = one.sizes[known] if n is None else n
        return iter(one.read(known, n if most is None else min(n, most)))
    return islice(read_records(source.path, split=split, **{**reading, **source.reading}), most)


def count_data(data: Any, **reading: Any) -> int | None:
    """Records of an epoch, as `load_data` reads them; None where that is not known without loading from elsewhere."""
    sources = sources_of(data)
    if not all(find_set(source.path) or Path(source.path).exists() for source in sources):
        return None
    if len(sources) == 1 and (found := find_set(sources[0].path)) is not None:
        one, n = found
        n = one.sizes["train"] if n is None else n
        return n if sources[0].max_records is None else min(n, sources[0].max_records)
    records = load_data(data, "train", **reading)
    return sum(shares(records.parts)) if isinstance(records, Mixture) else len(records)
