"""Vision models that cut an image into tiles of one size."""

from __future__ import annotations

from ral.families.family import Family


class InternVL(Family):
    types = ("internvl",)


class Idefics3(Family):
    types = ("idefics3", "smolvlm")


class LlavaOnevision(Family):
    types = ("llava_onevision",)


class Mistral3(Family):
    types = ("mistral3",)
