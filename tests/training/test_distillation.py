"""Distillation: each loss term's gradient against eager attention, a teacher equal to the student, and refused teachers."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from experiments.families.zoo import tiny
from torch import Tensor

from ral.attention import forward_groups, prepare_prompt
from ral.config import ConfigError, RALConfig
from ral.data.record import Record
from ral.families import family_of
from ral.files import read_jsonl
from ral.objective.terms import group_advantages
from ral.rollouts.group import OldPass, ScoredGroup, Targets, TrainingGroup, selected_rows
from ral.rollouts.sampling import Completion
from ral.testbed import load_start, teacher_checkpoint
from ral.testbed.rings import ring_records
from ral.training.distillation import TeacherError, TokenDivergence, check_same_tokens, teacher_pass
from ral.training.losses import attention_term, distillation_term, token_term
from ral.training.trainer import RALTrainer
from tests.attention.test_forward import assert_same_gradients
from tests.tiny import IMAGE, VISION_KINDS, completions, prompt, tiny_model, twin

G, TEMPERATURE = 3, 0.8
ADVANTAGES = group_advantages(torch.tensor([1.0, 0.0, 0.4]))
LENGTHS = (5, 3, 7)
START, PROCESSOR = load_start()


def settings(folder: Path, **changes: Any) -> RALConfig:
    values = {"num_generations": G, "per_device_train_batch_size": G, "temperature": TEMPERATURE, "use_cpu": True}
    values |= {"template": "plain", "max_completion_length": 12, "disable_tqdm": True, "beta": 0.0}
    return RALConfig(output_dir=str(folder), **values | changes)


# --- gradients against an independent eager computation -----------------------------------------------------------


def eager(model: Any, inputs: dict[str, Tensor], y: Tensor, layer: int = -1) -> tuple[Tensor, Tensor]:
    """Log-distributions `[R, V]` and attention rows `[R, P+R]` of one completion behind its own copy of the prompt."""
    ids = torch.cat([inputs["input_ids"], y[None]], dim=1)
    kinds = torch.nn.functional.pad(inputs["mm_token_type_ids"], (0, len(y)))
    full = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": kinds}
    out = model(**full, output_attentions=True, use_cache=False)
    first = inputs["input_ids"].shape[1]
    logps = (out.logits[0, first - 1 : -1] / TEMPERATURE).log_softmax(-1)
    rows = out.attentions[layer][0].mean(0)[first:].tril(first - 1)  # what came before the token itself
    return logps, rows / rows.sum(-1, keepdim=True)


def kl(p: Tensor, q: Tensor) -> Tensor:
    return (p * (p.clamp(min=1e-30) / q.clamp(min=1e-30)).log()).sum(-1)


def jsd(p: Tensor, q: Tensor) -> Tensor:
    return (kl(p, (p + q) / 2) + kl(q, (p + q) / 2)) / 2


def pooled(rows: Tensor, keys: int) -> Tensor:
    """Where a completion looked in its prompt."""
    return rows[:, :keys].sum(0) / rows[:, :keys].sum()


def expected_terms(student: Any, old: Any, teacher: Any, inputs: dict[str, Tensor], ys: list[Tensor]) -> dict:
    """Every term from the formulas of method.md, one completion at a time; tokens weigh 1 / their number."""
    total, keys = sum(map(len, ys)), inputs["input_ids"].shape[1]
    now = [eager(student, inputs, y) for y in ys]
    with torch.no_grad():
        then, taught = ([eager(model, inputs, y) for y in ys] for model in (old, teacher))
        succeeded = [pooled(rows, keys) for (_, rows), a in zip(then, ADVANTAGES, strict=True) if a > 0]
        goal = torch.stack(succeeded).mean(0)
    terms: dict[str, Any] = dict.fromkeys(("token", "gkd", "attention", "old", "target", "group"), 0.0)
    for y, a, (logps, rows), (old_logps, old_rows), (t_logps, t_rows) in zip(
        ys, ADVANTAGES, now, then, taught, strict=True
    ):
        chosen = [x.gather(-1, y[:, None])[:, 0] for x in (logps, old_logps)]
        ratio = (chosen[0] - chosen[1]).exp()
        terms["token"] = terms["token"] - torch.minimum(ratio * a, ratio.clamp(0.8, 1.2) * a).sum() / total
        s, t = logps.exp(), t_logps.exp()
        m = 0.3 * t + 0.7 * s
        terms["gkd"] = terms["gkd"] + (0.3 * kl(t, m) + 0.7 * kl(s, m)).sum() / total
        terms["attention"] = terms["attention"] + jsd(rows, t_rows).sum() / total
        terms["old"] = terms["old"] + a * jsd(rows, old_rows).sum() / total
        terms["target"] = terms["target"] + a * jsd(rows, t_rows).sum() / total
        terms["group"] = terms["group"] + a.abs() * jsd(pooled(rows, keys), goal) * len(y) / total
    return terms


def packed_terms(student: Any, old: Any, teacher: Any, inputs: dict[str, Tensor], ys: list[Tensor], to: Path) -> dict:
    """The same terms as the trainer computes them, from one packed forward of each model."""
    base = prepare_prompt(student, inputs)
    completed = [Completion(y, truncated=False) for y in ys]
    with torch.no_grad():
        [before] = forward_groups(old, [base], [ys], temperature=TEMPERATURE)
    [(taught, hidden)] = teacher_pass(teacher, [base], [ys], layers=[-1], query="token", temperature=TEMPERATURE)
    scored = ScoredGroup(
        record=Record("a", "", ""), prompt=base, completions=completed, texts=[""] * G, rewards={}, reward=ADVANTAGES,
        advantages=ADVANTAGES, attention_advantages=ADVANTAGES, weights=before.mask / sum(map(len, ys)),
    )  # fmt: skip
    old, rows = OldPass(logps=before.logps, rows=selected_rows(before, "all")), selected_rows(taught, "all")
    targets = Targets(teacher_rows=list(rows.values()), target_rows=dict(zip(old.rows, rows.values(), strict=True)))
    group = TrainingGroup(scored=scored, targets=targets, old=old)
    gkd = TokenDivergence(teacher.get_output_embeddings(), None, hidden, 0.3, TEMPERATURE)
    [now] = forward_groups(student, [base], [ys], temperature=TEMPERATURE, token_statistics=gkd)
    anchored = {"old": "old", "target": "teacher", "group": "group"}
    return {
        "token": token_term(group, now, settings(to)).loss,
        "gkd": distillation_term(group, now, settings(to, distill_coef=1.0)).loss,
        "attention": distillation_term(group, replace(now, extra={}), settings(to, attention_distill_coef=1.0)).loss,
        **{name: attention_term(group, now, settings(to, attention_anchor=a)).loss for name, a in anchored.items()},
    }


@pytest.mark.parametrize("term", ["token", "gkd", "attention", "old", "target", "group"])
def test_each_terms_gradient_is_that_of_eager_attention(tmp_path: Path, term: str) -> None:
    """`target` is the form of the anchors ref, explore and teacher; here it is a teacher with more layers."""
    student, old = tiny_model(seed=0), tiny_model(seed=0)
    student.model.visual.requires_grad_(False)
    with torch.no_grad():  # the policy has moved on since its rollouts
        for p in student.parameters():
            p += p.requires_grad * 0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(5))
    teacher = tiny_model(seed=1, num_hidden_layers=4, intermediate_size=64)
    reference, inputs, ys = twin(student), prompt("image"), completions(LENGTHS)
    expected = expected_terms(reference, twin(old), twin(teacher), inputs, ys)[term]
    found = packed_terms(student, old, teacher, inputs, ys, tmp_path)[term]
    assert expected.abs() > 1e-5
    torch.testing.assert_close(found, expected, atol=1e-7, rtol=1e-4)
    assert_same_gradients(student, reference, found, expected, 1e-3)


# --- a teacher equal to the student -------------------------------------------------------------------------------


def trainer(folder: Path, teacher: Any, reward_funcs: Any = None, **changes: Any) -> RALTrainer:
    return RALTrainer(
        copy.deepcopy(START),
        settings(folder, **changes),
        train_dataset=ring_records(2, seed=0),
        reward_funcs=reward_funcs,
        processing_class=PROCESSOR,
        teacher=teacher,
    )


@pytest.mark.parametrize(
    "term",
    [*({"distill_coef": 1.0, "distill_beta": beta} for beta in (0.0, 0.3, 1.0)), {"attention_distill_coef": 1.0}],
)
def test_a_teacher_equal_to_the_student_teaches_exactly_nothing(tmp_path: Path, term: dict[str, float]) -> None:
    """Rewards that are all equal leave the distillation alone; its loss and gradient are zero to the last bit."""
    changes = {**term, "attention_coef": 0.0, "gradient_norm_steps": 0}
    for teacher, zero in ((START, True), (str(teacher_checkpoint()), False)):
        run = trainer(tmp_path, copy.deepcopy(teacher), **changes)
        [groups] = run.make_rollouts([run.train_dataset])
        for group in groups:
            group.scored = replace(group.scored, advantages=torch.zeros(G))
        loss = run.compute_loss(run.model, groups)
        loss.backward()
        moved = [name for name, p in run.model.named_parameters() if p.grad is not None and p.grad.any()]
        assert (loss.item() == 0) == zero
        assert (not moved) == zero


def test_a_whole_run_with_itself_as_teacher_changes_nothing_in_mixed_precision(tmp_path: Path) -> None:
    def alike(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        return [1.0] * len(completions)

    changes = {"distill_coef": 1.0, "attention_distill_coef": 1.0, "attention_coef": 0.0, "bf16": True, "max_steps": 4}
    run = trainer(tmp_path, copy.deepcopy(START), reward_funcs=alike, **changes, weight_decay=0.0, warmup_steps=0)
    run.train()
    for row in read_jsonl(tmp_path / "metrics.jsonl"):
        for name in ("loss", "grad_norm", "distill/gkd", "distill/attention_jsd"):
            assert row[name] == 0, name
    assert all(torch.equal(p, START.state_dict()[name]) for name, p in run.model.named_parameters())


def test_a_run_learns_from_the_shipped_teacher(tmp_path: Path) -> None:
    """Four updates on the same prompts bring tokens and attention nearer to the teacher's."""
    changes = {"attention_coef": 0.0, "distill_coef": 1.0, "attention_distill_coef": 1.0, "max_steps": 8, "seed": 1}
    changes |= {"learning_rate": 1e-3, "lr_scheduler_type": "constant", "save_strategy": "no"}
    run = trainer(tmp_path, str(teacher_checkpoint()), **changes, per_device_train_batch_size=2 * G)
    before = {name: p.clone() for name, p in run.teacher.named_parameters()}
    run.train()
    metrics = list(read_jsonl(tmp_path / "metrics.jsonl"))
    for name in ("distill/gkd", "distill/attention_jsd"):
        assert metrics[-1][name] < metrics[0][name], name
    assert all(torch.equal(p, before[name]) for name, p in run.teacher.named_parameters())


