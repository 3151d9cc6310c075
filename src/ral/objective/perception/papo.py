"""PAPO (arXiv 2507.06448): the answer under a masked image should be unlikely. A KL to it is maximised.

From the paper and its code (MikeWangWZHL/PAPO): the KL is estimated by k3 on the sampled tokens, its value bounded by 10; the masked
pass is that of the policy at sampling and has no gradient (`RECOMPUTE_AUG_LOG_PROBS=False`); squares of 14 pixels are black with
probability 0.6; γ = 0.01 (PAPO-D, and PAPO-G of 3B) or 0.02 (PAPO-G of 7B). The double entropy loss adds η times the entropies of
both, estimated by −log π of the sampled tokens; that of the masked pass has no gradient in this setting, so it is left out.

Text has no term: without an image the masked pass would be the policy at sampling, and later updates would flee that.
"""

from __future__ import annotations

from torch import Tensor

from ral.objective.perception.state import PerceptionSettings, k3
from ral.objective.terms import Mean, Term

#: Bound on the KL estimate of a token, beyond which it is not pushed further.
MAX_KL = 10.0


def perception_term(logps: Tensor, masked_logps: Tensor, weights: Tensor, settings: PerceptionSettings) -> Term:
    """Σ w · (−γ · k3(π ‖ π_masked) − η · log π): γ is `perception_coef`, η `perception_entropy_coef`.

    Args:
        logps, masked_logps, weights: `[G, R]`; the first with gradient.
    """
    kl = k3(logps, masked_logps.detach()).clamp(max=MAX_KL)
    per_token = -settings.perception_coef * kl - settings.perception_entropy_coef * logps
    return Term((per_token * weights).sum(), {"perception/kl": Mean.over(kl, weights > 0)})
