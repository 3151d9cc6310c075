"""easy-vqa (PyPI, third party): synthetic shapes, 13 answers; about three quarters are yes or no."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from ral.data.record import Record
from ral.errors import DataError, MissingPackageError


def easy_vqa_records(split: Literal["train", "test"], n: int | None = None, seed: int = 0) -> list[Record]:
    """The questions of one split as records: question first, then the 64×64 image; no boxes.

    All of them in the package's order (38,575 train, 9,673 test), or `n` drawn without replacement with `seed`.

    Raises `ImportError` when the package is missing and `DataError` for another split or too large an `n`.
    """
    try:
        import easy_vqa
    except ImportError as error:
        raise MissingPackageError("easy-vqa is not installed; run: pip install -e '.[easy-vqa]'") from error
    if split == "train":
        questions, paths = easy_vqa.get_train_questions(), easy_vqa.get_train_image_paths()
    elif split == "test":
        questions, paths = easy_vqa.get_test_questions(), easy_vqa.get_test_image_paths()
    else:
        raise DataError(f"easy-vqa has no split {split!r}; take 'train' or 'test'")
    rows = list(enumerate(zip(*questions, strict=True)))
    if n is not None:
        if not 1 <= n <= len(rows):
            raise DataError(f"n={n}: easy-vqa's {split} split has 1 to {len(rows)} questions to draw")
        rows = random.Random(seed).sample(rows, n)
    return [
        Record(
            id=f"easy-vqa-{split}-{index}",
            problem=f"{question} <image>",
            solution=answer,
            images=(Path(paths[image]),),
            origin=f"easy-vqa {split} question {index}",
        )
        for index, (question, answer, image) in rows
    ]


def majority_baseline(records: Sequence[Record]) -> tuple[str, float]:
    """The most frequent solution and the accuracy of always giving it; ties go to the one met first.

    Raises `DataError` when there are no records.
    """
    if not records:
        raise DataError("no records: a majority baseline needs at least one")
    [(answer, count)] = Counter(record.solution for record in records).most_common(1)
    return answer, count / len(records)
