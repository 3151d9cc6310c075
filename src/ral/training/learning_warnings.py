"""Warns of a run that learns nothing, or the wrong thing."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Mapping
from itertools import chain
from statistics import mean
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

logger = logging.getLogger(__name__)

#: Logged rows that a warning looks back on.
WINDOW = 20
#: Rows without a single reward that are said at once.
WITHOUT_REWARD = 10
#: A mean reward below this share of the best one, over windows, is a collapse.
COLLAPSED = 0.5
#: Groups without signal above this share are a run that learns next to nothing.
DEAD = 0.9
#: An attention gradient above this multiple of the token gradient drowns it.
EXPLODED = 10.0

#: Why evidence may never be known, by `evidence_from`, and what to do.
WITHOUT_EVIDENCE = {
    "data": "Likely reasons: boxes are on frames that are not sampled: raise num_frames or fps; all are cropped away; or the records drawn have none.",
    "completion": "No completion states a box with words behind it, or all are left out (attention/boxes_left_out): see samples.jsonl; ask for a box "
    "before the answer (prompt_template), teach it by `ral sft`, or choose another evidence_from.",
    "masking": "No answer could be read, or hiding a block never made one less likely: see samples.jsonl; change evidence_blocks, or choose "
    "another evidence_from.",
}
#: The same, where evidence is known and yet no row looks at it.
WITHOUT_ROWS = (
    "Likely reasons: no completion earns evidence_reward: lower it; no answer could be read, which evidence_rows: answer needs; or "
    "(evidence_from: completion) the first box is the answer itself, and only rows behind it are trained: ask for a box before the "
    "answer (prompt_template), or take the boxes of the data. See samples.jsonl."
)


class LearningWarnings(TrainerCallback):
    """Warns, with advice and once per cause, of runs that learn nothing or the wrong thing."""

    def __init__(self) -> None:
        self._rows: dict[str, deque[float]] = {}
        self._best = 0.0
        self._warned: set[str] = set()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if not logs or "loss" not in logs or not state.is_world_process_zero:
            return
        for name in (
            "reward",
            "reward_std",
            "reward/format",
            "truncated",
            "groups_without_signal",
            "grad/attention_norm",
            "grad/attention_to_token",
            "attention/without_evidence",
            "attention/evidence_rows",
        ):
            if name in logs:
                self._rows.setdefault(name, deque(maxlen=WINDOW)).append(logs[name])
        attends = getattr(args, "attention_coef", 0) > 0
        for cause, advice in chain(
            self._found(attends), self._found_of_evidence(getattr(args, "evidence_from", "data")) if attends else ()
        ):
            if cause not in self._warned:
                self._warned.add(cause)
                logger.warning("step %d: %s. %s", state.global_step, cause, advice)

    def _found(self, attends: bool) -> Iterator[tuple[str, str]]:
        """Causes, without numbers so that each is one, and what to do."""
        if self._is_without_reward():
            yield f"all rewards have been 0 for {WITHOUT_REWARD} steps", self._why_without_reward()
        if (rewards := self._full("reward")) is not None:
            self._best = max(self._best, mean(rewards))
            if mean(rewards) < COLLAPSED * self._best:
                yield (
                    "the reward has collapsed to less than half of its best",
                    "Look at samples.jsonl; lower learning_rate or attention_coef, raise beta, and go back to a checkpoint "
                    "before the fall.",
                )
        if (dead := self._full("groups_without_signal")) is not None and mean(dead) > DEAD:
            yield (
                "nearly all groups have equal rewards, and train nothing",
                "Take prompts that are neither solved nor hopeless, raise temperature or num_generations, and check the "
                "reward function on samples.jsonl.",
            )
        if attends and (norms := self._full("grad/attention_norm")) is not None and max(norms) == 0:
            yield (
                "the attention term has no gradient",
                "Its rows cancel inside the groups (attention/cancelled near 1: one-token answers) or rewards are equal; "
                "set think to true, attention_query to predictor, or choose attention_anchor explore.",
            )
        if (ratios := self._full("grad/attention_to_token")) is not None and mean(ratios) > EXPLODED:
            yield (
                "the attention gradient is more than ten times the token gradient",
                "Lower attention_coef, or set attention_share, which keeps it at a share of the token gradient.",
            )

    def _found_of_evidence(self, source: str) -> Iterator[tuple[str, str]]:
        """As `_found`, of the anchor `evidence`, which trains rows of rollouts with known evidence alone; `source`: `evidence_from`."""
        unknown, trained = self._full("attention/without_evidence"), self._full("attention/evidence_rows")
        if unknown is not None and min(unknown) >= 1:
            yield f"no rollout has had known evidence for {WINDOW} logged steps", WITHOUT_EVIDENCE[source]
        if trained is not None and max(trained) == 0:
            yield (
                f"rollouts have known evidence, and for {WINDOW} logged steps no row of them was trained",
                WITHOUT_ROWS,
            )

    def _is_without_reward(self) -> bool:
        """Whether every reward was 0 in all rows looked back on: a mean of 0 may hide rewards of both signs."""
        rewards, spread = self._rows.get("reward", ()), self._rows.get("reward_std", ())
        return WITHOUT_REWARD <= len(rewards) == len(spread) and not any(rewards) and not any(spread)

    def _why_without_reward(self) -> str:
        """The likely reasons, by what was measured beside."""
        reasons = []
        if "truncated" in self._rows and mean(self._rows["truncated"]) > 0.5:
            reasons.append("most completions are cut at max_completion_length: raise it")
        if "reward/format" in self._rows and not any(self._rows["reward/format"]):
            reasons.append(
                "none has the tags that are asked for: see the prompt in samples.jsonl (template, prompt_template, think), or run "
                "`ral sft` first"
            )
        reasons.append(
            "no answer is right as it is scored: compare completion and solution in samples.jsonl, and check the reward function and scorer"
        )
        return "Likely reasons: " + "; ".join(reasons) + "."

    def _full(self, name: str) -> deque[float] | None:
        rows = self._rows.get(name)
        return rows if rows is not None and len(rows) == WINDOW else None