# --- other sizes --------------------------------------------------------------------------------------------------


def larger(layers: int = 4) -> Any:
    """A randomly initialised teacher for the testbed with other depths and widths, and the same vision tokens."""
    config = copy.deepcopy(START.config)
    text, vision = config.text_config, config.vision_config
    text.hidden_size, text.num_hidden_layers, text.intermediate_size = 2 * text.hidden_size, layers, 64
    text.layer_types = ["full_attention"] * layers
    text.num_attention_heads, text.num_key_value_heads = 2 * text.num_attention_heads, 2 * text.num_key_value_heads
    vision.out_hidden_size = text.hidden_size
    torch.manual_seed(0)
    return type(START)(config).eval()


def test_layers_are_counted_in_each_model_by_itself(tmp_path: Path) -> None:
    """−1 is the last layer of each; what the anchor aims at is filed under the student's number."""
    teacher = larger()
    run = trainer(
        tmp_path,
        teacher,
        attention_anchor="teacher",
        attention_distill_coef=1.0,
        distill_coef=1.0,
        attention_layers=[-1, 0],
    )
    [groups] = run.make_rollouts([run.train_dataset])
    with torch.no_grad():
        own = prepare_prompt(teacher, groups[0].prompt.inputs)
        [expected] = forward_groups(teacher, [own], [groups[0].scored.ids], layers=[3, 0])
    assert list(groups[0].targets.target_rows) == [1, 0]
    for rows, distilled, layer in zip(
        groups[0].targets.target_rows.values(), groups[0].targets.teacher_rows, (3, 0), strict=True
    ):
        torch.testing.assert_close(rows, expected.layers[layer])
        assert torch.equal(rows, distilled)
    run.train()
    first, *_ = read_jsonl(tmp_path / "metrics.jsonl")
    assert first["distill/attention_jsd"] > 0


