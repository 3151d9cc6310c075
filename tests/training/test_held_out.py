"""Held-out records: named sets, predictions, metrics of one's own, and the best model."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from transformers import EvalPrediction

from ral import RALConfig, RALTrainer
from ral.errors import ConfigError, DataError, RunError, UsageError
from ral.testbed import load_start
from ral.testbed.rings import ring_records
from tests.training.test_trainer import lines

MODEL, PROCESSOR = load_start()
RECORDS, HELD_OUT = ring_records(4, seed=0), ring_records(5, seed=1)


def trainer(
    folder: Path, eval_dataset: Any = None, *, given: dict[str, Any] | None = None, **changes: Any
) -> RALTrainer:
    values = {
        "output_dir": str(folder), "use_cpu": True, "template": "plain", "num_generations": 2, "max_steps": 2,
        "per_device_train_batch_size": 4, "max_completion_length": 12, "learning_rate": 1e-3, "save_strategy": "no",
        "disable_tqdm": True, "beta": 0.0, "per_device_eval_batch_size": 2,
    }  # fmt: skip
    args = RALConfig(**(values | changes))
    model = copy.deepcopy(MODEL)
    return RALTrainer(model, args, RECORDS, eval_dataset, processing_class=PROCESSOR, **(given or {}))


def test_predictions_are_the_texts_in_the_order_of_the_records(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    found = run.predict(HELD_OUT)
    assert list(found.label_ids or ()) == [record.solution for record in HELD_OUT]
    assert [run.predict([one]).predictions[0] for one in HELD_OUT] == found.predictions
    assert found.metrics is not None
    right = [
        run.scorer.rewards[0].fn(prompts=["?"], completions=[text], solution=[record.solution], problem_type=[record.problem_type])
        for text, record in zip(found.predictions, HELD_OUT, strict=True)
    ]  # fmt: skip
    assert found.metrics["test_reward/accuracy"] == pytest.approx(sum(one for (one,) in right) / 5)
    assert not (tmp_path / "metrics.jsonl").exists(), "a prediction is no step of the run"


def test_sets_are_evaluated_by_name_and_with_metrics_of_ones_own(tmp_path: Path) -> None:
    seen: list[EvalPrediction] = []

    def compute(prediction: EvalPrediction) -> dict[str, float]:
        seen.append(prediction)
        return {"words": sum(len(text.split()) for text in prediction.predictions) / len(prediction.predictions)}

    run = trainer(tmp_path, {"a": HELD_OUT[:2], "b": HELD_OUT[2:]}, given={"compute_metrics": compute})
    metrics = run.evaluate()
    assert [len(one.predictions) for one in seen] == [2, 3]
    assert [one.label_ids for one in seen] == [[r.solution for r in part] for part in (HELD_OUT[:2], HELD_OUT[2:])]
    assert seen[0].inputs == HELD_OUT[:2]
    assert {
        "eval_a_reward",
        "eval_a_reward/accuracy",
        "eval_a_words",
        "eval_b_reward",
        "eval_b_words",
    } <= metrics.keys()
    rows = lines(tmp_path / "metrics.jsonl")
    assert [sorted(row.keys() & {"eval_a_reward", "eval_b_reward"}) for row in rows] == [
        ["eval_a_reward"],
        ["eval_b_reward"],
    ]
    whole = run.evaluate(HELD_OUT)["eval_reward"]
    assert whole == pytest.approx((2 * metrics["eval_a_reward"] + 3 * metrics["eval_b_reward"]) / 5)


@pytest.mark.parametrize(
    ("result", "said"),
    [
        ([1.0], "returned list; expected a dictionary"),
        ({"reward": 1.0}, "'reward', which is measured already"),
        ({"words": "two"}, "'words': 'two'; expected a number"),
    ],
)
def test_results_of_metrics_that_cannot_be_logged_are_refused(tmp_path: Path, result: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        trainer(tmp_path, HELD_OUT[:1], given={"compute_metrics": lambda prediction: result}).evaluate()


@pytest.mark.parametrize("adapter", [False, True])
def test_the_best_model_by_reward_is_there_at_the_end(tmp_path: Path, adapter: bool) -> None:
    """The first evaluation counts as the best: the weights in the end are those before its checkpoint, two updates ago."""
    given: dict[str, Any] = {"compute_metrics": lambda prediction: {"first": next(values)}}
    values = iter([1.0, 0.5])
    if adapter:
        given["peft_config"] = LoraConfig(r=2, target_modules=["q_proj"])
    run = trainer(
        tmp_path, HELD_OUT[:1], given=given, max_steps=4, save_strategy="steps", eval_strategy="steps", save_steps=2,
        eval_steps=2, load_best_model_at_end=True, metric_for_best_model="first", save_total_limit=1,
    )  # fmt: skip
    saved: dict[str, torch.Tensor] = {}
    keep = run._save_checkpoint

    def watched(*arguments: Any) -> None:
        if not saved:
            saved.update({name: weight.detach().clone() for name, weight in run.model.named_parameters()})
        keep(*arguments)

    run._save_checkpoint = watched  # type: ignore[method-assign]
    run.train()
    assert run.state.best_model_checkpoint == str(tmp_path / "checkpoint-2")
    assert all(torch.equal(saved[name], weight) for name, weight in run.model.named_parameters())


def test_the_best_is_by_reward_if_not_said(tmp_path: Path) -> None:
    best = {"load_best_model_at_end": True, "save_strategy": "no", "eval_strategy": "no"}
    args = trainer(tmp_path, HELD_OUT, **best).args
    assert (args.metric_for_best_model, args.greater_is_better) == ("reward", True)
    assert trainer(tmp_path, HELD_OUT).args.metric_for_best_model is None
    with pytest.raises(
        ConfigError, match=r"metric_for_best_model='loss' is not measured .*choose one of reward, reward/accuracy"
    ):
        trainer(tmp_path, HELD_OUT, **best, metric_for_best_model="loss")
    with pytest.raises(ConfigError, match=r"'reward' is not measured .*choose one of a_reward, .*b_reward"):
        trainer(tmp_path, {"a": HELD_OUT, "b": HELD_OUT}, **best)
    trainer(tmp_path, {"a": HELD_OUT, "b": HELD_OUT}, **best, metric_for_best_model="eval_b_reward")


@pytest.mark.parametrize("name", ["data_collator", "compute_loss_func", "preprocess_logits_for_metrics", "model_init"])
def test_arguments_that_would_do_nothing_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=f"{name} would do nothing in RALTrainer: .*; leave it out"):
        trainer(tmp_path, given={name: lambda *_: None})


def test_sets_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"eval_dataset\['bad'\]: row 1: is 3; expected an object"):
        trainer(tmp_path, {"good": HELD_OUT, "bad": [3]})
    with pytest.raises(UsageError, match=r"'a/b' cannot name a set of records"):
        trainer(tmp_path, {"a/b": HELD_OUT})


def test_rows_need_a_solution_where_a_reward_reads_it(tmp_path: Path) -> None:
    def long(completions: list[str], **columns: Any) -> list[float]:
        assert columns["solution"] == [""] * len(completions)
        return [float(len(text)) for text in completions]

    def right(completions: list[str], solution: list[str], **columns: Any) -> list[float]:
        return [float(one == other) for one, other in zip(completions, solution, strict=True)]

    rows = [{"problem": "Describe a cat."}] * 4
    args = RALConfig(
        str(tmp_path), use_cpu=True, num_generations=2, per_device_train_batch_size=2, max_steps=1, max_completion_length=4,
        attention_coef=0.0, num_iterations=1, save_strategy="no",
    )  # fmt: skip
    run = RALTrainer(copy.deepcopy(MODEL), args, rows, {"a": rows[:1]}, long, processing_class=PROCESSOR)
    run.train()
    assert run.evaluate()["eval_a_reward"] > 0
    for rewards in (None, ["format", "accuracy"], right):
        with pytest.raises(DataError, match="train_dataset: row 1: field 'solution'"):
            RALTrainer(copy.deepcopy(MODEL), args, rows, None, rewards, processing_class=PROCESSOR)


def test_a_run_of_python_that_saved_nothing_is_replaced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer(tmp_path, save_strategy="no").train()
    assert "replaces" not in caplog.text
    trainer(tmp_path, save_strategy="no", max_steps=1).train()
    assert f"{tmp_path}: replaces the records of a run that saved nothing (config.yaml" in caplog.text
    assert [row["step"] for row in lines(tmp_path / "metrics.jsonl")] == [1]
    (tmp_path / "final").mkdir()
    with pytest.raises(RunError, match=r"already holds a run \(config\.yaml"):
        trainer(tmp_path, save_strategy="no").train()


def test_a_run_of_python_overwrites_no_other(tmp_path: Path) -> None:
    first = trainer(tmp_path, save_strategy="steps", save_steps=2)
    first.train()
    before = {name: (tmp_path / name).read_bytes() for name in ("config.yaml", "environment.json", "metrics.jsonl")}
    for act in (lambda run: run.train(), lambda run: run.evaluate(HELD_OUT[:1])):
        with pytest.raises(RunError, match=r"already holds a run \(config\.yaml.*resume_from_checkpoint=True"):
            act(trainer(tmp_path, seed=8))
    assert before == {name: (tmp_path / name).read_bytes() for name in before}
    with pytest.raises(RunError, match=r"seed: 42 → 8"):
        trainer(tmp_path, max_steps=4, seed=8).train(resume_from_checkpoint=True)
    trainer(tmp_path, max_steps=4).train(resume_from_checkpoint=True)
    assert (tmp_path / "config.yaml").read_bytes() == before["config.yaml"], "what the run was started with"
    assert [row["step"] for row in lines(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4]
    assert json.loads((tmp_path / "environment.json").read_text())["processes"] == 1
