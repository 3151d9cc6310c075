"""Model families: one small file per family says what differs from the defaults.

Nothing outside this room asks for the name of an architecture.
"""

from ral.families.family import BoxSpace, Family, VisualToken
from ral.families.registry import family_of, family_of_processor, known_types, register

__all__ = [
    "BoxSpace",
    "Family",
    "VisualToken",
    "family_of",
    "family_of_processor",
    "known_types",
    "register",
]