# --- a teacher of another family ------------------------------------------------------------------------------------


def of_family(kind: str, seed: int) -> Any:
    if kind in VISION_KINDS:
        return tiny_model(kind, seed=seed)
    torch.manual_seed(seed)
    return tiny(kind)[0].eval()


@pytest.mark.parametrize(
    ("student", "teacher"), [("qwen2_vl", "qwen2_5_vl"), ("qwen3_5", "qwen3_vl"), ("llama", "gemma4_text")]
)
def test_a_teacher_of_another_family_says_what_it_says_by_itself(student: str, teacher: str) -> None:
    """GKD against the logits of transformers' own forward of both, one completion at a time; logits of Gemma are capped."""
    own, other = of_family(student, 0), of_family(teacher, 1)
    inputs = prompt("image" if student != "llama" else "text", model=student)
    ys = completions(LENGTHS)
    with torch.no_grad():
        logps = [[whole(model, inputs, y) for y in ys] for model in (own, other)]
        base = prepare_prompt(own, inputs)
        [(taught, hidden)] = teacher_pass(other, [base], [ys], layers=[-1], query="token", temperature=TEMPERATURE)
        final = family_of(other.config).final(other.config)
        gkd = TokenDivergence(other.get_output_embeddings(), final, hidden, 0.5, TEMPERATURE)
        [found] = forward_groups(own, [base], [ys], temperature=TEMPERATURE, token_statistics=gkd)
    for row, (y, mine, theirs) in enumerate(zip(ys, *logps, strict=True)):
        torch.testing.assert_close(
            found.extra["gkd"][row, : len(y)], jsd(mine.exp(), theirs.exp()), atol=1e-5, rtol=1e-4
        )
    assert found.extra["gkd"].max() > 1e-3
    assert taught.attention.shape == found.attention.shape


