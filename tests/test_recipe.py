from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig
from transformers.trainer_utils import SaveStrategy

from ral.config import RALConfig
from ral.errors import ConfigError, DataError
from ral.evaluate.settings import EvalSettings
from ral.files import read_yaml
from ral.recipe import Recipe, _settable, _typed, load_recipe, parse_settings, split_settings
from ral.runs.foreign_keys import FOREIGN, translated
from ral.runs.redaction import without_credentials

BASE = "model: start\ndata: rings\nuse_cpu: true\n"


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def load(folder: Path, text: str = "", *overrides: str) -> Recipe:
    return load_recipe(write(folder, BASE + text), overrides)


def test_values_take_the_type_of_their_field(tmp_path: Path) -> None:
    recipe = load(
        tmp_path,
        "learning_rate: 1e-5\nsave_strategy: no\nattention_layers: [-2, -1]\nthink: false\nmax_steps: 1.2e1\nseed: '3'\nbf16: no\n"
        "reward_funcs: accuracy\nreward_weights: [1, 0.5]\nlr_scheduler_kwargs: {num_cycles: 2}\nreport_to: [none]\n"
        "peft: {r: 8, lora_alpha: 1e1, target_modules: [q_proj, k_proj]}\n",
    )
    assert recipe.args.learning_rate == 1e-5
    assert recipe.args.save_strategy == "no"
    assert recipe.args.attention_layers == [-2, -1]
    assert recipe.args.think is False
    assert recipe.args.max_steps == 12
    assert recipe.args.seed == 3
    assert recipe.args.bf16 is False
    assert recipe.args.report_to == []
    assert recipe.reward_funcs == ["accuracy"]
    assert recipe.reward_weights == [1.0, 0.5]
    assert recipe.args.lr_scheduler_kwargs == {"num_cycles": 2}
    assert recipe.peft == {"r": 8, "lora_alpha": 10.0, "target_modules": ["q_proj", "k_proj"]}
    assert (recipe.model, recipe.data, recipe.eval_data) == ("start", "rings", None)


def test_a_template_s_file_is_looked_for_beside_the_recipe_and_kept_as_its_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wordings").mkdir()
    (tmp_path / "wordings" / "ask.txt").write_text("Look: {problem}\n")
    recipe = load(tmp_path, "prompt_template: wordings/ask.txt\nsystem_prompt: Be brief.\n")
    assert recipe.args.prompt_template == "Look: {problem}"
    again = load_recipe(write(tmp_path, yaml.safe_dump(without_credentials(recipe.settings()))))
    assert again.args.prompt == recipe.args.prompt
    asked = EvalSettings.of_config(recipe.settings())
    assert (asked.prompt_template, asked.system_prompt) == ("Look: {problem}", "Be brief.")
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "mine.txt").write_text("{problem}?")
    monkeypatch.chdir(tmp_path / "here")
    assert load(tmp_path, "", "--prompt-template", "mine.txt").args.prompt_template == "{problem}?"
    with pytest.raises(DataError, match=r"mine.yaml: prompt_template='no.txt' holds no \{problem\}"):
        load(tmp_path, "prompt_template: no.txt\n")


def test_the_keys_of_an_adapter_take_their_types(tmp_path: Path) -> None:
    given = "peft: {r: '8', target_modules: [a, c], exclude_modules: b, layers_to_transform: 3, init_lora_weights: gaussian, loftq_config: {loftq_bits: 4}}\n"
    peft = load(tmp_path, given).peft
    assert peft == {
        "r": 8, "target_modules": ["a", "c"], "exclude_modules": "b", "layers_to_transform": 3,
        "init_lora_weights": "gaussian", "loftq_config": {"loftq_bits": 4},
    }  # fmt: skip
    assert LoraConfig(**peft).r == 8
    assert load(tmp_path, "peft: {init_lora_weights: no}\n").peft == {"init_lora_weights": False}


def test_the_run_is_named_after_the_recipe(tmp_path: Path) -> None:
    assert load(tmp_path).args.output_dir == "runs/mine"
    assert load(tmp_path, "output_dir: there\n").args.output_dir == "there"


