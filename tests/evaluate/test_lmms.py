"""The lmms-eval plug-in. Where lmms-eval is installed it is driven by its registry and its evaluator, else the plug-in is
held against the interface that lmms-eval 0.7 publishes."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import sys
import tomllib
from collections import namedtuple
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from ral.data.prompt import build_messages
from ral.data.record import Record
from ral.errors import DataError
from ral.evaluate import lmms
from ral.evaluate.answering import answer, load_for_answering
from ral.evaluate.lmms import manifest, record_of, token_limit
from ral.evaluate.settings import EvalSettings
from ral.rewards.answers import extract_answer
from ral.testbed import start_checkpoint
from ral.testbed.rings import ring_records

INSTALLED = importlib.util.find_spec("lmms_eval") is not None
GROUP = "lmms_eval.models"
ENTRY = "ral.evaluate.lmms:manifest"


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def user(*content: dict[str, Any]) -> dict[str, Any]:
    return {"role": "user", "content": list(content)}


def shown(*messages: dict[str, Any], **settings: Any) -> list[Any]:
    """The parts of the prompt that a request becomes, its last words left out, which ask for thinking."""
    [turn] = build_messages(record_of(messages, "7", **settings), think=False)
    return [part.get("text") or part[part["type"]] for part in turn["content"]][:-1]


def test_media_stand_where_the_request_has_them() -> None:
    red, blue = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    images = {"type": "image", "url": red}, {"type": "image", "url": blue}
    assert shown(user(*images, text("Same?"))) == [red, blue]
    assert shown(user(text("First "), images[0], text(" then "), images[1], text("?"))) == [
        "First ",
        red,
        " then ",
        blue,
    ]
    # The benchmark's own marks say where images stand that are sent ahead of the text.
    assert shown(user(*images, text("<image> before <image>?"))) == [red, " before ", blue]
    film = {"type": "video", "url": "/films/a.mp4", "start_time": None, "end_time": None}
    assert shown(user(film, text("Who?"))) == [Path("/films/a.mp4")]


def test_system_words_come_first() -> None:
    system = {"role": "system", "content": [text("Be brief. ")]}
    record = record_of([system, user(text("Why?"))], "7", "multiple choice")
    assert (record.problem, record.problem_type) == ("Be brief. Why?", "multiple choice")


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([user(text("a")), user(text("b"))], "one user turn"),
        ([user(text("a")), {"role": "assistant", "content": [text("b")]}], "one user turn"),
        ([user({"type": "audio", "url": "a.wav"})], "has audio"),
        ([user({"type": "image", "url": {"bytes": b""}})], "medium that is a dict"),
        ([user({"type": "video", "url": "a.mp4", "start_time": 3.0})], "part of a video"),
    ],
)
def test_what_cannot_be_shown_is_refused(messages: list[Any], said: str) -> None:
    with pytest.raises(DataError, match=f"vstar: document 7: .*{said}"):
        record_of(messages, "7", origin="vstar: document 7")


def test_thinking_is_never_cut_short() -> None:
    settings = EvalSettings(max_completion_length=1024)
    assert token_limit(settings, {"max_new_tokens": 16, "temperature": 0}) == 1024
    assert token_limit(settings, {"max_new_tokens": 4096}) == 4096
    assert token_limit(settings, {"do_sample": False, "temperature": 1.0}) == 1024
    with pytest.raises(DataError, match="temperature=0"):
        token_limit(settings, {"do_sample": True, "temperature": 0.7})


def test_the_entry_point_is_declared() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["entry-points"][GROUP] == {"ral": ENTRY}
    assert project["optional-dependencies"]["lmms-eval"] == ["lmms-eval>=0.7"]


@pytest.mark.skipif(INSTALLED, reason="lmms-eval itself is asked below")
def test_the_model_has_what_lmms_eval_calls() -> None:
    """`lmms_eval.api.model.lmms` 0.7: three abstract methods, the flag of a chat model, and what `simple_evaluate` gives."""
    tree = ast.parse(Path(lmms.__file__).with_name("lmms_model.py").read_text(encoding="utf-8"))
    [model] = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    methods = {node.name: node for node in model.body if isinstance(node, ast.FunctionDef)}
    assert {"loglikelihood", "generate_until", "generate_until_multi_round"} <= set(methods)
    assert {"pretrained", "batch_size", "device", "max_batch_size"} <= {a.arg for a in methods["__init__"].args.args}
    assert "is_simple = False" in [ast.unparse(node) for node in model.body]
    assert [ast.unparse(base) for base in model.bases] == ["lmms"]


def stub(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, list[Any]]:
    """The plug-in's class on a stand-in for what it takes of lmms-eval, and what it logs and hands to the cache."""
    said: list[Any] = []

    class Base:
        def __init__(self) -> None:
            self.task_dict: dict[str, Any] = {}
            self.cache_hook = SimpleNamespace(add_partial=lambda *args: said.append(args))

        rank = property(lambda self: self._rank)

    parts = {
        "lmms_eval.api.instance": {
            "GenerationResult": result("text", "token_counts"),
            "TokenCounts": result("input_tokens", "output_tokens"),
            "Instance": Any,
        },
        "lmms_eval.api.model": {"lmms": Base},
        "loguru": {"logger": SimpleNamespace(warning=said.append)},
    }
    for name, content in ({"lmms_eval": {}, "lmms_eval.api": {}} | parts).items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "ral.evaluate.lmms_model", raising=False)
    found = importlib.import_module("ral.evaluate.lmms_model").RAL
    monkeypatch.delitem(sys.modules, "ral.evaluate.lmms_model")
    return found, said


