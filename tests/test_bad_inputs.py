"""Bad inputs and settings, each at the entry point that a user meets it at, with what the message has to say.

A message names what is wrong (file, row, field or setting), says what was expected, and what to do; it is one line.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

from ral import RALConfig, RALTrainer
from ral.cli import app
from ral.data.media import load_image, load_video
from ral.data.readers import as_records, read_records
from ral.errors import RalError
from ral.models.loading import load_config, load_model
from ral.recipe import load_recipe
from ral.runs.folder import prepare_run
from ral.testbed import load_start, start_checkpoint
from ral.testbed.rings import ring_records
from ral.training.launch import start_model
from ral.training.sft import SFTTask

Cause = Callable[[Path], Any]

ROW = {"problem": "what is it?", "solution": "a cat"}


# --- entry points: each takes the folder of the test first ----------------------------------------------------------


def recipe(text: str, *words: str, kind: Any = None) -> Cause:
    def load(folder: Path) -> None:
        path = folder / "mine.yaml"
        path.write_text(text if text.startswith("\0") else "model: start\ndata: rings\nuse_cpu: true\n" + text)
        load_recipe(path, words, *([kind] if kind else []))

    return load


def setting(**values: Any) -> Cause:
    return lambda folder: RALConfig(output_dir=str(folder), use_cpu=True, **values)


def row(*rows: Any, **reading: Any) -> Cause:
    """Rows of a JSON lines file, the bad one last."""

    def read(folder: Path) -> None:
        (folder / "d.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
        list(read_records(folder / "d.jsonl", **reading))

    return read


def data_file(name: str, content: bytes) -> Cause:
    def read(folder: Path) -> None:
        (folder / name).write_bytes(content)
        list(read_records(folder / name))

    return read


def image(name: str, content: bytes) -> Cause:
    def read(folder: Path) -> None:
        (folder / name).write_bytes(content)
        load_image(folder / name, "d.jsonl: line 7")

    return read


def video(name: str, content: bytes) -> Cause:
    def read(folder: Path) -> None:
        (folder / name).write_bytes(content)
        load_video(folder / name, origin="d.jsonl: line 7")

    return read


def trainer(*, data: Any = None, **changes: Any) -> Cause:
    """A trainer of the shipped start model; keys of `RALTrainer` by name, other ones are settings."""
    own = {
        name: changes.pop(name)
        for name in ("reward_funcs", "reward_weights", "peft_config", "teacher", "data_collator")
        if name in changes
    }

    def build(folder: Path) -> None:
        model, processor = start()
        settings = {"output_dir": str(folder), "use_cpu": True, "template": "plain", "beta": 0.0, **changes}
        RALTrainer(model, RALConfig(**settings), data or ring_records(8, seed=0), processing_class=processor, **own)

    return build


def command(*words: str) -> Cause:
    """A command that must end with one line and exit code 2; {} in a word is the folder of the test."""

    def run(folder: Path) -> None:
        found = CliRunner().invoke(app, [word.format(folder) for word in words])
        assert found.exit_code == 2, found.output
        raise RalError(" ".join(found.stderr.split()))

    return run


def training(text: str) -> Cause:
    """`ral train` of a recipe; {} in it is the folder of the test. Its first line must come before the error."""

    def run(folder: Path) -> None:
        lines = {"model": "start", "data": "rings[:4]", "use_cpu": "true", "template": "plain", "output_dir": "{}/run"}
        given = dict(line.split(": ", 1) for line in text.splitlines())
        (folder / "mine.py").write_text("import math\ndef longest(completions, **columns):\n    return 1 / 0\n")
        whole = "".join(f"{key}: {value}\n" for key, value in {**lines, **given}.items())
        (folder / "mine.yaml").write_text(whole.replace("{}", str(folder)))
        found = CliRunner().invoke(app, ["train", str(folder / "mine.yaml")])
        assert found.exit_code == 2, found.output
        assert found.stdout.startswith(f"{folder}/mine.yaml → {folder}/run; its live report: ")
        raise RalError(" ".join(found.stderr.split()))

    return run


def no_memory(folder: Path) -> None:
    """A GPU's memory that runs out in the first step."""

    def full(self: RALTrainer, *arguments: Any, **named: Any) -> None:
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 1 GiB."
        )

    with patch.object(RALTrainer, "train", full):
        training("max_steps: 1")(folder)