def whole(model: Any, inputs: dict[str, Tensor], y: Tensor) -> Tensor:
    """Log-distributions `[R, V]` of a completion by the model's own forward."""
    ids = torch.cat([inputs["input_ids"], y[None]], dim=1)
    named = {name: inputs[name] for name in ("pixel_values", "image_grid_thw") if name in inputs}
    if named:
        named["mm_token_type_ids"] = (ids == IMAGE).int()
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, **named).logits
    return (logits[0, inputs["input_ids"].shape[1] - 1 : -1] / TEMPERATURE).log_softmax(-1)


def test_a_teacher_that_needs_the_seconds_of_a_video_is_refused_where_there_are_none() -> None:
    inputs = prompt("video", model="qwen2_vl")
    del inputs["second_per_grid_ts"]
    base = prepare_prompt(tiny_model("qwen2_vl"), inputs)
    with pytest.raises(TeacherError, match=r"seconds.*second_per_grid_ts.*does not give"):
        teacher_pass(tiny_model(), [base], [completions(LENGTHS)], layers=[-1], query="token", temperature=1.0)


def test_a_teacher_may_know_tokens_behind_all_of_the_students() -> None:
    more = copy.deepcopy(PROCESSOR)
    more.tokenizer.add_tokens(["<tool>"])
    check_same_tokens(PROCESSOR, more)
    check_same_tokens(more, PROCESSOR)
    other = copy.deepcopy(PROCESSOR)
    other.tokenizer.add_tokens(["<other>"])
    with pytest.raises(
        TeacherError, match=rf"token {len(PROCESSOR.tokenizer)} is '<tool>' for the student and '<other>'"
    ):
        check_same_tokens(more, other)


