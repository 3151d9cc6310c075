from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.main import get_group
from typer.testing import CliRunner

from ral.cli import app

runner = CliRunner()
COMMANDS = get_group(app).commands


def test_help_does_not_wait_for_torch() -> None:
    """What is slow to import is not imported, which says more than a time on a busy machine."""
    code = (
        "import sys; sys.argv = ['ral', '--help']\n"
        "from ral.cli import main\n"
        "try: main()\n"
        "finally: assert not {'torch', 'transformers', 'matplotlib', 'scipy', 'datasets'} & sys.modules.keys()"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert "Reinforced Attention Learning" in found.stdout


def test_a_mistake_is_one_line_and_exit_code_two(tmp_path: Path) -> None:
    found = runner.invoke(app, ["report", str(tmp_path)])
    assert found.exit_code == 2
    assert found.stderr.startswith("error: ")
    assert str(tmp_path) in found.stderr
    assert "Traceback" not in found.output


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=tmp_path.name):
        runner.invoke(app, ["--debug", "report", str(tmp_path)], catch_exceptions=False)


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_explains_itself(command: str) -> None:
    found = runner.invoke(app, [command, "--help"])
    assert found.exit_code == 0
    assert "Usage" in found.output


def write_items(run: Path, task: str, correct: list[float]) -> None:
    folder = run / "eval" / task
    folder.mkdir(parents=True)
    rows = [json.dumps({"id": str(i), "correct": value}) for i, value in enumerate(correct)]
    (folder / "items.jsonl").write_text("\n".join(rows) + "\n")


def test_compare_shows_the_paired_difference(tmp_path: Path) -> None:
    write_items(tmp_path / "a", "rings", [1.0] * 4 + [0.0] * 6)
    write_items(tmp_path / "b", "rings", [1.0] * 9 + [0.0])
    write_items(tmp_path / "b", "other", [1.0])
    found = runner.invoke(app, ["compare", str(tmp_path / "a"), str(tmp_path / "b")])
    assert found.exit_code == 0
    assert (
        f"On rings (10 items), {tmp_path / 'b'} scores 90.0% and {tmp_path / 'a'} 40.0%: +50.0 points" in found.stdout
    )
    assert "5 items better, 0 worse" in found.stdout


def test_compare_says_what_is_missing(tmp_path: Path) -> None:
    write_items(tmp_path / "a", "rings", [1.0])
    found = runner.invoke(app, ["compare", str(tmp_path / "a"), str(tmp_path / "b")])
    assert found.exit_code == 2
    assert "no evaluation found" in found.stderr
    write_items(tmp_path / "b", "other", [1.0])
    assert "no task in common" in runner.invoke(app, ["compare", str(tmp_path / "a"), str(tmp_path / "b")]).stderr


def test_check_tells_good_data_from_bad(tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    row = {"problem": "How many legs has a spider?", "solution": "8", "problem_type": "numerical"}
    data.write_text(json.dumps(row) + "\n")
    good = runner.invoke(app, ["check", str(data)])
    assert (good.exit_code, "1 rows" in good.stdout, "ready to train" in good.stdout) == (0, True, True)
    data.write_text(json.dumps({**row, "solution": "many"}) + "\n{broken\n")
    bad = runner.invoke(app, ["check", str(data)])
    assert bad.exit_code == 1
    assert "line 2" in bad.stdout
    assert "solutions that no answer can match: 1" in bad.stdout


def test_check_refuses_a_budget_without_a_model(tmp_path: Path) -> None:
    found = runner.invoke(app, ["check", str(tmp_path / "x.jsonl"), "--max-prompt-tokens", "10"])
    assert (found.exit_code, "needs --model" in found.stderr) == (2, True)


def test_check_reads_solutions_as_the_scorer_of_training(tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"problem": "Share?", "solution": "14%", "problem_type": "numerical"}) + "\n")
    assert runner.invoke(app, ["check", str(data)]).exit_code == 0
    compat = runner.invoke(app, ["check", str(data), "--mode", "compat"])
    assert (compat.exit_code, "1 numerical (1 bad)" in compat.stdout) == (1, True)
    unknown = runner.invoke(app, ["check", str(data), "--scorer", "lenient"])
    assert (unknown.exit_code, "strict, compat" in unknown.stderr) == (2, True)


def test_check_counts_tokens_as_training_would(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"problem": "red ring", "solution": "red", "image": "a.png"}) + "\n")

    def tokens(*words: str) -> int:
        found = runner.invoke(app, ["check", str(data), "--model", "start", "--template", "plain", *words])
        assert found.exit_code == 0, found.output
        return int(found.stdout.split("prompt tokens: ")[1].split()[0])

    assert tokens("--max-pixels", "4096", "--min-pixels", "4096") - tokens("--max-pixels", "1024") == 48
    assert tokens("--template", "paper") > tokens()
    short = runner.invoke(app, ["check", str(data), "--model", "start", "--max-prompt-tokens", "5"])
    assert (short.exit_code, "more than 5" in short.stdout) == (1, True)


