"""What `torch_compile` takes and brings: `python -m benchmarks.compiled`, which writes `benchmarks/results/compiled.json`.

The update of eight completions of 16 to 64 tokens behind about 1,000, of other lengths in every round, by the model as it is
and as `torch.compile` makes it (inductor), in turn. Whatever is compiled is compiled in the first rounds, which are not timed.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Iterator
from dataclasses import asdict

import torch
from torch import Tensor

from benchmarks.cases import Setting, build_case
from benchmarks.common import RESULTS, interleaved_seconds, median_ratio, write_result
from ral.attention import forward_groups, prepare_prompt

SETTING = Setting(completion_tokens=64)
FIRST, ROUNDS, THREADS, SEED = 3, 9, 2, 0


def completions(vocabulary: int) -> Iterator[list[Tensor]]:
    """Groups without end, of other lengths every time."""
    generator = torch.Generator().manual_seed(SEED)
    while True:
        lengths = torch.randint(16, SETTING.completion_tokens + 1, (SETTING.group,), generator=generator)
        yield [torch.randint(0, vocabulary, (int(n),), generator=generator) for n in lengths]


def main() -> None:
    torch.set_num_threads(THREADS)
    case = build_case(SETTING, SEED)
    prompt = prepare_prompt(case.model, case.inputs[0])
    plain = case.model.train()
    models = {"plain": plain, "compiled": torch.compile(copy.deepcopy(plain))}

    def update(name: str) -> Callable[[], None]:
        model, groups = models[name], completions(case.processor.tokenizer.vocab_size)

        def step() -> None:
            (out,) = forward_groups(model, [prompt], [next(groups)])
            (out.logps.sum() + out.attention.square().sum()).backward()
            model.zero_grad()

        return step

    steps = {name: update(name) for name in models}
    first = interleaved_seconds(steps, FIRST)
    seconds = interleaved_seconds(steps, ROUNDS)
    result = {
        "setting": asdict(SETTING),
        "threads": THREADS,
        "first_seconds": first,
        "seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "time_ratio": median_ratio(seconds["compiled"], seconds["plain"]),
        "all_seconds": seconds,
    }
    write_result(RESULTS / "compiled.json", result)
    print(f"compiling: {sum(first['compiled']):.0f} s; compiled / plain: {result['time_ratio']:.2f}")


if __name__ == "__main__":
    main()
