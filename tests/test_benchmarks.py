"""Benchmarks compare what is the same computation, and every way that they time does the work it is timed for."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from benchmarks import data_loading, evaluation, gpu, gpu_sections, rollout, training_step, update_step
from benchmarks.cases import Setting, build_case
from benchmarks.common import compare, counted, median_ratio, write_result
from benchmarks.gpu_sections import SECTIONS
from benchmarks.page import Results, page, targets
from benchmarks.suite import CELLS

SMALL = Setting(image_size=32, completion_tokens=4, group=4)


def test_every_peer_computes_our_loss_and_gradient() -> None:
    found = update_step.differences(SMALL, update_step.WAYS)
    assert found.keys() == update_step.TWINS.keys()
    for gap in found.values():
        assert gap["loss"] == pytest.approx(0, abs=1e-6)
        assert gap["gradient_relative"] < 1e-4


def test_rollouts_of_both_ways_are_of_full_length() -> None:
    case = build_case(Setting(image_size=32, completion_tokens=5, group=3, prompts=2))
    ours, theirs = rollout.ours(case), rollout.generate(case)
    assert [[len(y) for y in group] for group in ours] == [[5] * 3] * 2
    assert theirs.shape == (6, case.prompt_tokens + 5)


@pytest.mark.parametrize("way", training_step.WAYS)
def test_a_training_run_makes_its_updates(way: str) -> None:
    before = build_case(SMALL).model.state_dict()
    case = build_case(SMALL)
    trainer = training_step.WAYS[way](case)
    trainer.train()
    assert trainer.state.global_step == training_step.UPDATES
    changed = [name for name, value in case.model.state_dict().items() if not torch.equal(value, before[name])]
    assert changed
    assert not [name for name in changed if "visual" in name]


def test_evaluation_and_loading_run_on_images_and_video() -> None:
    case = build_case(Setting(image_size=32, completion_tokens=3, prompts=2))
    assert [len(item.completion.ids) for item in evaluation.ours(case)] == [3, 3]
    assert evaluation.generate(case).shape == (2, case.prompt_tokens + 3)
    for setting in (Setting(image_size=32, prompts=2), Setting(image_size=32, frames=4, prompts=2)):
        for way in ("ours+threads", "ours+workers"):
            arm = data_loading.build(setting, way)
            arm.run()
        assert arm.items == 2
        assert arm.facts["prompt_tokens"] > 16


def test_the_work_of_fused_attention_on_a_cpu_is_counted() -> None:
    q, k, v = (torch.randn(2, 3, n, 8, requires_grad=True) for n in (5, 7, 7))

    def attend() -> torch.Tensor:
        return torch.nn.functional.scaled_dot_product_attention(q, k, v)

    assert counted(attend) == 2 * (2 * 2 * 3 * 5 * 7 * 8)
    assert counted(lambda: attend().sum().backward()) == (2 + 5) * (2 * 2 * 3 * 5 * 7 * 8)


def test_a_measurement_is_kept_and_stands_on_the_page(tmp_path: Path) -> None:
    result = compare(update_step.build, SMALL, ["ours", "ours+attention"], repeats=2, threads=1)
    kind = {"benchmark": "update_step", "setting": asdict(SMALL)}
    write_result(tmp_path / "a.json", kind | result)
    kept = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert kept["time_ratio"]["ours"]["ours"] == 1
    assert kept["environment"]["machine"]["cpu_count"] > 0
    assert len(kept["all_seconds"]["ours"]) == 2
    assert 0 < kept["share_of_matmul_peak"]["ours"] < 1
    assert median_ratio([2.0, 4.0, 9.0], [1.0, 1.0, 3.0]) == 3
    results = Results(tmp_path)
    assert "ours+attention" in page(results)
    assert all(target.measured is None for target in targets(results))  # no peer was timed


def test_no_two_cells_share_a_file() -> None:
    assert len({cell.name for cell in CELLS}) == len(CELLS)


def test_the_benchmark_of_gpus_runs_dry_from_start_to_end(tmp_path: Path) -> None:
    """What it measures on a GPU, with tiny sizes on the CPU."""
    assert gpu.main(["--dry", "--output", str(tmp_path / "gpu")]) == 0
    *outcomes, summary = map(json.loads, (tmp_path / "gpu.jsonl").read_text().splitlines())
    assert [outcome["section"] for outcome in outcomes] == [section.name for section in SECTIONS]
    for outcome, section in zip(outcomes, SECTIONS, strict=True):
        if section.package is None:
            assert outcome["ok"] is True, outcome
            assert outcome["figures"]
    assert summary["failed"] == []
    text = (tmp_path / "gpu.md").read_text()
    assert "## TRL's step: held" in text
    assert "| way | seconds | tokens_a_second | mfu | share_of_term |" in text


def test_a_section_that_fails_hangs_or_comes_too_late_is_reported_and_no_more(
    capsys: pytest.CaptureFixture[str],
) -> None:
    bench = gpu_sections.Bench(dry=True)

    def failing(bench: gpu_sections.Bench) -> gpu_sections.Figures:
        yield {"before": 1}
        raise ValueError("kernel")

    def hanging(bench: gpu_sections.Bench) -> gpu_sections.Figures:
        yield {}
        time.sleep(60)

    failed = gpu.measure(gpu_sections.Section("a", failing, 5), bench, left=10)
    assert (failed.ok, failed.figures) == (False, [{"before": 1}])
    assert failed.said.startswith("ValueError: kernel (test_benchmarks.py:")
    hung = gpu.measure(gpu_sections.Section("b", hanging, 0.2), bench, left=10)
    assert (hung.ok, hung.seconds < 5) == (False, True)
    assert hung.said.startswith("TimeoutError: stopped after 0 s")
    late = gpu.measure(gpu_sections.Section("c", failing, 5), bench, left=4)
    assert (late.ok, late.said) == (None, "needs up to 5 s, 4 s are left")
    wrong = gpu.measure(gpu_sections.Section("d", lambda bench: iter([{"ok": False}]), 5), bench, left=9)
    assert wrong.ok is False
    missing = gpu.measure(gpu_sections.Section("e", failing, 5, package="no_such_package"), bench, left=9)
    assert (missing.ok, missing.said) == (None, "no_such_package is not installed")
    assert sum(section.seconds for section in gpu_sections.SECTIONS if section.package is None) < 1.35 * gpu.LIMIT
    text = gpu.page([failed, late], {"gpu": "none"})
    assert "## a: **failed**" in text
    assert "## c: left out" in text
