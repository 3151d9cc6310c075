"""On-policy distillation: the teacher's token distributions (GKD) and attention, on the student's own rollouts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ral.attention import GroupOutput, Prompt, forward_groups, prepare_prompt
from ral.attention.heads import Heads, heads_of
from ral.attention.models import family, has_vision, make_capturable, patch_values, pretrained, resolve_layers
from ral.attention.packed import Kernel
from ral.attention.rows import Query
from ral.config import RALConfig
from ral.errors import ConfigError
from ral.models.loading import frozen, load_model, load_processor
from ral.objective.divergence import generalised_jensen_shannon
from ral.objective.needs import Needs
from ral.rollouts.group import TrainingGroup
from ral.testbed import model_name


class TeacherError(ConfigError):
    """The teacher cannot teach this student: another vocabulary, or other visual tokens."""


@dataclass
class TokenDivergence:
    """A `TokenStatistics`: per token, the generalised JSD between student and teacher (arXiv 2306.13649).

    The teacher is kept as its last hidden states `[N, d]`; its logits are formed chunk by chunk beside the student's, by its
    output embedding and what follows that in its family (`Family.final`).
    """

    head: nn.Module
    final: Callable[[Tensor], Tensor] | None
    hidden: Tensor
    beta: float
    temperature: float

    def __call__(self, logits: Tensor, hidden: Tensor, rows: slice) -> dict[str, Tensor]:
        with torch.no_grad():
            teacher = self.head(self.hidden[rows])
            teacher = (teacher if self.final is None else self.final(teacher)).to(logits.dtype) / self.temperature
        # Models with one tokenizer pad their vocabulary to different sizes; the real tokens come first.
        shared = min(teacher.shape[-1], logits.shape[-1])
        student_logps, teacher_logps = (x[..., :shared].log_softmax(dim=-1) for x in (logits, teacher))
        return {"gkd": generalised_jensen_shannon(student_logps, teacher_logps, self.beta)}


def token_divergence(
    teacher: nn.Module | None, groups: Sequence[TrainingGroup], args: RALConfig
) -> TokenDivergence | None:
    """Make the statistic that compares the student's token distributions with the teacher's, in the packed row of `groups`."""
    hidden = [group.targets.teacher_hidden for group in groups if group.targets.teacher_hidden is not None]
    if not hidden or teacher is None:
        return None
    base = pretrained(teacher)
    head, final = base.get_output_embeddings(), family(base).final(base.config)
    return TokenDivergence(head, final, torch.cat(hidden), args.distill_beta, args.temperature)


def load_teacher(teacher: PreTrainedModel | str | Path | None, processor: Any, args: RALConfig) -> nn.Module | None:
    """The frozen teacher, if the run needs one; `processor` is the student's.

    Raises:
        ConfigError: settings that need a teacher without one, a teacher that nothing is learnt from, heads that it lacks.
        TeacherError: another tokenizer.
    """
    needs = Needs.of(args)
    if needs.teacher != (teacher is not None):
        raise ConfigError(
            "distill_coef, attention_distill_coef or attention_anchor='teacher' is set, but there is no teacher; give one"
            if needs.teacher
            else "a teacher is given, but nothing is learnt from it; set distill_coef, attention_distill_coef or "
            "attention_anchor='teacher'"
        )
    if teacher is None:
        return None
    model = load_model(model_name(str(teacher))) if isinstance(teacher, str | Path) else teacher
    if model.name_or_path:
        check_same_tokens(processor, load_processor(model.name_or_path))
    base = make_capturable(model)
    if args.teacher_heads is not None:
        heads_of(base, resolve_layers(base, args.attention_layers), args.teacher_heads, "teacher_heads")
    return frozen(model)


class _KeepHidden:
    """A `TokenStatistics` that keeps the hidden states of the predicting positions and computes nothing."""

    def __init__(self) -> None:
        self.parts: list[Tensor] = []

    def __call__(self, logits: Tensor, hidden: Tensor, rows: slice) -> dict[str, Tensor]:
        self.parts.append(hidden)
        return {}


@torch.no_grad()
def teacher_pass(
    teacher: nn.Module,
    prompts: Sequence[Prompt],
    completions: Sequence[Sequence[Tensor]],
    *,
    layers: Sequence[int],
    heads: Heads = None,
    query: Query,
    temperature: float,
    kernel: Kernel = "sdpa",
) -> list[tuple[GroupOutput, Tensor]]:
    """The teacher's packed forward over the student's rollouts.

    Returns:
        Per group its output (policy rows) and its last hidden states `[ΣR, d]` at the predicting positions.

    Raises:
        TeacherError: the teacher's prompt has other visual tokens than the student's.
    """
    own_prompts = [_own_prompt(teacher, prompt) for prompt in prompts]
    keep = _KeepHidden()
    outputs = forward_groups(
        teacher,
        own_prompts,
        completions,
        layers=layers,
        heads=heads,
        query=query,
        temperature=temperature,
        token_statistics=keep,
        kernel=kernel,
    )
    totals = [sum(len(y) for y in ys) for ys in completions]
    return list(zip(outputs, torch.cat(keep.parts).split(totals), strict=True))


def _own_prompt(teacher: nn.Module, prompt: Prompt) -> Prompt:
    """The same prompt with the teacher's vision features; its visual tokens must be the student's."""
    _check_patches(teacher, prompt)
    _check_times(teacher, prompt)
    try:
        own = prepare_prompt(teacher, prompt.inputs)
    except ValueError as error:
        raise TeacherError(f"teacher and student see different visual tokens: {error} {_SAME_TOKENS}") from error
    if own.grids != prompt.grids or not torch.equal(own.visual, prompt.visual):
        raise TeacherError(
            f"teacher and student see different visual tokens: grids {own.grids} against {prompt.grids}. {_SAME_TOKENS}"
        )
    return own


def _check_patches(teacher: nn.Module, prompt: Prompt) -> None:
    """Patches of another size could be read as more or fewer of the teacher's own."""
    base = make_capturable(teacher)
    for name in ("pixel_values", "pixel_values_videos"):
        if (patches := prompt.inputs.get(name)) is None:
            continue
        if not has_vision(base):
            raise TeacherError(
                "the student sees images or videos, the teacher reads text only; choose one that sees them"
            )
        if (values := patch_values(base)) is not None and patches.shape[-1] != values:
            raise TeacherError(
                f"teacher and student see different visual tokens: the student's patches have {patches.shape[-1]} values "
                f"({name}), the teacher's {values}. {_SAME_TOKENS}"
            )


