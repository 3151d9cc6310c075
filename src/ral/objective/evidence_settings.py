"""The settings of the anchor `evidence`, declared once: where the evidence comes from, and how rows are pulled to it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal, get_args

from ral.data.placebo import MOVES, Control
from ral.data.settings import setting
from ral.data.unread import Reader, chosen
from ral.errors import ConfigError
from ral.families import BoxSpace
from ral.objective.anchors import ANCHORS
from ral.objective.divergence import DIVERGENCES

EvidenceSource = Literal["data", "completion", "masking"]
EvidenceTarget = Literal["raised", "mixture"]
EvidenceRows = Literal["answer", "all", "first"]

#: Values of the fields with a set of choices.
EVIDENCE_CHOICES: dict[str, Collection[str | None]] = {
    "evidence_from": get_args(EvidenceSource),
    "evidence_box_space": (None, *get_args(BoxSpace)),
    "evidence_target": get_args(EvidenceTarget),
    "evidence_divergence": DIVERGENCES,
    "evidence_rows": get_args(EvidenceRows),
    "evidence_control": get_args(Control),
}

_EVIDENCE = Reader(
    ("attention_anchor",),
    lambda settings: ANCHORS[settings.attention_anchor].uses("evidence"),
    "attention_anchor to evidence",
)
_MIXTURE = chosen("evidence_target", ("mixture",))

#: What reads each setting.
EVIDENCE_READERS: dict[str, tuple[Reader, ...]] = {
    "evidence_from": (_EVIDENCE,),
    "evidence_target": (_EVIDENCE,),
    "evidence_divergence": (_EVIDENCE,),
    "evidence_rows": (_EVIDENCE,),
    "evidence_reward": (_EVIDENCE,),
    "evidence_control": (_EVIDENCE,),
    "evidence_box_space": (_EVIDENCE, chosen("evidence_from", ("completion",))),
    "evidence_blocks": (_EVIDENCE, chosen("evidence_from", ("masking",))),
    "evidence_first": (_EVIDENCE, chosen("evidence_rows", ("first",))),
    "evidence_sigma": (_EVIDENCE, _MIXTURE),
    "evidence_background": (_EVIDENCE, _MIXTURE),
}


@dataclass
class EvidenceFields:
    """The settings of the anchor `evidence`, as a base class of larger settings.

    EASE (arXiv 2605.30912) is `evidence_target: mixture`, `evidence_divergence: kl`, `evidence_rows: first`,
    `evidence_reward: 0.5`, `attention_coef: 0.001`, and `attention_layers` at two thirds of the depth.
    """

    evidence_from: EvidenceSource = setting(
        "data",
        "Where evidence comes from: data (boxes, spans), completion (boxes that the rollout states) or masking (what the answer needs).",
    )
    evidence_box_space: BoxSpace | None = setting(
        None,
        "In what the model writes boxes, for evidence_from: completion: image, resized, thousandths, thousandths_yx, unit or loc; None: as its family does.",
    )
    evidence_blocks: int = setting(
        4,
        "Rows and columns of blocks that every image and video is cut into, to be masked one by one, for evidence_from: masking.",
    )
    evidence_target: EvidenceTarget = setting(
        "raised",
        "Target rows: the old rows raised by e on the evidence (raised), or Gaussians on its boxes (mixture; EASE).",
    )
    evidence_divergence: str = setting("jsd", "Divergence from the target rows: jsd or kl (KL(policy ‖ target); EASE).")
    evidence_rows: EvidenceRows = setting(
        "answer", "Rows that look at the evidence: of the answer, all, or the first ones of a completion (EASE)."
    )
    evidence_first: int = setting(64, "Number of first rows, for evidence_rows: first (EASE: 64).")
    evidence_reward: float | None = setting(
        None, "Least reward of the completions whose rows are trained (EASE: 0.5); None: all."
    )
    evidence_sigma: float = setting(
        0.25, "Standard deviation of a box's Gaussian in widths and heights of the box (EASE: 0.25)."
    )
    evidence_background: float = setting(
        0.1, "Mass of the mixture that is spread evenly over all visual tokens (EASE: 0.1)."
    )
    evidence_control: Control = setting(
        "none",
        "Placebo boxes of the same size: centre, rolled, random, or shuffled between prompts; spoiled ones: noisy, half; none: the true ones.",
    )

    def check_evidence(self, keys: str, prompts_per_batch: int) -> None:
        """Raise ConfigError for values out of range, and for combinations that would do something else.

        Args:
            keys: the setting `attention_keys`. prompts_per_batch: groups in one micro-batch.
        """
        for name, low in {"evidence_first": 1, "evidence_blocks": 1, "evidence_background": 0}.items():
            if getattr(self, name) < low:
                raise ConfigError(f"{name} must be at least {low}, got {getattr(self, name)}")
        if self.evidence_background >= 1:
            raise ConfigError(f"evidence_background must be below 1, got {self.evidence_background}")
        if self.evidence_sigma <= 0:
            raise ConfigError(f"evidence_sigma must be positive, got {self.evidence_sigma}")
        self._check_target(keys)
        self._check_control(prompts_per_batch)

    def _check_target(self, keys: str) -> None:
        if self.evidence_target != "mixture":
            return
        if self.evidence_from == "masking":
            raise ConfigError(
                "evidence_target='mixture' is made of boxes, and evidence_from='masking' finds none; set evidence_target='raised'"
            )
        if self.evidence_divergence == "kl" and (keys not in ("visual", "interior") or not self.evidence_background):
            raise ConfigError(
                "evidence_divergence='kl' is infinite where the mixture has no mass; set attention_keys='visual' and "
                "evidence_background above 0, or evidence_divergence='jsd'"
            )

    def _check_control(self, prompts_per_batch: int) -> None:
        control: Any = self.evidence_control
        if control == "none":
            return
        if self.evidence_from == "masking" or (self.evidence_from == "completion" and control not in MOVES):
            raise ConfigError(
                f"evidence_control={control!r} moves boxes, and evidence_from={self.evidence_from!r} has none of this kind; set "
                "evidence_from='data', or leave evidence_control out"
            )
        if control == "shuffled" and prompts_per_batch < 2:
            raise ConfigError(
                "evidence_control='shuffled' exchanges boxes between the prompts of a micro-batch, and this run has one; raise "
                "per_device_train_batch_size to at least twice num_generations"
            )
