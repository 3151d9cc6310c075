"""The studies: which arms are compared, on what, and with what in common.

The endpoint of every study, fixed before its runs: held-out accuracy of greedy answers at equal numbers of prompts, rollouts
and updates. Where the model looks (pointing game, mass in box) comes second.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Arm:
    """`recipes/testbed/<recipe>.yaml` with `changes`; `label` is what tables call it."""

    recipe: str
    label: str
    changes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """`arms` by name, the first being what the others are compared with; `common` are changes of every arm.

    `note` tells a reader of the page what the study asks; `contrasts` are pairs of an arm and its control, beside the baseline.
    `probes` are further measures of looking at the end of a run, and `control_task` a second task of its evaluation. `fixed_text`: every run also looks while it writes the start's completions.
    """

    title: str
    note: str
    arms: Mapping[str, Arm]
    common: Mapping[str, Any]
    held_out: int
    contrasts: tuple[tuple[str, str], ...] = ()
    probes: str = ""
    control_task: str = ""
    fixed_text: bool = False

    @property
    def baseline(self) -> str:
        return next(iter(self.arms))


_GRPO = Arm("grpo", "GRPO")
_OLD = Arm("ral", "RAL old, λ = 1 (paper)")
_EXPLORE = Arm("explore", "RAL explore, λ = 10, σ = 0.5")
_BIAS = Arm("explore", "its exploration alone, λ = 0", {"attention_coef": 0})
_EVIDENCE = {"attention_anchor": "evidence", "attention_query": "predictor", "attention_keys": "visual"}
_TEXT_EVIDENCE = _EVIDENCE | {"attention_keys": "prompt", "attention_coef": 100}
_THINKING = {"grpo": _GRPO, "old": _OLD, "explore": _EXPLORE, "explore-bias": _BIAS}


def _direct(recipe: str) -> dict[str, Arm]:
    """Arms that answer without thinking, from one recipe of RAL-zero."""
    bias = {"attention_anchor": "explore"}
    return {
        "grpo": Arm(recipe, "GRPO-zero", {"attention_coef": 0}),
        "old": Arm(recipe, "RAL-zero old, λ = 1 (paper)"),
        "explore": Arm(recipe, "RAL-zero explore, λ = 10", {"attention_coef": 10} | bias),
        "explore-bias": Arm(recipe, "its exploration alone, λ = 0", {"attention_coef": 0} | bias),
        "credit": Arm(recipe, "RAL-zero credit, λ = 1", {"attention_anchor": "credit"}),
    }


def _taught(reward_alone: str) -> dict[str, Arm]:
    """Students of the shipped teacher, and what learns from the reward alone."""
    return {
        "tokens": Arm("distill-gkd", "tokens"),
        "attention": Arm("distill-attention", "attention"),
        "both": Arm("distill-both", "tokens and attention"),
        "grpo": Arm("grpo", f"{reward_alone}, no teacher"),
    }


def _told(control: str, label: str, **changes: Any) -> Arm:
    """`evidence` with boxes that are spoiled by `control`."""
    return Arm("evidence", f"RAL evidence, λ = 100, {label}", {"evidence_control": control} | changes)


#: The arms of the primary comparison of the shortcut studies, the only ones of the further hints and shares.
PRIMARY_SHORTCUT = {
    "grpo": _GRPO,
    "old": _OLD,
    "evidence": Arm("evidence", "RAL evidence, λ = 100, boxes"),
    "evidence-centre": _told("centre", "placebo: centre"),
    "evidence-rolled": _told("rolled", "placebo: rolled"),
}
_MORE_SHORTCUT = {
    "evidence-random": _told("random", "placebo: random"),
    "evidence-shuffled": _told("shuffled", "placebo: boxes of other questions"),
    "evidence-noisy": _told("noisy", "noisy boxes"),
    "evidence-half": _told("half", "boxes of half of the questions"),
    "old-5": Arm("ral", "RAL old, λ = 5", {"attention_coef": 5}),
    "old-25": Arm("ral", "RAL old, λ = 25", {"attention_coef": 25}),
    "ref": Arm("ral", "RAL ref, λ = 10", {"attention_anchor": "ref", "attention_coef": 10}),
    "group": Arm("group", "RAL group, λ = 1"),
    "credit": Arm("credit", "RAL credit, λ = 1"),
    "explore": _EXPLORE,
    "grpo-kl": Arm("grpo", "GRPO, β = 0.04", {"beta": 0.04}),
    "grpo-long": Arm("grpo", "GRPO, 220 updates", {"max_steps": 220}),
    "evidence-masking": Arm("evidence", "RAL evidence, λ = 100, what the answer needs", {"evidence_from": "masking"}),
    "ease": Arm("ease", "EASE, λ = 1"),
    "ease-centre": Arm("ease", "EASE, λ = 1, placebo: centre", {"evidence_control": "centre"}),
    "ease-random": Arm("ease", "EASE, λ = 1, placebo: random", {"evidence_control": "random"}),
    "papo": Arm("papo", "PAPO, γ = 0.01"),
    "vppo": Arm("vppo", "VPPO, k = 0.4"),
    "at-rl": Arm("at-rl", "AT-RL, 15 % anchors"),
    "taught": Arm("distill-attention", "attention of a grounded teacher"),
}


#: The first two are primary.
_AGAINST_PLACEBOS = (
    *(("evidence", f"evidence-{placebo}") for placebo in ("centre", "rolled", "random", "shuffled")),
    ("ease", "ease-centre"),
    ("ease", "ease-random"),
    ("ease", "evidence"),
)


def _shortcut(hint: str, right: int, more: Mapping[str, Arm] | None = None) -> Study:
    """Does attention training keep a model looking where reward alone teaches it to follow a hint?"""
    name, arms = f"shortcut-{hint}-{right}", PRIMARY_SHORTCUT | dict(more or {})
    return Study(
        f"Shortcut ({hint}), right in {right} % of the training questions",
        "The claim that training the attention keeps a model looking where reward alone teaches it to guess. A hint is right in "
        f"{right} % of the training questions, and wrong in every held-out one, so that accuracy there is that of the image. "
        "Written down before the first run: the primary endpoint is accuracy on 512 held-out items whose hint is wrong, after 160 "
        "updates, seeds 0 to 9, paired; the primary comparisons are `old` − GRPO, `evidence` − GRPO, and `evidence` − each of its "
        "placebos (`centre`, `rolled`), each at 5 % with its interval, without correction for there being four. They hold at equal "
        "training reward: if the mean reward of the last eighth of an arm's runs is more than 0.02 away from GRPO's, the "
        "comparison is reported as not at equal reward. Seeds 0 to 3 of GRPO, `old` and `evidence` had a first look with another "
        f"start. The start knows both ways; `python -m experiments.testbed.cold_start --data {name} --min_pixels 4096 --max_pixels 4096 "
        f"--steps 120 --learning_rate 5e-4 --output runs/shortcut-{hint}-start` makes it.",
        arms,
        {
            "model": f"runs/shortcut-{hint}-start",
            "data": name,
            "eval_data": name,
            "max_steps": 160,
            "look_steps": 40,
            "look_items": 64,
            "look_probes": "masking",
        },
        held_out=512,
        contrasts=tuple(pair for pair in _AGAINST_PLACEBOS if set(pair) <= arms.keys()),
        probes="masking",
        control_task=f"shortcut-{hint}-100",
        fixed_text=True,
    )


#: Layers and heads of the testbed's model.
_LAYERS, _HEADS = 2, 4


def _heads() -> Study:
    """Which layers and heads are worth training: each alone, their mean, and the one that looks at the evidence at the start."""
    recipes = {
        "evidence": ("evidence", "RAL evidence, λ = 100"),
        "old": ("ral", "RAL old"),
        "explore": ("explore", "RAL explore"),
    }
    arms = {"grpo": _GRPO}
    for name, (recipe, label) in recipes.items():
        for layer in range(_LAYERS):
            where = {"attention_layers": [layer]}
            arms[f"{name}-{layer}"] = Arm(recipe, f"{label}, layer {layer}, mean", where)
            if name != "evidence":
                continue
            for head in range(_HEADS):
                one = where | {"attention_heads": [head]}
                arms[f"{name}-{layer}-{head}"] = Arm(recipe, f"{label}, layer {layer}, head {head}", one)
        chosen = {"attention_heads": {"top": 1, "by": "evidence"}}
        arms[f"{name}-top"] = Arm(recipe, f"{label}, last layer, its best head", chosen)
    return Study(
        "Ring search, thinking: layers and heads",
        "A sweep of `evidence` over every layer and head, and for each anchor the mean of a layer against the one head of the last layer "
        "that looks most at the evidence in the start model (32 training records). Written down before the first run: the sweep is "
        "exploratory (three seeds); primary, on ten seeds, is the best head by the start's looks (`top`) against the mean of the last "
        "layer, for each of the three anchors.",
        arms,
        {"max_steps": 160},
        held_out=512,
        contrasts=tuple((f"{name}-top", f"{name}-{_LAYERS - 1}") for name in recipes),
    )


def _finer(tokens: int, max_steps: int) -> Study:
    """The ring search with every image enlarged to `tokens` visual tokens (64 as it is)."""
    pixels = 64 * tokens  # a visual token is 8×8 pixels
    return Study(
        f"Ring search, thinking, {tokens:,} visual tokens",
        "The same images, enlarged by the processor, so that the same ring is spread over more tokens. The cold start is made by "
        f"`python -m experiments.testbed.cold_start --data rings --min_pixels {pixels} --max_pixels {pixels} "
        f"--steps 150 --output runs/rings-{tokens}-start`.",
        _THINKING,
        {"model": f"runs/rings-{tokens}-start", "min_pixels": pixels, "max_pixels": pixels, "max_steps": max_steps},
        held_out=512,
        contrasts=(("explore", "explore-bias"),),
    )


STUDIES: dict[str, Study] = {
    "rings": Study(
        "Ring search, thinking",
        "Primary comparison: does RAL (`explore`) answer better than GRPO, and better than its own exploration without the "
        "attention term? The paper's anchor (`old`) and the controls of either stand beside it. 220 updates are what GRPO made in the time "
        "of 160 of `explore` when the study ran; today an update of `explore` costs 1.2 times one of GRPO. Arms with one or four updates a batch of rollouts draw twice or half as many rollouts as all others, which make "
        "two: they are compared with each other, below the table. `evidence` gets the boxes, which no other arm does; its λ was chosen "
        "on seed 100, outside of the study.",
        {
            **_THINKING,
            "old-0.5": Arm("ral", "RAL old, λ = 0.5", {"attention_coef": 0.5}),
            "old-5": Arm("ral", "RAL old, λ = 5", {"attention_coef": 5}),
            "old-scaled": Arm(
                "ral", "RAL old, gradient a tenth of the tokens'", {"attention_share": 0.1, "gradient_norm_steps": 5}
            ),
            "old-absolute": Arm("ral", "RAL old, A without its sign", {"attention_advantage": "absolute"}),
            "old-shuffled": Arm("ral", "RAL old, A shuffled", {"attention_advantage": "shuffled"}),
            "explore-absolute": Arm("explore", "RAL explore, A without its sign", {"attention_advantage": "absolute"}),
            "explore-shuffled": Arm("explore", "RAL explore, A shuffled", {"attention_advantage": "shuffled"}),
            "group": Arm("group", "RAL group, λ = 1"),
            "group-10": Arm("group", "RAL group, λ = 10", {"attention_coef": 10}),
            "credit": Arm("credit", "RAL credit, λ = 1"),
            "credit-5": Arm("credit", "RAL credit, λ = 5", {"attention_coef": 5}),
            "credit-shuffled": Arm("credit", "RAL credit, A shuffled", {"attention_advantage": "shuffled"}),
            "evidence": Arm("evidence", "RAL evidence, λ = 100 (told where to look)"),
            "sft": Arm("../rings-sft", "SFT on the same boxes, in words, 40 steps", {"max_steps": 40}),
            "sft-long": Arm("../rings-sft", "SFT on the same boxes, in words, 160 steps"),
            "evidence-centre": _told("centre", "placebo: centre"),
            "evidence-rolled": _told("rolled", "placebo: rolled"),
            "evidence-shuffled": _told("shuffled", "placebo: boxes of other questions"),
            "evidence-masking": Arm(
                "evidence", "RAL evidence, λ = 100, what the answer needs", {"evidence_from": "masking"}
            ),
            "grpo-long": Arm("grpo", "GRPO, 220 updates", {"max_steps": 220}),
            "grpo-1": Arm("grpo", "GRPO, one inner update", {"num_iterations": 1}),
            "explore-1": Arm("explore", "RAL explore, one inner update", {"num_iterations": 1}),
            "grpo-4": Arm("grpo", "GRPO, four inner updates", {"num_iterations": 4}),
            "old-4": Arm("ral", "RAL old, four inner updates", {"num_iterations": 4}),
            "explore-4": Arm("explore", "RAL explore, four inner updates", {"num_iterations": 4}),
        },
        {"max_steps": 160},
        held_out=512,
        contrasts=(
            ("explore", "explore-bias"),
            ("explore", "grpo-long"),
            ("evidence", "grpo-long"),
            ("evidence", "evidence-centre"),
            ("evidence", "evidence-rolled"),
            ("evidence", "evidence-shuffled"),
            ("evidence", "sft"),
            ("evidence", "sft-long"),
            ("explore", "explore-shuffled"),
            ("explore", "explore-absolute"),
            ("explore-1", "grpo-1"),
            ("old-4", "grpo-4"),
            ("explore-4", "grpo-4"),
        ),
    ),
    "zero": Study(
        "Ring search, direct answers (RAL-zero)",
        "The same search without thinking: one token to answer with, so that only its row can look.",
        {
            **_direct("ral-zero"),
            "evidence": Arm(
                "ral-zero", "RAL-zero evidence, λ = 10 (told where to look)", {"attention_coef": 10} | _EVIDENCE
            ),
            "grpo-long": Arm("ral-zero", "GRPO-zero, 220 updates", {"attention_coef": 0, "max_steps": 220}),
        },
        {"max_steps": 160},
        held_out=512,
        contrasts=(("explore", "explore-bias"), ("evidence", "grpo-long")),
    ),
    "easy-vqa": Study(
        "easy-vqa, direct answers (RAL-zero)",
        "A second domain, of other authors: questions about one shape, most of them yes or no, without boxes. Its cold start is made "
        "first (see the recipe).",
        _direct("easy-vqa-zero"),
        {"max_steps": 100},
        held_out=1024,
        contrasts=(("explore", "explore-bias"),),
    ),
    "rings-256": _finer(256, 160),
    "rings-1024": _finer(1024, 80),
    "lora": Study(
        "Ring search, thinking, LoRA",
        "An adapter of rank 16 on the decoder in place of all weights, at the learning rate of `recipes/testbed/lora.yaml`.",
        {
            "grpo": Arm("lora", "GRPO, LoRA", {"attention_coef": 0, "attention_anchor": "old"}),
            "old": Arm("lora", "RAL old, λ = 1, LoRA", {"attention_coef": 1, "attention_anchor": "old"}),
            "explore": Arm("lora", "RAL explore, λ = 10, LoRA"),
            "explore-bias": Arm("lora", "its exploration alone, λ = 0, LoRA", {"attention_coef": 0}),
        },
        {"max_steps": 160},
        held_out=512,
        contrasts=(("explore", "explore-bias"),),
    ),
    "distill": Study(
        "Ring search, on-policy distillation",
        "Students of the shipped teacher (99.2 %): its tokens (GKD), its attention, or both, beside GRPO's reward, which all have.",
        _taught("GRPO"),
        {"max_steps": 60},
        held_out=512,
        contrasts=(("attention", "grpo"),),
    ),
    "distill-zero": Study(
        "Ring search, direct answers, on-policy distillation",
        "The same teacher and students without thinking.",
        _taught("GRPO-zero"),
        {"max_steps": 60, "think": False, "max_completion_length": 4},
        held_out=512,
        contrasts=(("attention", "grpo"),),
    ),
    "video": Study(
        "Episodes (video), thinking",
        "Videos of up to six seconds of an agent that picks things up: what colour had the first (second, last) of them? The cold "
        "start is made first (see the recipe).",
        {
            "grpo": Arm("video-grpo", "GRPO"),
            "old": Arm("video-grpo", "RAL old, λ = 1 (paper)", {"attention_coef": 1, "attention_anchor": "old"}),
            "explore": Arm("video-ral", "RAL explore, λ = 10, σ = 0.5"),
            "explore-bias": Arm("video-ral", "its exploration alone, λ = 0", {"attention_coef": 0}),
            "evidence": Arm(
                "video-grpo", "RAL evidence, λ = 100 (told where to look)", {"attention_coef": 100} | _EVIDENCE
            ),
        },
        {"max_steps": 120},
        held_out=256,
        contrasts=(("explore", "explore-bias"),),
    ),
    "text": Study(
        "Needles in texts, thinking",
        "The ring search in words: one of eight lines answers. The start names a colour of the text and does not search, and reward alone "
        "never taught it to. Written down before the first run: does `evidence`, which is told the line, teach the search, and does its "
        "placebo (half a text away)? The cold start is made first (see the recipe).",
        {
            "grpo": Arm("text-grpo", "GRPO"),
            "old": Arm("text-grpo", "RAL old, λ = 1 (paper)", {"attention_coef": 1, "attention_anchor": "old"}),
            "explore": Arm("text-ral", "RAL explore, λ = 10, σ = 0.5"),
            "evidence": Arm("text-grpo", "RAL evidence, λ = 100 (told where to look)", _TEXT_EVIDENCE),
            "evidence-rolled": Arm(
                "text-grpo", "RAL evidence, λ = 100, placebo: rolled", _TEXT_EVIDENCE | {"evidence_control": "rolled"}
            ),
        },
        {"max_steps": 120},
        held_out=512,
        contrasts=(("evidence", "evidence-rolled"),),
    ),
    "heads": _heads(),
    "own-words": Study(
        "Ring search, thinking that states a box",
        "Evidence from the rollout's own words, without labels: the completion states a box, and its answer should look there. Written down "
        "before the first run: the primary comparison is `evidence` from the completion against GRPO, and against its own placebo. A first look "
        "with a start of 150 steps, right on 100 %, had no room for a gain, and own words talked it out of its boxes (the log has it). So "
        "this start is right on fewer, and an arm is added that trains the rows of rewarded completions alone. The cold start is made by "
        "`python -m experiments.testbed.cold_start --data pointed-rings --min_pixels 4096 --max_pixels 4096 --steps 105 --output "
        "runs/pointed-rings-start`.",
        {
            "grpo": _GRPO,
            "own-words": Arm("evidence", "RAL evidence, λ = 100, own words", {"evidence_from": "completion"}),
            "own-words-rewarded": Arm(
                "evidence",
                "RAL evidence, λ = 100, own words if rewarded",
                {"evidence_from": "completion", "evidence_reward": 0.5},
            ),
            "own-words-centre": _told("centre", "own words, placebo: centre", evidence_from="completion"),
            "evidence": Arm("evidence", "RAL evidence, λ = 100, boxes"),
        },
        {
            "model": "runs/pointed-rings-start",
            "data": "pointed-rings",
            "max_completion_length": 40,
            "max_steps": 160,
        },
        held_out=512,
        contrasts=(("own-words", "own-words-centre"), ("own-words-rewarded", "own-words"), ("evidence", "own-words")),
    ),
    "shortcut-word-97": _shortcut("word", 97, _MORE_SHORTCUT),
    "shortcut-word-95": _shortcut("word", 95),
    "shortcut-word-90": _shortcut("word", 90),
    "shortcut-word-80": _shortcut("word", 80),
    "shortcut-majority-97": _shortcut("majority", 97),
    "shortcut-position-97": _shortcut("position", 97),
    "shortcut-caption-97": _shortcut("caption", 97),
}