def _check_times(teacher: nn.Module, prompt: Prompt) -> None:
    """Positions of a video may follow its seconds, of which only some processors tell the model."""
    base = pretrained(teacher)
    name = family(base).video_times
    if name is not None and "pixel_values_videos" in prompt.inputs and name not in prompt.inputs:
        raise TeacherError(
            f"the teacher places the frames of a video by their seconds ({name}), which the student's processor does not give; "
            "leave videos out of the data, or choose a teacher of the student's family"
        )


_SAME_TOKENS = (
    "Their patch size and merge size must agree, so that attention can be compared position by position; pixel limits are "
    "the student's for both."
)
#: What makes patches of an image; resize limits are not among them, as the student's processor makes the prompts of both.
_VISION = ("patch_size", "merge_size", "temporal_patch_size", "image_mean", "image_std")


def check_same_tokens(student_processor: Any, teacher_processor: Any) -> None:
    """Refuse a teacher whose text tokens or visual tokens are others: prompts are made once, by the student's processor.

    Models of several families may share a tokenizer. One may know more tokens than the other, if they come after all of the
    other's (Qwen2.5-VL's behind Qwen2-VL's): the student is never shown them.

    Raises:
        TeacherError: with the first token, or the first setting of the image processor, that differs.
    """
    student, teacher = (
        {index: token for token, index in getattr(p, "tokenizer", p).get_vocab().items()}
        for p in (student_processor, teacher_processor)
    )
    for index in range(1 + min(max(student), max(teacher))):
        if student.get(index) != teacher.get(index):
            raise TeacherError(
                f"teacher and student use different tokenizers: token {index} is {student.get(index)!r} for the student "
                f"and {teacher.get(index)!r} for the teacher. Choose a teacher with the student's tokenizer."
            )
    images = [getattr(p, "image_processor", None) for p in (student_processor, teacher_processor)]
    if None in images:
        return  # one of them reads no images; prompts that hold some are refused when they come
    for name in _VISION:
        own, other = (getattr(image, name, None) for image in images)
        if own != other:
            raise TeacherError(
                f"teacher and student see images differently: {name} is {own} for the student and {other} for the teacher. "
                f"{_SAME_TOKENS}"
            )