# --- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("teacher", "changes", "message"),
    [
        (True, {"attention_coef": 0.0}, "a teacher is given, but nothing is learnt from it; set distill_coef"),
        (False, {"distill_coef": 1.0}, "distill_coef, .* is set, but there is no teacher"),
        (False, {"attention_distill_coef": 1.0}, "attention_distill_coef .* is set, but there is no teacher"),
        (False, {"attention_anchor": "teacher"}, "attention_anchor='teacher' is set, but there is no teacher"),
    ],
)
def test_a_teacher_and_its_coefficients_belong_together(
    tmp_path: Path, teacher: bool, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        trainer(tmp_path, START if teacher else None, **changes)


def saved_teacher(folder: Path) -> Path:
    START.save_pretrained(folder)
    PROCESSOR.save_pretrained(folder)
    return folder


def test_another_tokenizer_is_refused_by_its_first_token(tmp_path: Path) -> None:
    folder = saved_teacher(tmp_path / "teacher")
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["b"], vocabulary["a"] = vocabulary["a"], vocabulary["b"]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    message = f"token {vocabulary['b']} is 'a' for the student and 'b' for the teacher"
    with pytest.raises(TeacherError, match=message):
        trainer(tmp_path / "run", str(folder), distill_coef=1.0)


@pytest.mark.parametrize(("setting", "value"), [("merge_size", 1), ("patch_size", 8), ("image_mean", [0.5] * 3)])
def test_another_way_to_see_images_is_refused_at_once(tmp_path: Path, setting: str, value: Any) -> None:
    other = copy.deepcopy(PROCESSOR)
    setattr(other.image_processor, setting, value)
    with pytest.raises(TeacherError, match=rf"{setting} is .* for the student and .* pixel limits are the student's"):
        check_same_tokens(PROCESSOR, other)
    other = copy.deepcopy(PROCESSOR)
    other.image_processor.size = {"shortest_edge": 64, "longest_edge": 1 << 20}
    check_same_tokens(PROCESSOR, other)  # prompts are made by the student's processor, so limits cannot differ


@pytest.mark.parametrize(("setting", "value"), [("spatial_merge_size", 1), ("patch_size", 8)])
def test_a_teacher_without_a_processor_is_refused_when_its_visual_tokens_differ(setting: str, value: int) -> None:
    student = tiny_model()
    config = copy.deepcopy(student.config)
    setattr(config.vision_config, setting, value)
    base, ys = prepare_prompt(student, prompt("image")), completions(LENGTHS)
    with pytest.raises(TeacherError, match="different visual tokens"):
        teacher_pass(type(student)(config), [base], [ys], layers=[-1], query="token", temperature=1.0)


def test_a_text_model_is_no_teacher_of_images() -> None:
    base = prepare_prompt(tiny_model(), prompt("image"))
    with pytest.raises(TeacherError, match="the teacher reads text only"):
        teacher_pass(tiny_model("qwen2"), [base], [completions(LENGTHS)], layers=[], query="token", temperature=1.0)
