"""Reward functions are called as TRL calls them: the same function sees the same arguments in both."""

from __future__ import annotations

import asyncio
import copy
import functools
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from PIL import Image
from transformers import AutoModelForSequenceClassification, Qwen2Config, TrainerState
from trl import GRPOConfig, GRPOTrainer
from trl.rewards import get_soft_overlong_punishment

from ral.data.clean_copy import CleanCopy
from ral.data.readers import as_records
from ral.data.record import Record
from ral.rewards.arguments import arguments
from ral.rewards.calls import Arguments, RewardError
from ral.rewards.functions import build_rewards, score_group, score_groups
from tests.objective.test_terms import PROCESSOR, image_case, text_case

G = 2
ASKED = "what colour is inside the red ring?"
TURNS = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "yes"},
    {"role": "user", "content": ASKED},
]
PICTURE = Image.fromarray(np.arange(32 * 32 * 3, dtype=np.uint8).reshape(32, 32, 3))
ROWS: dict[str, dict[str, Any]] = {
    "text": {"prompt": ASKED, "solution": "green", "level": 3},
    "messages": {"prompt": TURNS, "solution": "green", "level": 3},
    "images": {"prompt": TURNS[3:], "images": [PICTURE], "solution": "green", "level": 3},
}


def trls(folder: Path, row: dict[str, Any], *rewards: Any) -> tuple[GRPOTrainer, Any]:
    """TRL's trainer on one row, and its completions of it; the batch is sampled and rewarded."""
    model, processing_class, _ = image_case() if "images" in row else text_case()
    args = GRPOConfig(
        output_dir=str(folder), use_cpu=True, bf16=False, per_device_train_batch_size=G, num_generations=G,
        max_completion_length=6, beta=0.0, report_to="none", seed=1,
    )  # fmt: skip
    data = Dataset.from_list([row])
    trainer = GRPOTrainer(model, list(rewards), args=args, train_dataset=data, processing_class=processing_class)
    trainer.model.train()
    Accelerator(cpu=True)
    trainer._generate_and_score_completions([row for row in trainer.train_dataset for _ in range(G)])
    return trainer, processing_class


