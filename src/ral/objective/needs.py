"""`Needs`: what a run must load and compute besides the policy's own pass, derived once from its settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from ral.objective.anchors import ANCHORS
from ral.objective.perception import PERCEPTION


class ObjectiveSettings(Protocol):
    """The settings of a run (`RALConfig`) that determine its needs."""

    @property
    def attention_coef(self) -> float: ...
    @property
    def attention_anchor(self) -> str: ...
    @property
    def beta(self) -> float: ...
    @property
    def explore_ratio(self) -> str: ...
    @property
    def distill_coef(self) -> float: ...
    @property
    def attention_distill_coef(self) -> float: ...
    @property
    def evidence_from(self) -> str: ...
    @property
    def perception(self) -> str: ...


@dataclass(frozen=True)
class Needs:
    """Requirements of a run's losses. Trainer, planner and configuration read this record instead of single settings.

    Attributes:
        anchor_target: name of the target that attention is trained to; None: the old rows, or nothing.
        targets: names, in `ral.training.targets.TARGETS`, of all that is computed for a rollout batch, in this order.
        rows: every pass of the policy that trains captures its attention rows.
        reference: the start model, for the KL or a target.
        teacher: a teacher.
        look_bias: rollouts are sampled under a look bias, also where attention is not trained.
        evidence: records that say where their evidence is. stated_boxes: the scale of boxes that the model states.
        media: names of the settings that do nothing without images or videos.
        policy_pass: one more pass of the policy for every rollout batch.
    """

    anchor_target: str | None
    targets: tuple[str, ...]
    rows: bool
    reference: bool
    teacher: bool
    look_bias: bool
    evidence: bool
    stated_boxes: bool
    media: tuple[str, ...]
    policy_pass: bool

    @classmethod
    def of(cls, settings: ObjectiveSettings) -> Needs:
        anchor, trained = ANCHORS[settings.attention_anchor], settings.attention_coef > 0
        target = anchor.target if trained else None
        distils = settings.distill_coef > 0 or settings.attention_distill_coef > 0
        look_bias = anchor.uses("explore")
        exact_ratio = look_bias and settings.explore_ratio == "behaviour"
        computed = {
            "ref": settings.beta > 0 or target == "ref",
            "explore": exact_ratio or target == "explore",
            "evidence": trained and anchor.uses("evidence"),
            "teacher": distils or target == "teacher",
        }
        evidence = computed["evidence"] and settings.evidence_from
        rival = PERCEPTION[settings.perception]
        computed["masked"] = rival.masked
        sees = {"evidence_from": evidence in ("completion", "masking"), "perception": settings.perception != "none"}
        own = () if target is None or target in computed else (target,)
        return cls(
            anchor_target=target,
            targets=(*(name for name, wanted in computed.items() if wanted), *own),
            rows=trained or settings.attention_distill_coef > 0 or rival.rows,
            reference=settings.beta > 0 or (trained and anchor.uses("ref")),
            teacher=distils or (trained and anchor.uses("teacher")),
            look_bias=look_bias,
            evidence=evidence == "data",
            stated_boxes=evidence == "completion",
            media=tuple(name for name, wanted in sees.items() if wanted),
            policy_pass=exact_ratio or (trained and anchor.policy_pass) or evidence == "masking" or rival.masked,
        )