def best_of_nothing(folder: Path) -> None:
    best = {
        "load_best_model_at_end": True,
        "eval_strategy": "steps",
        "save_strategy": "steps",
        "eval_steps": 2,
        "save_steps": 2,
    }
    trainer(**best)(folder)


start = cache(load_start)


# --- things that are bad ------------------------------------------------------------------------------------------


def png_header(width: int, height: int) -> bytes:
    """A PNG of a hundred bytes that promises any size."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")


def swollen_parquet(folder: Path) -> None:
    """Kilobytes on the disk, gigabytes in memory: one row that repeats itself."""
    table = pa.table({"problem": ["x" * (80 << 20)], "solution": ["y"]})
    pq.write_table(table, folder / "d.parquet", compression="zstd")
    assert (folder / "d.parquet").stat().st_size < 1 << 20
    list(read_records(folder / "d.parquet"))


def link_outside(folder: Path) -> None:
    (folder / "secret.png").write_bytes(png_header(4, 4))
    (folder / "data").mkdir()
    (folder / "data" / "link.png").symlink_to(folder / "secret.png")
    (folder / "data" / "d.jsonl").write_text(json.dumps(ROW | {"image": "link.png"}))
    list(read_records(folder / "data" / "d.jsonl"))


def code_of_its_own(folder: Path) -> None:
    config = {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Mine"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "mine.py").write_text("raise SystemExit('code of a model was run')")
    load_config(folder)


def pickled_weights(folder: Path) -> None:
    (folder / "config.json").write_text((start_checkpoint() / "config.json").read_text())
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04cos\nsystem\n(S'false'\ntR.")
    load_model(folder)


def pickled_adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(start_checkpoint())}))
    (folder / "adapter_model.bin").write_bytes(b"\x80\x04cos\nsystem\n(S'false'\ntR.")
    load_model(folder)


def other_model(folder: Path) -> None:
    from transformers import MambaConfig, MambaForCausalLM

    model = MambaForCausalLM(MambaConfig(num_hidden_layers=1, hidden_size=8, state_size=4, vocab_size=16))
    RALTrainer(model, RALConfig(output_dir=str(folder), use_cpu=True), [ROW], processing_class=start()[1])


def four_bits_in_shards(folder: Path) -> None:
    (folder / "mine.yaml").write_text(
        "model: start\ndata: rings\npeft: {r: 4}\nquantization: {load_in_4bit: true}\nfsdp: true\n"
    )
    start_model(load_recipe(folder / "mine.yaml", kind=SFTTask))


def occupied(folder: Path) -> None:
    prepare_run(folder, {})
    prepare_run(folder, {})


@dataclass(frozen=True)
class Bad:
    """Something bad, and what the message says about it."""

    name: str
    cause: Cause
    said: str


CASES = [
    # recipes
    Bad("no file", command("train", "{}/none.yaml"), r"none\.yaml: cannot read the recipe \(No such file"),
    Bad("a folder as recipe", command("train", "{}"), r"cannot read the recipe \(Is a directory\)"),
    Bad("a list as recipe", recipe("\0"), r"mine\.yaml: not valid YAML"),
    Bad("unknown key", recipe("lerning_rate: 1\n"), r"mine\.yaml: unknown key 'lerning_rate'; did you mean 'learning_rate'\?"),
    Bad("key twice", recipe("seed: 1\nseed: 2\n"), r"mine\.yaml, line 5: not valid YAML \(found duplicate key \"seed\""),
    Bad("wrong type", recipe("learning_rate: fast\n"), r'mine\.yaml: learning_rate: expected float, got "fast"'),
    Bad("half a step", recipe("max_steps: 1.5\n"), r"max_steps: expected int, got 1\.5"),
    Bad("code in YAML", recipe("x: !!python/object/apply:os.system [false]\n"), r"line 4: not valid YAML .*python/object"),
    Bad("YAML bomb", recipe("a: &a [x, x]\nb: [*a, *a]\n"), r"line 5: not valid YAML \(a reference \(\*name\); write the value out\)"),
    Bad("deep YAML", recipe("seed: " + "[" * 5000 + "\n"), r"mine\.yaml.*: not valid YAML"),
    Bad("control character", recipe("seed: \x07\n"), r"mine\.yaml: not valid YAML .*special characters"),
    Bad("deep override", recipe("", "--peft=" + "{a: " * 5000), r"command line: .*is not valid YAML; check its brackets"),
    Bad("override twice", recipe("", "--seed", "1", "--seed", "2"), r"command line: --seed is given twice"),
    Bad("override without value", recipe("", "--seed"), r"--seed has no value; write --seed VALUE"),
    Bad("word without field", recipe("", "oops"), r"'oops' follows no field; write overrides as --field value"),
    Bad("adapter's key", recipe("peft: {rank: 4}\n"), r"mine\.yaml: peft: unknown key 'rank'"),
    Bad("credential in a recipe", recipe("hub_token: hf_aaaaaaaaaaaaaaaaaaaa\n"), r"hub_token is a credential .* `hf auth login`"),
    Bad("setting of SFT that does nothing", recipe("packing: true\n", kind=SFTTask), r"packing belongs to TRL's own preparation"),
    Bad("remote code in SFT", recipe("trust_remote_code: true\n", kind=SFTTask), r"trust_remote_code belongs to"),
    # settings and their combinations
    Bad("one completion", setting(num_generations=1), r"num_generations=1: advantages compare .* at least 2"),
    Bad("batch of half groups", setting(per_device_train_batch_size=12), r"12 does not divide into groups of num_generations=8; use a multiple"),
    Bad("term that is zero", setting(num_iterations=1), r"num_iterations=1 trains nothing: .* Set num_iterations to 2"),
    Bad("unknown anchor", setting(attention_anchor="new"), r"attention_anchor='new' is not known; choose one of old, ref, group"),
    Bad("negative weight", setting(attention_coef=-1.0), r"attention_coef must be at least 0, got -1"),
    Bad("cold sampling", setting(temperature=0.0), r"temperature must be positive, got 0"),
    Bad("no mass", setting(top_p=0.0), r"top_p must be in \(0, 1\], got 0"),
    Bad("no layer", setting(attention_layers=[]), r"attention_layers is empty; name at least one"),
    Bad("saving between inner updates", setting(save_steps=5), r"save_steps=5 .* use a multiple of num_iterations=2"),
    Bad("share without measuring", setting(attention_share=0.1, gradient_norm_steps=0), r"attention_share=0\.1 does nothing with gradient_norm_steps=0; set gradient_norm_steps above 0, or leave"),
    Bad("number that is none", setting(learning_rate=float("nan")), r"learning_rate=nan: expected a finite number; give one, or leave learning_rate out"),
    Bad("number as text", setting(attention_coef="much"), r"attention_coef='much': expected float; give one, or leave .* default, 1\.0"),
    Bad("setting of another sampler", setting(vllm_sleep=True), r"vllm_sleep=True does nothing with rollout_engine='transformers'; set rollout_engine to vllm, or leave vllm_sleep out"),
    Bad("text alone for masking", trainer(data=[ROW, ROW], attention_anchor="evidence", evidence_from="masking"), r"evidence_from='masking' works on images and videos, but none of the 2 records has any.*give them images or videos"),
    Bad("text alone for a rival", trainer(data=[ROW], attention_coef=0.0, perception="vppo"), r"perception='vppo' works on images and videos, but none of the 1 records"),
    Bad("reentrant", setting(activation_checkpointing=True, activation_checkpointing_kwargs={"use_reentrant": True}), r"use_reentrant to false"),
    Bad("four bits in shards", four_bits_in_shards, r"quantization under fsdp: .*leave fsdp out \(recipes/accelerate/ddp\.yaml\)"),
    # rows
    Bad("no known field", row({"text": "x"}), r"d\.jsonl: line 1: the fields 'text' are of no known format; expected `problem`"),
    Bad("no answer", row(ROW, {"problem": "x"}), r"d\.jsonl: line 2: field 'solution': .*found nothing; correct the row or drop it"),
    Bad("empty question", row({"problem": " ", "solution": "x"}), r"line 1: field 'problem': expected a text, found ' '"),
    Bad("answer that is no number", row({"problem": "x", "solution": float("nan")}), r"field 'solution': expected the answer as text or number, found nan"),
    Bad("several answers, not all texts", row({"problem": "x", "solution": ["a", 2]}), r"field 'solution': .*found \['a', 2\]"),
    Bad("unknown type", row(ROW | {"problem_type": "essay"}), r"field 'problem_type': expected one of multiple choice, .* found 'essay'"),
    Bad("box inside out", row(ROW | {"boxes": [[3, 0, 1, 1]]}), r"field 'boxes': expected .* x0 < x1 and y0 < y1, found \[3, 0, 1, 1\]"),
    Bad("two columns of images", row(ROW | {"image": "a.png", "images": ["b.png"]}), r"one column of images"),
    Bad("two questions in turn", row({"prompt": [{"role": "user", "content": "x"}] * 2, "solution": "y"}), r"user and assistant that take turns"),
    Bad("a list as row", row([1]), r"d\.jsonl: line 1: is a list; expected an object with named fields"),
    Bad("path upwards", row(ROW | {"image": "../../etc/passwd"}), r"field 'image': expected a path inside .*found '\.\./\.\./etc/passwd'; set the media root"),
    Bad("absolute path", row(ROW | {"image": "/etc/passwd"}), r"field 'image': expected a path inside"),
    Bad("file URL", row(ROW | {"image": "file:///etc/passwd"}), r"field 'image': expected a path inside .*'/etc/passwd'"),
    Bad("web address", row(ROW | {"video": "http://example.org/v.mp4"}), r"field 'video': expected a local file, .*; download it and give its path"),
    Bad("web address in capitals", row(ROW | {"image": "HTTPS://example.org/v.png"}), r"expected a local file"),
    Bad("address of data", row(ROW | {"image": "data:image/png;base64,AAAA"}), r"line 1: embedded image cannot be decoded .*; replace"),
    Bad("zero byte in a path", row(ROW | {"image": "a\0.png"}), r"field 'image': expected a path"),
    Bad("link out of the root", link_outside, r"d\.jsonl: line 1: field 'image': expected a path inside .*found 'link\.png'; set the media root"),
    # files of data
    Bad("nowhere", lambda folder: list(read_records(folder / "none.json")), r"none\.json: no such file or folder, .*; check the path"),
    Bad("empty file", data_file("a.json", b""), r"a\.json: the file is empty"),
    Bad("no UTF-8", data_file("a.jsonl", b'{"problem": "\xff"}'), r"a\.jsonl: line 1: is not UTF-8 .*convert the file"),
    Bad("UTF-16", data_file("a.json", "[]".encode("utf-16")), r"a\.json: is UTF-16; convert it"),
    Bad("cut JSON", data_file("a.json", b'[{"problem": "x", "solution": "y"}, {"pr'), r"a\.json: row 2: is not JSON"),
    Bad("deep JSON", data_file("a.jsonl", b"[" * 10**6), r"a\.jsonl: line 1: is not JSON"),
    Bad("no parquet", data_file("a.parquet", b"{}"), r"a\.parquet: is not parquet, whatever its name says"),
    Bad("broken parquet", data_file("a.parquet", b"PAR1 and nothing"), r"a\.parquet: row 1: the parquet file is damaged"),
    Bad("parquet bomb", swollen_parquet, r"d\.parquet: row group 1 unpacks to 0\.1 GiB for 1 rows, more than 64 MiB a row"),
    Bad("pickle as data", data_file("a.pkl", b"\x80\x04."), r"a\.pkl: is no data file; expected one of \.json"),
    Bad("unknown format", lambda folder: list(read_records(folder, format="alpaca")), r"format 'alpaca' is unknown; known are auto"),
    Bad("a number as data", lambda _: as_records(3), r"data: is 3; expected rows, a `datasets\.Dataset`, a path"),  # type: ignore[arg-type]
    # media
    Bad("image bomb", image("b.png", png_header(8000, 8000)), r"line 7: image .*b\.png: 8000×8000 pixels, more than 50,000,000; scale it down"),
    Bad("larger image bomb", image("b.png", png_header(100_000, 100_000)), r"line 7: image .*b\.png: cannot be decoded \(Image size .*; replace the file"),
    Bad("cut image", image("c.png", png_header(64, 64)[:-30]), r"line 7: image .*c\.png: cannot be decoded .*replace the file or drop the row"),
    Bad("program as image", image("p.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), r"p\.png: cannot be decoded"),
    Bad("playlist as video", video("v.mp4", b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n"), r"line 7: video .*v\.mp4: cannot be decoded"),
    Bad("empty video", video("e.mp4", b""), r"line 7: video .*e\.mp4: cannot be decoded"),
    Bad("image as video", video("i.mp4", png_header(8, 8)), r"i\.mp4: cannot be decoded"),
    Bad("missing video", lambda folder: load_video(folder / "none.mp4", origin="row 3"), r"row 3: video .*none\.mp4: no such file; check the path"),
    # models
    Bad("model with code", code_of_its_own, r"comes with code of its own, which is never run"),
    Bad("pickled weights", pickled_weights, r"no file named model\.safetensors"),
    Bad("pickled adapter", pickled_adapter, r"holds an adapter without adapter_model\.safetensors; other formats can run code"),
    Bad("no attention at all", other_model, r"MambaForCausalLM is not supported: none of its decoder layers takes its attention"),
    Bad("export of whole weights", command("export", str(start_checkpoint()), "--output", "{}/out"), r"holds no adapter and no shards; its weights are whole"),
    # the trainer
    Bad("layer that is not there", trainer(attention_layers=[99]), r"attention_layers contains 99, but the model has \d decoder layers"),
    Bad("layer twice", trainer(attention_layers=[-1, -1]), r"names a layer twice"),
    Bad("kernel without a backward pass", trainer(attention_kernel="flex"), r"no backward pass on CPU; set attention_kernel to sdpa"),
    Bad("unknown reward", trainer(reward_funcs=["acuracy"]), r"'acuracy'.*accuracy"),
    Bad("weights for other rewards", trainer(reward_funcs=["accuracy"], reward_weights=[1.0, 2.0]), r"1 reward functions but weights \[1\.0, 2\.0\]; give one number for each"),
    Bad("distillation without teacher", trainer(distill_coef=1.0), r"there is no teacher; give one"),
    Bad("teacher without distillation", trainer(teacher="rings-teacher"), r"nothing is learnt from it; set distill_coef"),
    Bad("bad row in memory", trainer(data=[ROW, {"problem": "x"}]), r"train_dataset: row 2: field 'solution'"),
    Bad("occupied folder", occupied, r"already holds a run \(config\.yaml.*--resume, or replace it with --overwrite"),
    Bad("best without held-out data", best_of_nothing, r"needs an eval_dataset|didn't pass an `eval_dataset`"),
    Bad("another Trainer's collator", trainer(data_collator=len), r"data_collator would do nothing in RALTrainer: prompts are made of records"),
    Bad("halves of groups", setting(auto_find_batch_size=True), r"auto_find_batch_size=True would do nothing: a smaller batch would hold half a group"),
    Bad("no completions to show", setting(log_completions=True, samples_per_step=0), r"samples_per_step must be at least 1, got 0"),
    # ral train: the first line at once, then one sentence
    Bad("data that is not there", training("data: '{}/none.jsonl'"), r"none\.jsonl: no such file or folder, .*check the path"),
    Bad("held-out data that is not there", training("eval_data: {a: '{}/none.jsonl'}"), r"none\.jsonl: no such file or folder"),
    Bad("key of a source", training("data: {path: rings, wieght: 2}"), r"data: rings: unknown key 'wieght'; did you mean 'weight'\?"),
    Bad("weight of nothing", training("data: [{path: rings, weight: -1}]"), r"data: rings: weight: expected a number above 0, got -1"),
    Bad("weight of held-out data", training("eval_data: {path: rings, weight: 1}"), r"rings: weight says how often training takes a source; leave it out of eval_data"),
    Bad("reward of no name", training("reward_funcs: [acuracy]"), r"no reward is called 'acuracy'; known are accuracy"),
    Bad("reward in no file", training("reward_funcs: ['{}/none.py:f']"), r"none\.py:f' cannot be loaded: FileNotFoundError"),
    Bad("reward not in its file", training("reward_funcs: ['{}/mine.py:lnogest']"), r"mine\.py:lnogest' cannot be loaded: AttributeError: .*lnogest"),
    Bad("reward that fails", training("reward_funcs: ['{}/mine.py:longest']\nmax_steps: 1"), r"reward 'longest' failed: ZeroDivisionError: division by zero.*`ral replay"),
    Bad("model that is not there", training("model: '{}/modle'"), r"modle: there is no such folder"),
    Bad("key of another library", training("use_vllm: true"), r"mine\.yaml: .*use_vllm.*rollout_engine: vllm"),
    Bad("too little data", training("per_device_train_batch_size: 64"), r"holds 4 prompts, but one optimiser step takes 8"),
    Bad("looks at nothing", training("look_steps: 2"), r"look_steps=2 needs held-out records to look at; set eval_data"),
    Bad("no memory", no_memory, r"the GPU's memory does not suffice \(CUDA out of memory\); lower rollout_rows.*`ral plan RECIPE`"),
    # commands
    Bad("option that is the recipe's", command("check", "recipes/testbed/ral.yaml", "--columns", "{{a: b}}"), r"columns is the recipe's to say; leave it out"),
    Bad("report of nothing", command("report", "{}"), r"nothing to report"),
    Bad("comparison of nothing", command("compare", "{}/a", "{}/b"), r"no evaluation found; expected eval/<task>/items\.jsonl"),
    Bad("unknown task", command("eval", "start", "--tasks", "vstr", "--output", "{}"), r"'vstr'"),
    Bad("evaluation without folder", command("eval", "start", "--tasks", "rings"), r"lies in no run folder, so give --output"),
    Bad("unknown probe", command("eval", "start", "--tasks", "rings", "--output", "{}", "--probes", "eyes"), r"'eyes'.*heads"),
    Bad("heat map of another kind", command("look", "start", "--question", "?", "--output", "{}/a.gif"), r"a\.gif: expected a name that ends in \.png or \.html"),
    Bad("budget without model", command("check", "{}", "--max-prompt-tokens", "9"), r"--max-prompt-tokens needs --model"),
    Bad("unknown scorer", command("check", "{}", "--scorer", "lax"), r"--scorer 'lax' is not known; choose one of strict, compat"),
    Bad("credentials in a message", command("train", "https://me:hunter2@example.org/data.yaml"), r"https:/+\*\*\*@example\.org/data\.yaml: cannot read the recipe"),
    Bad("plan without a prompt", command("plan", "recipes/testbed/ral.yaml"), r"give --prompt-tokens"),
]  # fmt: skip


def test_there_are_as_many_as_promised() -> None:
    assert len(CASES) >= 110
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_the_message_says_what_is_wrong_and_what_to_do(case: Bad, tmp_path: Path) -> None:
    with pytest.raises((RalError, OSError), match=case.said) as caught:
        case.cause(tmp_path)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 1000
    assert "hunter2" not in message
