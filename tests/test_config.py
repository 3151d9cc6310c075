"""Settings that cannot work are refused before anything is loaded, and the message says what to change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ral.config import CHOICES, ConfigError, RALConfig
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
    with pytest.raises(ConfigError, match=f"{name}='nonsense' is not known; choose one of {', '.join(CHOICES[name])}"):
        config(tmp_path, **{name: "nonsense"})


@pytest.mark.parametrize("name", CHOICES)
def test_every_choice_is_accepted(tmp_path: Path, name: str) -> None:
    needed = {"cispo": {"epsilon_high": 5.0}, "luspo": {"importance_sampling_level": "sequence"}}
    for value in CHOICES[name]:
        assert getattr(config(tmp_path, **{name: value}, **needed.get(value, {})), name) == value


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


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("attention_coef", -1.0),
        ("beta", -0.1),
        ("epsilon", -0.1),
        ("entropy_coef", -0.1),
        ("top_entropy_quantile", 1.1),
        ("sapo_temperature_pos", 0.0),
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
