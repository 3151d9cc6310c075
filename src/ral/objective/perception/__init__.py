"""Token-side rivals of the attention term: they act on tokens, by how much these depend on the image. One file each.

To add one, write a file with its functions and put it into `PERCEPTION`, under the name that the setting `perception` gives.
"""

from __future__ import annotations

from ral.objective.perception.at_rl import anchor_factors
from ral.objective.perception.papo import perception_term
from ral.objective.perception.state import Perception
from ral.objective.perception.vppo import perception_factors

PERCEPTION: dict[str, Perception] = {
    "none": Perception(),
    "papo": Perception(term=perception_term, masked=True),  # arXiv 2507.06448
    "vppo": Perception(factors=perception_factors, masked=True),  # arXiv 2510.09285
    "at_rl": Perception(factors=anchor_factors, rows=True),  # arXiv 2602.11455
}