def result(*names: str) -> Any:
    return namedtuple("Result", names)  # type: ignore[misc]


@pytest.mark.skipif(INSTALLED, reason="lmms-eval itself is asked below")
def test_it_answers_as_evaluation_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order of the requests, batch by batch, each with the limit of its batch; bodies alone, and what they cost."""
    kind, said = stub(monkeypatch)
    model = kind(str(start_checkpoint()), batch_size="2", template="plain", max_completion_length=20)
    assert (model.rank, model.batch_size_per_gpu, model.problem_type) == (0, 2, "free-form")
    records = ring_records(3, seed=5)
    model.task_dict = {"rings": {"test": records}}

    def messages(record: Record) -> list[dict[str, Any]]:
        return [user({"type": "image", "url": record.images[0]}, text(record.problem))]

    lengths = (4, 24, 30)
    requests = [
        SimpleNamespace(args=(f"context {i}", messages, {"max_new_tokens": n}, i, "rings", "test"))
        for i, n in enumerate(lengths)
    ]
    found = model.generate_until(requests)

    loaded, processor = load_for_answering(start_checkpoint())
    expected = []
    for batch, length in ((records[:2], 24), (records[2:], 30)):
        asked = [record_of(messages(r), str(i), "free-form") for i, r in enumerate(batch)]
        settings = EvalSettings(template="plain", max_completion_length=length)
        expected += answer(loaded, processor, asked, settings)
    bodies = [extract_answer(one.text, "strict", True) for one in expected]
    assert [one.text for one in found] == [body or "" for body in bodies]
    assert [one.token_counts for one in found] == [(len(e.prompt.input_ids), len(e.completion.ids)) for e in expected]
    unparsed = bodies.count(None)
    assert said[:3] == [
        ("generate_until", (f"context {i}", {"max_new_tokens": n}), body or "")
        for i, (n, body) in enumerate(zip(lengths, bodies, strict=True))
    ]
    assert said[3:] == ([f"{unparsed} of 3 completions hold no answer; they are scored as empty"] if unparsed else [])
    for other in (model.loglikelihood, model.generate_until_multi_round):
        with pytest.raises(NotImplementedError, match="choose a"):
            other([])
    with pytest.raises(DataError, match=r"--model_args: .*'poem'"):
        kind(str(start_checkpoint()), poem="a")


# ------------------------------------------------------------------------------------------------- with lmms-eval

TASK = """\
task: ral_rings
dataset_path: json
dataset_kwargs:
  data_files: {data}
test_split: train
output_type: generate_until
doc_to_visual: !function rings.visual
doc_to_text: !function rings.text
doc_to_target: answer
generation_kwargs:
  max_new_tokens: 4
  temperature: 0
  do_sample: false
process_results: !function rings.process
metric_list:
  - metric: right
    aggregation: mean
    higher_is_better: true
  - metric: bare
    aggregation: mean
    higher_is_better: true
"""
FUNCTIONS = """\
from PIL import Image

def visual(doc):
    return [Image.open(doc["image"]).convert("RGB")]

def text(doc, *unused):
    return doc["question"]

def process(doc, results):
    return {"right": float(results[0] == doc["answer"]), "bare": float("<" not in results[0] and bool(results[0]))}
"""


@pytest.mark.skipif(not INSTALLED, reason="lmms-eval is not installed")
def test_its_own_evaluator_scores_the_body_of_the_answer(tmp_path: Path) -> None:
    from lmms_eval import evaluator
    from lmms_eval.models import MODEL_REGISTRY_V2
    from lmms_eval.tasks import TaskManager

    if "ral" not in MODEL_REGISTRY_V2.list_canonical_model_ids():  # an old editable install declares no entry point
        MODEL_REGISTRY_V2.register_manifest(manifest())
    assert MODEL_REGISTRY_V2.resolve("ral").model_type == "chat"
    rows = []
    for record in ring_records(8, seed=5):
        picture = tmp_path / f"{record.id}.png"
        assert isinstance(record.images[0], Image.Image)
        record.images[0].save(picture)
        # The testbed's own question: lmms-eval sends the image ahead, the mark says where it stands.
        rows.append({"image": str(picture), "question": record.problem, "answer": record.solution})
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    folder = tmp_path / "task"
    folder.mkdir()
    (folder / "ral_rings.yaml").write_text(TASK.format(data=tmp_path / "rows.json"))
    (folder / "rings.py").write_text(FUNCTIONS)
    found = evaluator.simple_evaluate(
        model="ral",
        model_args=f"pretrained={start_checkpoint()},template=plain,max_completion_length=24",
        tasks=["ral_rings"],
        batch_size=4,
        device="cpu",
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
    )
    scores = found["results"]["ral_rings"]
    assert scores["bare,none"] == 1.0, "tags and thinking must not reach the scorer"
    assert 0 < scores["right,none"] < 1
