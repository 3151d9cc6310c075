"""Whether rewards read the data's solutions: data without any is fine where none does."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

from ral.rewards.calls import RewardFunction
from ral.rewards.functions import REGISTRY, load_reward
from ral.rewards.models import is_model
from ral.rewards.overlong import OVERLONG

#: Parameters that a function gets the solutions by.
_SOLUTIONS = {"solution", "solutions"}


def judges_answers(functions: Sequence[str | RewardFunction] | None) -> bool:
    """Whether a scorer of this package judges answers against solutions; None stands for the default rewards."""
    return functions is None or any(one in REGISTRY and one != "format" for one in functions if isinstance(one, str))


def reads_solutions(functions: Sequence[str | RewardFunction] | None) -> bool:
    """Whether a reward needs solutions: a scorer of this package, or a function with a parameter `solution` or `solutions`.

    Raises RewardError for a function that cannot be loaded.
    """
    if judges_answers(functions):
        return True
    functions = [one for one in functions or () if one != OVERLONG and not (isinstance(one, str) and is_model(one))]
    own = [load_reward(one) if isinstance(one, str) else one for one in functions]
    return any(_SOLUTIONS & inspect.signature(function).parameters.keys() for function in own)