def plain(value: Any) -> Any:
    """Pictures as pixels, so that they can be compared."""
    if isinstance(value, Image.Image):
        return np.asarray(value).tolist()
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    return [plain(one) for one in value] if isinstance(value, list | tuple) else value


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("is_async", [False, True])
def test_a_function_sees_what_it_sees_in_trl(kind: str, is_async: bool, tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []

    def look(**keywords: Any) -> list[float]:
        keywords["log_extra"]("length", [len(ids) for ids in keywords["completion_ids"]])
        keywords["log_metric"]("longest", 6.0)
        seen.append(keywords)
        return [1.0, 0.0]

    async def look_later(**keywords: Any) -> list[float]:
        await asyncio.sleep(0)
        return look(**keywords)

    fn = look_later if is_async else look
    trls(tmp_path, ROWS[kind], fn)
    [theirs] = seen
    texts = [one if isinstance(one, str) else one[0]["content"] for one in theirs["completions"]]
    [record] = as_records([copy.deepcopy(ROWS[kind])])
    given = arguments(record, texts, theirs["completion_ids"])
    [scored] = score_groups(build_rewards([fn]), [given], trainer_state=TrainerState())
    ours = seen[1]
    assert theirs.keys() <= ours.keys()
    for name in theirs.keys() - {"trainer_state", "log_extra", "log_metric"}:
        assert plain(ours[name]) == plain(theirs[name]), name
    assert type(ours["trainer_state"]) is type(theirs["trainer_state"])
    assert scored.log.extra == {"length": [len(ids) for ids in theirs["completion_ids"]]}
    assert scored.log.metrics == {"longest": [6.0]}
    # The scorers of this package read the same words, whatever the form.
    words = build_rewards(["accuracy"], think=False)
    assert score_groups(words, [given])[0].total == score_group(words, [ASKED] * G, texts, given.columns).total


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reward") / "tiny-reward"
    torch.manual_seed(0)
    tokenizer = copy.deepcopy(PROCESSOR.tokenizer)
    tokenizer.chat_template = PROCESSOR.chat_template
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, num_labels=1, pad_token_id=tokenizer.pad_token_id, initializer_range=0.3,
    )  # fmt: skip
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["text", "messages"])
def test_a_reward_model_gives_trls_rewards(kind: str, reward_model: Path, tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []

    def look(**keywords: Any) -> list[float]:
        seen.append(keywords)
        return [0.0] * G

    trainer, _ = trls(tmp_path, ROWS[kind], look, str(reward_model))
    theirs = list(trainer._logs["rewards"]["tiny-reward"])
    [reward] = build_rewards([str(reward_model)])
    assert reward.name == "tiny-reward"
    ours = score_group([reward], seen[0]["prompts"], seen[0]["completions"], {}).total
    assert ours == pytest.approx(theirs, rel=1e-4)
    assert ours[0] != ours[1]
    loaded = AutoModelForSequenceClassification.from_pretrained(reward_model)
    assert score_group(build_rewards([loaded]), seen[0]["prompts"], seen[0]["completions"], {}).total == ours


def test_a_reward_model_that_cannot_be_loaded_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(RewardError, match=r"reward model .*empty. cannot be loaded"):
        build_rewards([str(tmp_path / "empty")])


def test_the_soft_overlong_punishment_is_trls() -> None:
    ids = [[0] * n for n in range(1, 41)]
    [reward] = build_rewards(["soft_overlong_punishment"], max_completion_length=32, soft_punish_cache=12)
    ours = score_group([reward], [""] * 40, [""] * 40, {"completion_ids": ids}).total
    assert ours == pytest.approx(get_soft_overlong_punishment(32, 12)(completion_ids=ids))
    for named, cache, said in [
        ([], 12, "does nothing without the reward soft_overlong_punishment"),
        (["soft_overlong_punishment"], None, "needs soft_punish_cache"),
        (["soft_overlong_punishment"], 33, "must be between 1 and max_completion_length=32"),
    ]:
        with pytest.raises(RewardError, match=said):
            build_rewards(["format", *named], max_completion_length=32, soft_punish_cache=cache)


def test_only_prompts_that_are_messages_in_the_data_are_messages_for_rewards(tmp_path: Path) -> None:
    said = {"from": "human", "value": ASKED}, {"from": "gpt", "value": "green"}
    rows: list[tuple[dict[str, Any], bool]] = [
        (ROWS["text"], False), (ROWS["messages"], True), ({"messages": [*TURNS, {"role": "assistant", "content": "green"}]}, True),
        ({"problem": ASKED, "solution": "green"}, False), ({"conversations": list(said)}, False),
    ]  # fmt: skip
    for row, conversational in rows:
        [record] = as_records([copy.deepcopy(row)])
        assert record.conversational is conversational
        copied = CleanCopy(tmp_path / "copy")
        copied.write(record, [])
        copied.close()
        [again] = as_records(tmp_path / "copy" / "data.jsonl")
        assert again.conversational is conversational
        assert again.extra.keys() == record.extra.keys()


# --- at the same time, by name, and where they fail ---------------------------------------------------------------


def group(size: int = 1) -> Arguments:
    return Arguments(["?"] * size, ["a"] * size, {})


def test_async_functions_of_all_groups_run_at_once_and_beside_the_others() -> None:
    running: list[str] = []
    together = threading.Event()

    async def slow(completions: list[str], **columns: Any) -> list[float]:
        running.append("async")
        while len(running) < 6:
            await asyncio.sleep(0.001)
        together.set()
        return [1.0] * len(completions)

    async def other(**columns: Any) -> list[float]:
        return await slow(**columns)

    def waits(completions: list[str], **columns: Any) -> list[float]:
        assert together.wait(10), "the coroutines run while this function does"
        return [0.5] * len(completions)

    scored = score_groups(build_rewards([slow, waits, other]), [group(n) for n in (1, 2, 3)])
    assert [one.total for one in scored] == [[2.5], [2.5] * 2, [2.5] * 3]
    assert list(scored[0].parts) == ["slow", "waits", "other"]


def test_what_a_coroutine_keeps_open_stays_usable() -> None:
    loops = set()

    async def keeps(completions: list[str], **columns: Any) -> list[float]:
        loops.add(id(asyncio.get_running_loop()))
        return [0.0]

    for _ in range(3):
        score_groups(build_rewards([keeps]), [group()])
    assert len(loops) == 1


def test_a_slow_coroutine_is_stopped_and_named_with_its_group() -> None:
    async def endless(completions: list[str], **columns: Any) -> list[float]:
        if len(completions) == 2:
            await asyncio.sleep(60)
        return [0.0] * len(completions)

    started = time.monotonic()
    with pytest.raises(RewardError, match=r"reward 'endless' took more than 0\.3 s") as caught:
        score_groups(build_rewards([endless]), [group(1), group(2), group(1)], time_limit=0.1)
    assert time.monotonic() - started < 10
    assert caught.value.group == 1


def helper(value: Any) -> float:
    return json.loads(value)


def breaks(completions: list[str], **columns: Any) -> list[float]:
    return [helper("{") for _ in completions]


async def breaks_later(completions: list[str], **columns: Any) -> list[float]:
    return breaks(completions)


@pytest.mark.parametrize("fn", [breaks, breaks_later, functools.partial(breaks, level=3)])
def test_an_error_names_file_and_line_of_the_users_code(fn: Any) -> None:
    line = helper.__code__.co_firstlineno + 1
    with pytest.raises(RewardError, match=rf"JSONDecodeError: .* \(.*test_calls.py, line {line}\)") as caught:
        score_groups(build_rewards([fn]), [group(), group()])
    assert caught.value.group == 0


class Counted:
    def __init__(self, value: float):
        self.value = value

    def __call__(self, completions: list[str], **columns: Any) -> list[float]:
        return [self.value] * len(completions)


def test_lambdas_partials_and_objects_have_names_of_their_own() -> None:
    functions = [
        lambda completions, **_: [1.0] * len(completions), lambda completions, **_: [2.0] * len(completions),
        Counted(4.0), Counted(8.0), functools.partial(breaks, 3),
    ]  # fmt: skip
    rewards = build_rewards(functions)
    assert [reward.name for reward in rewards] == ["lambda", "lambda_2", "Counted", "Counted_2", "breaks"]
    assert score_group(rewards[:4], ["?"], ["a"], {}).total == [15.0]


def test_a_function_without_any_keyword_gets_the_ones_it_names() -> None:
    def exact(prompts: Any, completions: Any, level: Any) -> list[float]:
        return [1.0 * value for value in level]

    assert score_group(build_rewards([exact]), ["?"], ["a"], {"level": [3]}).total == [3.0]


@pytest.mark.parametrize(
    ("log", "said"),
    [
        (lambda extra, metric: extra("a", [1]), r"log_extra\('a'\) got 1 values for 2 completions"),
        (lambda extra, metric: (extra("a", [1, 2]), extra("a", [1, 2])), "was called twice"),
        (lambda extra, metric: metric("loss", 1.0), r"log_metric\('loss'\) has the name of a metric of the run"),
        (lambda extra, metric: metric("a", float("nan")), r"log_metric\('a'\) got nan; expected a finite number"),
    ],
)
def test_what_cannot_be_logged_is_an_error(log: Any, said: str) -> None:
    def logs(completions: list[str], log_extra: Any, log_metric: Any, **columns: Any) -> list[float]:
        log(log_extra, log_metric)
        return [0.0, 0.0]

    with pytest.raises(RewardError, match=said):
        score_group(build_rewards([logs]), ["?"] * 2, ["a"] * 2, {})


# --- a judge behind a server --------------------------------------------------------------------------------------


class Judge(BaseHTTPRequestHandler):
    """As an OpenAI-compatible server answers: full marks for green, once out of order."""

    asked: list[dict[str, Any]]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append(body | {"path": self.path})
        text = body["messages"][0]["content"]
        said = "I cannot say" if "maybe" in text else "10" if "judge: green" in text else "2/10"
        status = 503 if len(self.asked) == 1 else 200
        reply = json.dumps({"choices": [{"message": {"role": "assistant", "content": said}}]}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def judge_server() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    Judge.asked = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Judge)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1", Judge.asked
    server.shutdown()


def test_the_example_of_a_judge_asks_a_server(
    judge_server: tuple[str, list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, asked = judge_server
    monkeypatch.setenv("JUDGE_URL", url)
    file = Path(__file__).parents[2] / "recipes/judge/llm_judge.py"
    rewards = build_rewards([f"{file}:judge", "format"])
    told = ["<think>t</think><answer>green</answer>", "<think>t</think><answer>red</answer>", "maybe"]
    groups = [
        arguments(Record("1", ASKED, "green"), told, [[1]] * 3),
        arguments(Record("2", ASKED, "green", conversational=True), told[:2], [[1]] * 2),
    ]
    first, second = score_groups(rewards, groups)
    assert first.parts["judge"] == [1.0, 0.2, None]
    assert first.log.extra == {"judge": ["10", "2/10", "I cannot say"]}
    assert first.log.metrics == {"judge_unreadable": [pytest.approx(1 / 3)]}
    assert second.parts["judge"] == [1.0, 0.2]
    assert {body["path"] for body in asked} == {"/v1/chat/completions"}
    assert all(ASKED in body["messages"][0]["content"] for body in asked)
    assert len(asked) == 6, "one was asked again"
