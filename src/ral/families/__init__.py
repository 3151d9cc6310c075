"""What one family of models needs to be trained: a small file each, behind one base of defaults.

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
