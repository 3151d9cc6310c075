"""Boxes that a text states."""

from __future__ import annotations

from ral.rewards.boxes import stated_boxes


def test_boxes_are_found_in_prose_in_every_way_that_models_write_them() -> None:
    text = 'a [1, 2, 3, 4] b "bbox_2d": [10,20, 30.5,40] c <box>5 6 7 8</box> d (100,200),(300,400) e [9, 9, 1, 1] f (1, 2, 3)'
    found = stated_boxes(text)
    assert [one.box for one in found] == [(1, 2, 3, 4), (10, 20, 30.5, 40), (5, 6, 7, 8), (100, 200, 300, 400)]
    assert [text[one.end] for one in found] == ["]", "]", ">", ")"]