def test_the_command_line_wins(tmp_path: Path) -> None:
    recipe = load(
        tmp_path,
        "learning_rate: 1.0\nseed: 1\neval_data: easy-vqa\n",
        *("--learning-rate", "-2e-6", "--seed=7", "--attention_layers", "-3", "-1", "--eval_data", "null"),
        *("--data", "a: b.json", "--reward_weights", "[2, 1]", "--peft={r: 4}"),
    )
    assert recipe.args.learning_rate == -2e-6
    assert recipe.args.seed == 7
    assert recipe.args.attention_layers == [-3, -1]
    assert recipe.eval_data is None
    assert recipe.data == "a: b.json"
    assert recipe.reward_weights == [2.0, 1.0]
    assert recipe.peft == {"r": 4}


def test_settings_are_a_recipe_that_gives_the_same_settings(tmp_path: Path) -> None:
    first = load(tmp_path, "learning_rate: 1e-5\npeft: {r: 8}\nreward_weights: [0.9, 0.1]\n")
    again = load_recipe(write(tmp_path, yaml.safe_dump(_without_tokens(first.settings()))))
    assert _without_tokens(again.settings()) == _without_tokens(first.settings())


def test_a_removed_setting_is_left_out_at_its_old_default_and_explained_otherwise(tmp_path: Path) -> None:
    old = "attention_schedule: constant\nexplore_schedule: constant\nexplore_keys: visual\nexplore_layers: null\n"
    assert load(tmp_path, old).settings() == load(tmp_path).settings()
    with pytest.raises(
        ConfigError, match=r"mine.yaml: the setting explore_keys was removed: the bias is drawn on visual"
    ):
        load(tmp_path, "explore_keys: prompt\n")
    with pytest.raises(
        ConfigError, match=r"command line: the setting attention_schedule was removed: λ stays .*'linear'"
    ):
        load(tmp_path, "", "--attention-schedule", "linear")


@pytest.mark.parametrize("given", ["fsdp: true\n", "fsdp: full_shard\n"])
def test_fsdp_is_a_switch(tmp_path: Path, given: str) -> None:
    recipe = load(tmp_path, given + "fsdp_config: {version: 2, reshard_after_forward: false}\n")
    assert recipe.args.fsdp is True
    assert recipe.args.fsdp_config["version"] == 2
    assert recipe.args.fsdp_config["reshard_after_forward"] is False
    again = load_recipe(write(tmp_path, yaml.safe_dump(_without_tokens(recipe.settings()))))
    assert again.args.fsdp_plugin_args == recipe.args.fsdp_plugin_args
    assert not load(tmp_path, "fsdp: false\nfsdp_config: sharding.json\n").args.fsdp


def test_a_quantised_model_and_a_teacher_are_named(tmp_path: Path) -> None:
    recipe = load(tmp_path, "teacher: big\ndistill_coef: 1\nquantization: {load_in_4bit: true}\npeft: {r: 4}\n")
    assert (recipe.teacher, recipe.quantization) == ("big", {"load_in_4bit": True})


