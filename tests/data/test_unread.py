"""What is refused as unread, on settings of our own; those of a run are pinned in `tests/test_config.py`."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from ral.data.unread import above_zero, chosen, given, refuse_unread
from ral.errors import ConfigError


@dataclass
class Some:
    weight: float = 0.0
    kind: str = "plain"
    folder: str | None = None
    width: int = 3
    places: list[int] = field(default_factory=lambda: [1])


READERS = {
    "width": (above_zero("weight"), chosen("kind", ("wide", "broad"))),
    "places": (given("folder", "folder to a path"),),
}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (Some(width=4), r"width=4 does nothing with weight=0\.0; set weight above 0, or leave width out"),
        (
            Some(width=4, weight=1),
            "width=4 does nothing with kind='plain'; set kind to wide or broad, or leave width out",
        ),
        (Some(places=[]), r"places=\[\] does nothing with folder=None; set folder to a path, or leave places out"),
    ],
)
def test_the_first_reader_that_is_missing_is_told(settings: Some, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        refuse_unread(settings, READERS)


@pytest.mark.parametrize("settings", [Some(), Some(width=3, places=[1]), Some(1, "broad", "here", 4, [])])
def test_defaults_and_what_is_read_are_taken(settings: Some) -> None:
    refuse_unread(settings, READERS)
