"""Is every architecture of the zoo computed as transformers computes it? Writes what `docs/models.md` shows.

    python -m experiments.families.check            # all of them, some minutes on one core
    python -m experiments.families.check llama gemma3

The reference is transformers' own eager attention on one completion after the other.
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import logging

from experiments.families.zoo import KINDS, Prompt, tiny
from ral.attention import forward_group, prepare_prompt
from ral.attention.fork import carries_state
from ral.attention.models import family, special_visual_token_ids, why_repeated
from ral.families.family import TOKEN_KINDS
from ral.rollouts.sampling import Sampling, sample

RESULTS = Path(__file__).parent / "families.json"
PAGE = Path(__file__).parents[2] / "docs" / "models.md"
OPEN, CLOSE = "<!-- table -->\n", "<!-- end of table -->"
#: Largest differences that count as equal: log-probabilities, rows, gradients relative to the largest of their kind.
TOLERANCES = {"logps": 1e-5, "rows": 1e-6, "gradients": 1e-4}
LENGTHS = (5, 3, 7)


@dataclass(frozen=True)
class Checked:
    """One line of the table; `images` and `video` say whether they are read.

    dtype: float64 where transformers' own rounding in float32 is larger than the tolerances.
    rollout: whether greedy rollouts equal a full forward per token.
    trained: whether `experiments.families.train` made two updates with pictures; False also where nobody tried.
    """

    kind: str
    family: str
    way: str
    images: bool
    video: bool
    geometry: bool
    dtype: str
    logps: float
    rows: float
    gradients: float
    rollout: bool
    trained: bool = False

    @property
    def exact(self) -> bool:
        return self.rollout and all(getattr(self, name) <= limit for name, limit in TOLERANCES.items())


def way_of(model: PreTrainedModel) -> str:
    if why_repeated(model):
        return "repeated"
    kinds: list[Any] = [
        base for module in model.modules() for base in type(module).__mro__ if issubclass(base, nn.Module)
    ]
    return "forked" if any(carries_state(kind) for kind in kinds if "forward" in vars(kind)) else "packed"


def completions(lengths: tuple[int, ...] = LENGTHS) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, 80, (length,), generator=generator) for length in lengths]


def continued(model: PreTrainedModel, inputs: Prompt, y: Tensor) -> Prompt:
    """The prompt with a completion behind it, for the model's own forward."""
    ids = torch.cat([inputs["input_ids"], y[None]], dim=1)
    whole = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    suffix = int(
        bool(family(model).per_token(model, y[None], torch.zeros(1, len(y)).bool()).get("token_type_ids", y).any())
    )
    for name in TOKEN_KINDS:
        if name in inputs:
            value = suffix if name == "token_type_ids" else 0
            whole[name] = nn.functional.pad(inputs[name], (0, len(y)), value=value)
    return whole