def _without_tokens(settings: dict[str, object]) -> dict[str, object]:
    return {key: value for key, value in settings.items() if not key.endswith("_token")}


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("learning_rat: 1\n", (), r"mine.yaml: unknown key 'learning_rat'; did you mean 'learning_rate'\?"),
        ("qqqqqqqq: 1\n", (), r"unknown key 'qqqqqqqq'; check its name$"),
        ("", ("--atention_coef", "1"), r"command line: unknown key 'atention_coef'; did you mean 'attention_coef'"),
        (
            "quantization: {load_in_5bit: true}\n",
            (),
            r"quantization: unknown key 'load_in_5bit'; did you mean 'load_in_",
        ),
        ("learning_rate: fast\n", (), 'mine.yaml: learning_rate: expected float, got "fast"'),
        ("max_steps: null\n", (), r"mine.yaml: max_steps: expected int, got null"),
        ("learning_rate: [1, 2]\n", (), r"learning_rate: expected float, got \[1, 2\]"),
        ("seed: {a: 1}\n", (), r'seed: expected int, got {"a": 1}'),
        ("max_steps: 1.5\n", (), r"max_steps: expected int, got 1.5"),
        ("save_strategy: sometimes\n", (), r"mine.yaml: sometimes is not a valid"),
        ("think: perhaps\n", (), 'think: expected true or false, got "perhaps"'),
        ("num_generations: 1\n", (), "mine.yaml: .*num_generations"),
        (
            "fsdp: true\nfsdp_config: {offload_params: true}\n",
            (),
            r"mine.yaml: .*offload_params is not read .*'cpu_offload'\?",
        ),
        ("fsdp: true\nfsdp_config: {fsdp_reshard_after_forwrd: false}\n", (), r"mean 'reshard_after_forward'\?"),
        (
            "fsdp: true\nfsdp_config: {use_orig_params: true}\n",
            (),
            "use_orig_params is not read for FSDP2 .*leave it out",
        ),
        ("peft: {lora_alfa: 8}\n", (), r"mine.yaml: peft: unknown key 'lora_alfa'; did you mean 'lora_alpha'\?"),
        ("peft: {r: eight}\n", (), r'mine.yaml: peft: r: expected int, got "eight"'),
        ("peft: {lora_dropout: true}\n", (), r"mine.yaml: peft: lora_dropout: expected float, got true"),
        ("quantization: {load_in_4bit: four}\n", (), r'quantization: load_in_4bit: expected true or false, got "four"'),
        ("seed: 1\nseed: 2\n", (), r"mine.yaml, line 5: not valid YAML \(found duplicate key \"seed\""),
        ("x: [1\n", (), "mine.yaml, line 5: not valid YAML"),
        ("x: !!python/object/apply:os.system [true]\n", (), "mine.yaml, line 4: not valid YAML .*constructor"),
        ("", ("seed", "1"), "'seed' follows no field; write overrides as --field value"),
        ("", ("--seed",), "--seed has no value"),
        ("", ("--seed", "1", "--seed=2"), "--seed is given twice"),
        ("", ("--peft", "{r: 4"), "is not valid YAML"),
    ],
)
def test_errors_name_the_file_and_the_key(tmp_path: Path, text: str, overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        load(tmp_path, text, *overrides)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [("data: rings\n", "'model' is missing"), ("model: m\n", "'data' is missing"), ("- model\n", "a flat mapping")],
)
def test_an_incomplete_recipe_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=f"mine.yaml: .*{message}"):
        load_recipe(write(tmp_path, text))


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.yaml: cannot read the recipe"):
        load_recipe(tmp_path / "none.yaml")
    (tmp_path / "weights.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="not a text file in UTF-8"):
        load_recipe(tmp_path / "weights.yaml")


@pytest.mark.parametrize("dash", ["-", "_"])
def test_settings_are_told_from_other_words_wherever_they_stand(dash: str) -> None:
    words = [
        "--no-think",
        "start",
        f"--max{dash}completion{dash}length",
        "30",
        "--n",
        "16",
        "--tasks=rings",
        "--template=plain",
        "--fps",
        "2",
    ]
    others, given = split_settings(EvalSettings, words)
    assert others == ["start", "--n", "16", "--tasks=rings"]
    expected = {"think": False, "max_completion_length": 30, "template": "plain", "fps": 2.0}
    assert parse_settings(EvalSettings, given) == expected


@pytest.mark.parametrize(
    ("words", "value"),
    [
        (["--think"], True),
        (["--no-think", "--think"], True),
        (["--think", "false", "x"], False),
        (["--think=no"], False),
        (["--no-think", "true"], False),
    ],
)
def test_a_switch_needs_no_value(words: list[str], value: bool) -> None:
    others, given = split_settings(EvalSettings, words)
    assert parse_settings(EvalSettings, given) == {"think": value}
    assert others == [word for word in words if word == "x" or (word == "true" and words[0] == "--no-think")]


SETTINGS = {"layer": "-2", "probes": "all", "video_pixels": "4096", "think": "true", "template": "plain"}
OTHERS = ["start", "--n=4", "--tasks=rings", "--output=there"]


@given(st.permutations([*SETTINGS, *OTHERS]), st.lists(st.booleans(), min_size=9, max_size=9))
def test_any_order_says_the_same(order: list[str], equals: list[bool]) -> None:
    words: list[str] = []
    for word, joined in zip(order, equals, strict=True):
        if word in OTHERS:
            words.append(word)
        else:
            words += [f"--{word}={SETTINGS[word]}"] if joined else [f"--{word}", SETTINGS[word]]
    others, given_words = split_settings(EvalSettings, words)
    assert others == [word for word in order if word in OTHERS]
    found = parse_settings(EvalSettings, given_words)
    assert found == {"layer": -2, "probes": "all", "video_pixels": 4096, "think": True, "template": "plain"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--layer", "top"], r'command line: layer: expected int, got "top"'),
        (["--fps"], "command line: --fps has no value"),
        (["--think=perhaps"], r'command line: think: expected true or false, got "perhaps"'),
    ],
)
def test_errors_of_settings_name_the_key(words: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        parse_settings(EvalSettings, split_settings(EvalSettings, words)[1])


@pytest.mark.parametrize(
    ("hint", "value", "expected"),
    [
        (float, "1e-5", 1e-5), (int, 12.0, 12), (str, 1e-5, "1e-05"), (str, 3, "3"), (bool, "off", False), (bool, "Yes", True),
        (int | str, "3", 3), (int | str, "many", "many"), (bool | str | None, "true", True), (str | None, "null", "null"),
        (float | None, None, None), (str | list[str], "a", "a"), (list[int] | None, 4, [4]), (list[int], ["1", 2.0], [1, 2]),
        (dict[str, Any] | str, {"a": 1}, {"a": 1}), (Literal["a", "b"], "c", "c"), (SaveStrategy | str, "no", SaveStrategy.NO),
    ],
)  # fmt: skip
def test_a_value_takes_the_first_type_that_it_fits(hint: Any, value: Any, expected: Any) -> None:
    found = _typed({"key": value}, {"key": hint}, "here")["key"]
    assert (found, type(found)) == (expected, type(expected))


@pytest.mark.parametrize(
    ("hint", "value"),
    [(int, True), (float, False), (str, True), (str, ["a"]), (bool, "maybe"), (list[int], ["a"]), (dict, "a"), (int | None, 1.5)],
)  # fmt: skip
def test_no_value_is_bent_to_another_type(hint: Any, value: Any) -> None:
    with pytest.raises(DataError, match=r"^here: key: expected .*, got "):
        _typed({"key": value}, {"key": hint}, "here")


def test_the_file_is_found_bad_before_what_is_slow_is_imported(tmp_path: Path) -> None:
    path = write(tmp_path, "model: [\n")
    code = (
        "import sys; from typer.testing import CliRunner; from ral.cli import app\n"
        "for command in ('train', 'sft', 'plan'):\n"
        f"    found = CliRunner().invoke(app, [command, {str(path)!r}])\n"
        "    assert found.exit_code == 2, found.output\n"
        "    assert 'mine.yaml, line 2: not valid YAML' in found.stderr, found.stderr\n"
        "assert not {'torch', 'transformers', 'peft'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("path", sorted(Path("recipes").rglob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_hold_what_another_reader_finds_in_them(path: Path) -> None:
    """PyYAML follows YAML 1.1, which reads `1e-5` as text, and `no` as false."""
    expected = yaml.safe_load(path.read_text(encoding="utf-8"))
    found = read_yaml(path)
    assert found.keys() == expected.keys()
    for key, value in found.items():
        assert (
            value == expected[key]
            or value == {False: "no", True: "yes"}.get(expected[key])
            or value == float(expected[key])
        )


def test_keys_of_other_libraries_are_translated_into_ours() -> None:
    ours = {*_settable(RALConfig), *(item.name for item in fields(Recipe))}
    assert not ours & FOREIGN.keys(), "such a key would never be looked up"
    for key, (_, here) in FOREIGN.items():
        named = re.findall(r"`([a-z_]+)[`:]", here)
        assert set(named) <= ours, key
    assert translated("use_vllm") == "`use_vllm` is a key of TRL and ms-swift; here it is `rollout_engine: vllm`"
    assert translated("learning_rat") is None


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            "clip_ratio_high: 0.28\n",
            r"mine.yaml: `clip_ratio_high` is a key of EasyR1 and verl; here it is `epsilon_high`\.",
        ),
        (
            "actor_rollout_ref: {rollout: {n: 5}}\n",
            r"`actor_rollout_ref` is a key of verl; here it is written flat: each of its keys by its own name",
        ),
        ("learning_rat: 1\n", r"unknown key 'learning_rat'; did you mean 'learning_rate'"),
    ],
)
def test_a_foreign_key_is_refused_with_its_translation(tmp_path: Path, given: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        load(tmp_path, given)
