"""Settings that cannot work are refused before anything is loaded, and the message says what to change."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import TrainingArguments

from ral.config import CHOICES, READERS, ConfigError, RALConfig
from ral.objective.anchors import ANCHORS
from ral.objective.settings import GRPOFields


def config(folder: Path, **settings: Any) -> RALConfig:
    return RALConfig(output_dir=str(folder), use_cpu=True, **settings)


def test_the_defaults_are_the_papers_where_known(tmp_path: Path) -> None:
    args = config(tmp_path)
    assert (args.num_generations, args.temperature, args.learning_rate, args.beta) == (8, 0.9, 1e-5, 0.04)
    assert (args.attention_anchor, args.attention_query, args.attention_keys) == ("old", "token", "all")
    assert (args.attention_coef, args.attention_layers, args.think) == (1.0, [-1], True)
    assert args.num_train_epochs == 1
    assert args.num_iterations > 1, "with one inner update the default anchor would train nothing"


def test_every_setting_says_what_it_is() -> None:
    own = {*RALConfig.__annotations__, *GRPOFields.__annotations__}
    assert len(own) > 30
    for name in own:
        text = RALConfig.__dataclass_fields__[name].metadata.get("help", "")
        assert text.endswith("."), name


def test_lists_are_not_shared_between_configurations(tmp_path: Path) -> None:
    config(tmp_path).attention_layers.append(3)
    assert config(tmp_path).attention_layers == [-1]


def test_a_schedule_whose_attention_term_is_identically_zero_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"attention_anchor='old' with num_iterations=1 trains nothing.*Set num_iterations to 2"
    ):
        config(tmp_path, num_iterations=1)
    config(tmp_path, num_iterations=1, attention_coef=0.0)
    config(tmp_path, num_iterations=2)
    for name, anchor in ANCHORS.items():
        if not anchor.needs_inner_updates:
            config(tmp_path, num_iterations=1, attention_anchor=name)


@pytest.mark.parametrize("generations", [1, 0, -4])
def test_fewer_than_two_completions_are_refused(tmp_path: Path, generations: int) -> None:
    with pytest.raises(ConfigError, match=f"num_generations={generations}: .* at least 2"):
        config(tmp_path, num_generations=generations)


@pytest.mark.parametrize("size", [4, 12])
def test_a_batch_that_does_not_divide_into_groups_is_refused(tmp_path: Path, size: int) -> None:
    with pytest.raises(ConfigError, match=f"per_device_train_batch_size={size} does not divide .*num_generations=8"):
        config(tmp_path, per_device_train_batch_size=size)


def test_prompts_per_batch(tmp_path: Path) -> None:
    assert config(tmp_path, per_device_train_batch_size=24).prompts_per_batch == 3


def test_saving_between_inner_updates_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"save_steps=10 .* multiple of num_iterations=4"):
        config(tmp_path, save_steps=10, num_iterations=4)
    config(tmp_path, save_steps=12, num_iterations=4)
    with pytest.raises(ConfigError, match=r"save_steps=0.25 .* multiple of num_iterations=2"):
        config(tmp_path, save_steps=0.25, num_iterations=2)
    with pytest.raises(ConfigError, match=r"eval_steps=5 .* multiple of num_iterations=2"):
        config(
            tmp_path, save_strategy="best", eval_strategy="steps", eval_steps=5, num_iterations=2,
            metric_for_best_model="reward",
        )  # fmt: skip
    config(tmp_path, save_steps=10, num_iterations=4, save_strategy="no")


@pytest.mark.parametrize("name", CHOICES)
def test_an_unknown_choice_is_refused_with_the_known_ones(tmp_path: Path, name: str) -> None:
    with pytest.raises(
        ConfigError, match=f"{name}='nonsense' is not known; choose one of {', '.join(filter(None, CHOICES[name]))}"
    ):
        config(tmp_path, **{name: "nonsense"})


@pytest.mark.parametrize("name", CHOICES)
def test_every_choice_is_accepted(tmp_path: Path, name: str) -> None:
    needed = {"cispo": {"epsilon_high": 5.0}, "luspo": {"importance_sampling_level": "sequence"}}
    beside = {"explore_ratio": {"attention_anchor": "explore"}, "vllm_transfer": {"rollout_engine": "vllm"}}
    if name.startswith("evidence_"):
        beside[name] = EVIDENCE
    if name == "evidence_box_space":
        beside[name] = EVIDENCE | {"evidence_from": "completion"}
    for value in CHOICES[name]:
        changes = {name: value, **beside.get(name, {}), **needed.get(value, {})}
        assert getattr(config(tmp_path, **changes), name) == value


VLLM, PLAIN = {"rollout_engine": "vllm"}, {"attention_coef": 0.0, "gradient_norm_steps": 0}
EVIDENCE = {"attention_anchor": "evidence", "per_device_train_batch_size": 16}

#: Of every setting that is not always read: a value, settings beside which nothing reads it, and some beside which it is read.
UNREAD: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "attention_skip": (2, {"attention_keys": "visual"}, PLAIN | {"attention_distill_coef": 1.0}),
    "attention_advantage": ("shuffled", {"attention_anchor": "evidence"}, {"attention_anchor": "credit"}),
    "attention_share": (0.1, {"gradient_norm_steps": 0}, {}),
    "explore_sigma": (0.7, {}, {"attention_anchor": "explore", "attention_coef": 0.0}),
    "explore_ratio": ("behaviour", {"attention_anchor": "ref"}, PLAIN | {"attention_anchor": "explore"}),
    "distill_beta": (0.1, {"attention_distill_coef": 1.0}, {"distill_coef": 1.0}),
    "teacher_heads": ([0], {"attention_heads": [0]}, {"attention_heads": [0], "attention_anchor": "teacher"}),
    "max_resample_times": (5, {}, {"dynamic_sampling": True}),
    "rollout_rows": (16, VLLM, {}),
    "vllm_url": ("http://other:8000", {}, VLLM),
    "vllm_transfer": ("nccl", {}, VLLM),
    "vllm_sleep": (True, {}, VLLM),
    "vllm_weights": ("weights", VLLM | {"vllm_transfer": "nccl"}, VLLM),
    "importance_cap": (3.0, {}, VLLM),
    "num_completions_to_print": (2, {}, {"log_completions": True}),
    "vision_cache_gb": (5.0, {}, {"vision_cache": "cache"}),
    "epsilon": (0.3, {"loss_type": "sapo"}, {"loss_type": "grpo"}),
    "epsilon_high": (0.3, {"loss_type": "sapo"}, {"loss_type": "dapo"}),
    "delta": (4.0, {"loss_type": "cispo", "epsilon_high": 5.0}, {"loss_type": "bnpo"}),
    "sapo_temperature_pos": (1.5, {}, {"loss_type": "sapo"}),
    "sapo_temperature_neg": (1.5, {"loss_type": "grpo"}, {"loss_type": "sapo"}),
    "sync_ref_model": (True, {"beta": 0.0}, {"beta": 0.0, "attention_anchor": "ref"}),
    "ref_model_mixup_alpha": (0.5, {}, {"sync_ref_model": True}),
    "ref_model_sync_steps": (4, {}, {"sync_ref_model": True}),
    "evidence_from": ("masking", {}, EVIDENCE),
    "evidence_target": ("mixture", {"attention_anchor": "ref"}, EVIDENCE),
    "evidence_divergence": ("kl", {"attention_anchor": "group"}, EVIDENCE | {"attention_coef": 0.0}),
    "evidence_rows": ("all", {"attention_anchor": "group"}, EVIDENCE | {"attention_coef": 0.0}),
    "evidence_reward": (0.5, {"attention_anchor": "explore"}, EVIDENCE),
    "evidence_control": ("shuffled", {"attention_anchor": "group"}, EVIDENCE | {"attention_coef": 0.0}),
    "evidence_box_space": ("unit", EVIDENCE | {"evidence_from": "masking"}, EVIDENCE | {"evidence_from": "completion"}),
    "evidence_blocks": (8, EVIDENCE | {"evidence_from": "completion"}, EVIDENCE | {"evidence_from": "masking"}),
    "evidence_first": (9, EVIDENCE | {"evidence_rows": "all"}, EVIDENCE | {"evidence_rows": "first"}),
    "evidence_sigma": (0.5, EVIDENCE, EVIDENCE | {"evidence_target": "mixture"}),
    "evidence_background": (0.5, EVIDENCE, EVIDENCE | {"evidence_target": "mixture"}),
    "perception_coef": (0.02, {"perception": "vppo"}, {"perception": "papo"}),
    "perception_entropy_coef": (0.02, {}, {"perception": "papo"}),
    "perception_mask": (0.5, {"perception": "at_rl"}, {"perception": "vppo"}),
    "perception_patch": (8, {}, {"perception": "papo"}),
    "perception_top": (0.2, {"perception": "papo"}, {"perception": "at_rl"}),
    "perception_floor": (0.2, {}, {"perception": "vppo"}),
}


def test_every_setting_that_may_be_unread_is_pinned() -> None:
    assert UNREAD.keys() == READERS.keys()
    assert READERS.keys() <= RALConfig.__dataclass_fields__.keys()


@pytest.mark.parametrize("name", UNREAD)
def test_a_setting_that_nothing_reads_is_refused_with_what_reads_it(tmp_path: Path, name: str) -> None:
    value, beside, read = UNREAD[name]
    if value is not True:
        assert getattr(config(tmp_path, **beside), name) != value, "without it, these settings are fine"
    with pytest.raises(ConfigError, match=rf"^{name}=.* does nothing with \w+=.*; set .*, or leave {name} out$"):
        config(tmp_path, **beside, **{name: value})
    assert getattr(config(tmp_path, **read, **{name: value}), name) == value


@pytest.mark.parametrize("name", UNREAD)
def test_the_default_may_be_written_anywhere(tmp_path: Path, name: str) -> None:
    default = getattr(config(tmp_path), name)
    assert getattr(config(tmp_path, **UNREAD[name][1], **{name: default}), name) == default


def test_a_server_that_is_not_read_keeps_its_password(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"vllm_url='https://\*\*\*@example\.org' does nothing"):
        config(tmp_path, vllm_url="https://me:hunter2@example.org")


#: The package's own settings with their types.
OWN = {
    name: get_type_hints(RALConfig)[name]
    for kind in RALConfig.__mro__[: RALConfig.__mro__.index(TrainingArguments)]
    for name in kind.__annotations__
}
FLOATS = [name for name, hint in OWN.items() if float in (hint, *get_args(hint))]
WHOLE = [name for name, hint in OWN.items() if hint in (int, int | None)]


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_number_that_is_not_finite_is_refused(tmp_path: Path, name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"^{name}={value}: expected a finite number; give one, or leave {name} out"):
        config(tmp_path, **{name: value})


@given(name=st.sampled_from(WHOLE), value=st.floats(allow_nan=True) | st.booleans() | st.text() | st.lists(st.floats()))
def test_only_whole_numbers_are_whole_numbers(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{name}=.*: expected int"):
        config(Path("unused"), **{name: value})


@given(
    name=st.sampled_from(sorted(OWN)),
    value=st.complex_numbers() | st.binary() | st.sets(st.integers()) | st.just(object),
)
def test_a_value_of_no_setting_is_refused_by_name_and_expected_type(name: str, value: Any) -> None:
    with pytest.raises(
        ConfigError, match=rf"^{name}=(?s:.*): expected .*; give one, or leave {name} out for its default, "
    ):
        config(Path("unused"), **{name: value})


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("think", 1, "true or false"),
        ("freeze_vision", "no", "true or false"),
        ("attention_layers", -1, "list"),
        ("attention_layers", [0.5], "list"),
        ("attention_heads", [[0, "1"]], "list or mapping or null"),
        ("evidence_from", None, "text"),
        ("attention_anchor", ["old"], "text"),
        ("attention_coef", "1e-3", "float"),
        ("report_to", 3, "text or list or null"),
    ],
)
def test_the_wrong_type_is_told_with_the_right_one(tmp_path: Path, name: str, value: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{name}=.*: expected {said}; give one"):
        config(tmp_path, **{name: value})


def test_numbers_of_numpy_and_whole_numbers_for_fractions_are_numbers(tmp_path: Path) -> None:
    args = config(
        tmp_path, attention_coef=2, max_completion_length=np.int64(9), beta=np.float32(0.5), attention_layers=(0, 1)
    )
    assert (args.attention_coef, args.max_completion_length, args.beta) == (2, 9, 0.5)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"loss_type": "cispo"}, "'cispo' needs epsilon_high: there it is the largest ratio itself"),
        ({"loss_type": "sapo", "epsilon_high": 0.3}, r"epsilon_high=0\.3 does nothing with loss_type='sapo'"),
        ({"loss_type": "sapo", "delta": 4.0}, r"delta=4\.0 does nothing with loss_type='sapo'"),
        ({"loss_type": "cispo", "epsilon_high": 5.0, "delta": 4.0}, "does nothing with loss_type='cispo'"),
        ({"delta": 1.2}, r"delta=1\.2 is not above 1 \+ ε_high = 1\.2"),
        ({"loss_type": "luspo"}, "'luspo' is defined for whole completions; set importance_sampling_level=sequence"),
    ],
)
def test_settings_of_the_token_loss_that_would_do_nothing_are_refused(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        config(tmp_path, **changes)


@pytest.mark.parametrize(("name", "value"), [("sapo_temperature_pos", 0.0), ("sapo_temperature_neg", -1.0)])
def test_slopes_are_positive(tmp_path: Path, name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"{name} must be positive, got {value}"):
        config(tmp_path, loss_type="sapo", **{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("attention_coef", -1.0),
        ("beta", -0.1),
        ("epsilon", -0.1),
        ("entropy_coef", -0.1),
        ("top_entropy_quantile", 1.1),
        ("top_k", -1),
        ("num_iterations", 0),
        ("max_completion_length", 0),
        ("gradient_norm_steps", -1),
        ("samples_per_step", -1),
        ("temperature", 0.0),
        ("explore_sigma", 0.0),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("attention_layers", []),
    ],
)
def test_values_out_of_range_are_refused_by_name(tmp_path: Path, name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=name):
        config(tmp_path, **{name: value})


def test_gradient_norms_with_reentrant_checkpoints_are_refused(tmp_path: Path) -> None:
    reentrant = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}
    with pytest.raises(ConfigError, match=r"use_reentrant to false .* or gradient_norm_steps=0"):
        config(tmp_path, **reentrant)
    config(tmp_path, **reentrant, gradient_norm_steps=0)
    config(tmp_path, gradient_checkpointing=True)