def ordinary(model: PreTrainedModel, inputs: Prompt, ys: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Log-probabilities `[R]` and policy rows `[R, P+R]` of the last attention layer, of every completion."""
    logps, rows, length = [], [], inputs["input_ids"].shape[1]
    for y in ys:
        out: Any = model(**continued(model, inputs, y), output_attentions=True, use_cache=False)
        logps.append(out.logits[0, length - 1 : -1].log_softmax(-1).gather(-1, y[:, None])[:, 0])
        mean = [layer for layer in out.attentions if layer is not None][-1][0].mean(0)[length:]
        earlier = mean * (torch.arange(mean.shape[1])[None] < torch.arange(length, length + len(y))[:, None])
        rows.append(earlier / earlier.sum(dim=-1, keepdim=True))
    return logps, rows


def differences(model: PreTrainedModel, inputs: Prompt, repeated: bool | None = None) -> dict[str, float]:
    """The largest differences between `forward_group` and transformers' eager attention; gradients of a random functional."""
    reference = copy.deepcopy(model)
    reference.set_attn_implementation("eager")
    ys = completions()
    logps, rows = ordinary(reference, inputs, ys)
    out = forward_group(model, inputs, ys, repeated=repeated)
    generator = torch.Generator().manual_seed(3)
    found = {"logps": 0.0, "rows": 0.0}
    ours = theirs = torch.zeros(())
    for g, y in enumerate(ys):
        mine, weights = out.logps[g, : len(y)], out.attention[g, : len(y), : rows[g].shape[1]]
        found["logps"] = max(found["logps"], float((mine - logps[g]).abs().max()))
        found["rows"] = max(found["rows"], float((weights - rows[g]).abs().max()))
        a, b = torch.randn(len(y), generator=generator), torch.randn(rows[g].shape, generator=generator)
        ours = ours + (mine * a).sum() + (weights * b).sum()
        theirs = theirs + (logps[g] * a).sum() + (rows[g] * b).sum()
    ours.backward()
    theirs.backward()
    return found | {"gradients": gradients_apart(model, reference)}


def gradients_apart(model: nn.Module, reference: nn.Module) -> float:
    """The largest relative difference of any weight's gradient; small gradients count against a thousandth of the largest."""
    expected = {name: p.grad for name, p in reference.named_parameters() if p.grad is not None}
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert found.keys() == {name for name, grad in expected.items() if grad.any()} | (found.keys() & expected.keys())
    scale = max(float(grad.norm()) for grad in expected.values())
    return max(
        float((found[name] - grad).norm()) / max(float(grad.norm()), 1e-3 * scale)
        for name, grad in expected.items()
        if name in found
    )


@torch.no_grad()
def rollout_is_exact(model: PreTrainedModel, inputs: Prompt, length: int = 10) -> bool:
    """Greedy, beside a longer prompt in the batch, against a full forward of transformers' own attention per token."""
    reference = copy.deepcopy(model)
    reference.set_attn_implementation("eager")
    banned = torch.tensor(special_visual_token_ids(model), dtype=torch.long)
    written = torch.tensor([], dtype=torch.long)
    for _ in range(length):
        logits = reference(**continued(model, inputs, written), use_cache=False).logits[0, -1]
        written = torch.cat([written, logits.index_fill(-1, banned, -torch.inf).argmax()[None]])
    longer = {"input_ids": torch.arange(40)[None], "attention_mask": torch.ones(1, 40, dtype=torch.long)}
    prompts = [prepare_prompt(model, inputs), prepare_prompt(model, longer)]
    found = sample(
        model, prompts[: 1 if special_visual_token_ids(model) else 2], 2, Sampling(length, (99,), temperature=0)
    )
    return all(torch.equal(one.ids, written[: len(one.ids)]) for one in found[0])


def check(kind: str) -> Checked:
    model, inputs = tiny(kind)
    dtype, found = "float32", differences(model, inputs)
    if any(found[name] > limit for name, limit in TOLERANCES.items()):
        model, inputs = tiny(kind)
        model = model.double()
        model.set_experts_implementation("eager")  # grouped products know no float64
        inputs = {k: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in inputs.items()}
        dtype, found = "float64", differences(model, inputs)
    placeholders = family(model).placeholders(model.config)
    return Checked(
        kind,
        type(family(model)).__name__,
        way_of(model),
        "image" in placeholders,
        family(model).reads_video,
        family(model).has_geometry,
        dtype,
        **{name: float(f"{value:.1e}") for name, value in found.items()},
        rollout=rollout_is_exact(*tiny(kind)),
    )


def read() -> list[Checked]:
    return [Checked(**line) for line in json.loads(RESULTS.read_text(encoding="utf-8"))]


def table(lines: list[Checked]) -> str:
    """The table of `docs/models.md`."""

    def mark(yes: bool) -> str:
        return "yes" if yes else "–"

    head = ("architecture", "way", "images", "video", "geometry", "trained", "log-probs", "rows", "gradients", "in")
    rows = [
        (f"`{line.kind}`", line.way, mark(line.images), mark(line.video), mark(line.geometry), mark(line.trained),
         f"{line.logps:.0e}", f"{line.rows:.0e}", f"{line.gradients:.0e}", line.dtype)
        for line in lines
    ]  # fmt: skip
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, ["---"] * len(head), *rows))


def with_table(page: str, lines: list[Checked]) -> str:
    """The page with the table as it is now."""
    before, rest = page.split(OPEN)
    return before + OPEN + table(lines) + CLOSE + rest.split(CLOSE)[1]


def main(kinds: list[str]) -> None:
    logging.set_verbosity_error()
    lines = {line.kind: line for line in read()} if RESULTS.is_file() else {}
    for kind in kinds or KINDS:
        trained = kind in lines and lines[kind].trained
        lines[kind] = replace(check(kind), trained=trained)
        print("ok " if lines[kind].exact else "BAD", lines[kind], flush=True)
    write(lines)


def write(lines: Mapping[str, Checked]) -> None:
    """The results, and the page that shows them."""
    kept = [asdict(lines[kind]) for kind in KINDS if kind in lines]
    RESULTS.write_text("[\n" + ",\n".join(json.dumps(line) for line in kept) + "\n]\n", encoding="utf-8")
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), read()), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