def test_check_shows_the_prompts_as_the_model_gets_them(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    data = tmp_path / "data.jsonl"
    rows = [{"problem": f"ring {n}", "solution": "red", "image": "a.png"} for n in (1, 2, 3)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "ask.txt").write_text("Look.\n{problem} is what?")
    words = [
        "check",
        str(data),
        "--prompt-template",
        str(tmp_path / "ask.txt"),
        "--system-prompt",
        "be brief",
        "--show",
        "2",
    ]
    found = runner.invoke(app, [*words, "--model", "start", "--min-pixels", "4096", "--max-pixels", "4096"])
    assert found.exit_code == 0, found.output
    user = "<|im_start|>user\n<|vision_start|><|image_pad|>×64<|vision_end|>Look.\nring {} is what?<|im_end|>\n"
    shown = [f"<|im_start|>system\nbe brief<|im_end|>\n{user.format(n)}<|im_start|>assistant\n" for n in (1, 2, 3)]
    assert [text in found.stdout for text in shown] == [True, True, False]
    alone = runner.invoke(app, words)
    assert (alone.exit_code, "--show needs --model" in alone.stderr) == (2, True)


def test_check_uses_the_model_s_own_budget(tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"problem": "red " * 5000, "solution": "red"}) + "\n")
    found = runner.invoke(app, ["check", str(data), "--model", "start"])
    assert (found.exit_code, "prompts above the model's budget: 1" in found.stdout) == (1, True)


def test_check_finds_what_the_evaluation_shares_however_encoded(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((160, 120), Image.Resampling.BICUBIC)
    image.save(tmp_path / "a.png")
    image.resize((120, 90)).save(tmp_path / "b.jpg", quality=85)
    for name, file in (("train", "a.png"), ("held_out", "b.jpg")):
        row = {"problem": f"{name}?", "solution": "red", "image": str(tmp_path / file)}
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    words = ["check", str(tmp_path / "train.jsonl"), "--eval-data", str(tmp_path / "held_out.jsonl")]
    found = runner.invoke(app, words)
    assert (found.exit_code, "looks like one of the evaluation's" in found.stdout) == (0, True)
    elsewhere = [*words, "--data-root", str(tmp_path / "media")]
    assert "a path inside" in runner.invoke(app, elsewhere).output
    assert "looks like" in runner.invoke(app, [*elsewhere, "--allow-outside"]).stdout


def test_check_writes_a_clean_copy_and_names_as_many_rows_as_asked(tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    rows = [{"problem": f"{n}?", "solution": "red" if n == 3 else ""} for n in range(9)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = runner.invoke(app, ["check", str(data), "--clean", str(tmp_path / "clean"), "--examples", "8"])
    assert found.stdout.count("field 'solution'") == 8
    assert "1 clean rows written" in found.stdout
    assert runner.invoke(app, ["check", str(tmp_path / "clean")]).exit_code == 0


def test_check_takes_several_files_and_recipes_with_their_rewards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        row = {"problem": f"{name}?", "solution": "x", "image": "red.png"}
        Path(f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    Image.new("RGB", (56, 56), "red").save("red.png")
    both = runner.invoke(app, ["check", "a.jsonl", "b.jsonl"])
    assert (both.exit_code, both.stdout.startswith("2 rows: 2 free-form; 2 images")) == (0, True), both.output
    Path("open.jsonl").write_text(json.dumps({"frage": "Describe it.", "image": "red.png"}) + "\n")
    Path("mine.py").write_text(
        "def long(completions, **columns):\n    return [float(len(c) > 9) for c in completions]\n"
    )
    Path("mine.yaml").write_text(
        "model: start\ndata: [{path: open.jsonl, columns: {problem: frage}}, a.jsonl]\neval_data: {b: b.jsonl}\n"
        "reward_funcs: [mine.py:long]\nsystem_prompt: Look.\ntemplate: plain\nuse_cpu: true\n"
    )
    found = runner.invoke(app, ["check", "mine.yaml", "--show", "1"])
    assert found.exit_code == 0, found.output
    assert "2 rows" in found.stdout
    assert "Look." in found.stdout, "asked as the recipe asks"
    assert "media shared with evaluation data" in found.stdout
    Path("judged.yaml").write_text(Path("mine.yaml").read_text().replace("mine.py:long", "accuracy"))
    judged = runner.invoke(app, ["check", "judged.yaml"])
    assert judged.exit_code == 1
    assert "open.jsonl: line 1: field 'solution': expected the answer as text or number, found nothing" in judged.stdout
    twice = runner.invoke(app, ["check", "mine.yaml", "--columns", "{problem: frage}"])
    assert (twice.exit_code, "columns is the recipe's to say" in twice.stderr) == (2, True)


def test_the_display_that_the_environment_names_never_matters(tmp_path: Path) -> None:
    """A notebook names its own display to the commands that it starts, which need not be installed where they run."""
    run = Path(__file__).parent / "runs" / "run_of_0_1_0"
    environment = os.environ | {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    words = [
        sys.executable,
        "-c",
        "from ral.cli import main; main()",
        "report",
        str(run),
        "--output",
        str(tmp_path / "a.html"),
    ]
    found = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert (tmp_path / "a.html").is_file()
