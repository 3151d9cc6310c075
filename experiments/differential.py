"""Our `compat` scorer beside the code it reproduces, on thousands of made-up outputs: `python -m experiments.differential`.

The peers' own functions are run, taken out of their files, so that nothing of them has to be installed:

    pip download --no-deps lmms-eval==0.7.3 && unzip lmms_eval-*.whl -d PEERS/lmms-eval
    git clone https://github.com/tulerfeng/Video-R1 PEERS/Video-R1      (and Deep-Agent/R1-V, om-ai-lab/VLM-R1)
    python -m experiments.differential PEERS

A peer that is not there is skipped, and its earlier figures stay. Figures go to `experiments/results/differential.json`, and
from there into the table of docs/evaluation.md.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import io
import json
import random
import re
import types
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ral.data.record import Record
from ral.evaluate import metrics
from ral.files import atomic_write_text
from ral.rewards.answers import judge, mean_relative_accuracy
from ral.rewards.functions import well_formed

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "experiments" / "results" / "differential.json"
PAGE = ROOT / "docs" / "evaluation.md"
CASES = ROOT / "tests" / "rewards" / "scorer_cases.jsonl"
BEGIN, END = "<!-- differential: written by experiments/differential.py -->", "<!-- end of differential -->"

OPTIONS = ("red", "blue ball", "a cat", "none of these")
LETTERS = "ABCD"
GUESS = "a random guess there, unparsed here"


# ------------------------------------------------------------------------------------------ the peers' functions


def peer(file: Path, **given: Any) -> dict[str, Any]:
    """The functions and constants of a file, nested and static ones too, by name; imports that are not there are left out.

    `given` replaces or adds names, such as the images that a function opens.
    """
    names: dict[str, Any] = {"__name__": "peer"}
    tree = ast.parse(file.read_text(encoding="utf-8"))
    wanted = (ast.FunctionDef, ast.ClassDef, ast.Assign, ast.Import, ast.ImportFrom)
    for node in [*tree.body, *(n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef))]:
        if not isinstance(node, wanted) or getattr(node, "name", "") in names:
            continue
        if isinstance(node, ast.Assign) and any(isinstance(part, ast.Call) for part in ast.walk(node.value)):
            continue  # constants only: a file's set-up is not run
        if isinstance(node, ast.FunctionDef):
            node.decorator_list = []
        code = compile(ast.Module([node], []), str(file), "exec")  # annotations stay texts, as in this file
        with contextlib.suppress(Exception):
            exec(code, names)
        names.update(given)
    return names


def quietly(call: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """What `call` returns, without what it prints."""
    with contextlib.redirect_stdout(io.StringIO()):
        return call(*arguments, **named)


NO_GUESS = types.SimpleNamespace(choice=lambda options: GUESS)


# -------------------------------------------------------------------------------------------------- outputs


def choice_outputs(count: int, seed: int = 0) -> list[str]:
    """Answers to a question with four options, from a bare letter to reasoning and nonsense."""
    draw = random.Random(seed)
    forms = ["{}", "({})", "{}.", "{})", "{}:", "[{}]", "**{}**", "{},", "$\\boxed{{{}}}$", "({}).", "Option {}",
             "({}) {text}", "{}. {text}", "{} {text}", "{text}"]  # fmt: skip
    before = ["", "", "The answer is ", "the correct answer is ", "Answer: ", "answer is: ", "I think it is ", "Because it is red, ", "So ", "Best option: ",
              "The best answer is\n", "A look at the ball says ", "It is not A but ", "Final choice: ", "我选", "정답은 ", "Therefore ", "i choose "]  # fmt: skip
    after = [
        "",
        "",
        ".",
        "!",
        " because it is so",
        "\n",
        " or C",
        ", not (B)",
        " (D)",
        " is correct.",
        "\nB. blue ball",
        " and that is all there is to say",
    ]
    words = [
        "all",
        "none",
        "cat",
        "blue",
        "E",
        "F",
        "a",
        "b",
        "I",
        "Answer",
        "answers",
        "(C)",
        "D.",
        "is",
        "?",
        "1",
        "two\nlines",
        "B:",
    ]
    outputs = []
    for i in range(count):
        if i % 5 == 4:
            outputs.append(" ".join(draw.choices(words, k=draw.randint(1, 8))))
            continue
        letter = draw.choice("AABBCCDDEFabcd")
        text = OPTIONS[LETTERS.find(letter.upper())] if letter.upper() in LETTERS else "other"
        outputs.append(
            draw.choice(before) + draw.choice(forms).replace("{text}", text).format(*[letter] * 3) + draw.choice(after)
        )
    return [output.strip() for output in outputs]


def short_outputs(count: int, seed: int = 1) -> list[str]:
    """Short answers: numbers, per cent, yes and no, words with punctuation."""
    draw = random.Random(seed)
    words = ["yes", "No", "y", "N.", "not sure", "3", "3.0", "1,000", "14%", "0.14", "-2", "5.2", "the red car", "a cat!", "don't", "dont", "two", "none",
             "coca-cola", "it's", "John's", "x-ray", "1e3", "nan", "1.05", "1", "10:30", "so the answer is", "= 4", "about", ".5", "U.S.A.", "?", "is 12.", "(b)"]  # fmt: skip
    return [
        draw.choice([" ", " ", "\n", ", "]).join(draw.choices(words, k=draw.choice((1, 1, 1, 2, 3, 6))))
        for _ in range(count)
    ]


def cases(kind: str) -> list[tuple[str, str]]:
    """Answers and solutions of one problem type: every answer of the table of verdicts with every solution."""
    rows = [json.loads(line) for line in CASES.read_text("utf-8").splitlines()]
    own = [row for row in rows if row[0] == kind]
    return [
        (answer, solution)
        for answer in dict.fromkeys(row[1] for row in own)
        for solution in dict.fromkeys(row[2] for row in own)
    ]


def completions(answer: str, draw: random.Random) -> str:
    """A completion that gives `answer`, mostly in tags."""
    form = draw.choice(["<think>t</think><answer>{}</answer>"] * 6 + ["<answer> {}\n</answer>", "<answer>{}</answer><answer>B</answer>", "{}",
                        "<think><answer>A</answer></think><answer>{}</answer>", "<answer>{}"])  # fmt: skip
    return form.replace("{}", answer)


def tagged(count: int, seed: int = 2) -> Iterator[str]:
    """Tags and words in any order."""
    draw = random.Random(seed)
    for _ in range(count):
        middle = "".join(
            draw.choices(["<think>", "</think>", "<answer>", "</answer>", "\n", " ", "x"], k=draw.randint(0, 7))
        )
        yield draw.choice(["<think>", ""]) + middle + draw.choice(["</answer>", ""])


# ---------------------------------------------------------------------------------------------- comparisons


@dataclass
class Comparison:
    """One function of a peer: how many outputs were compared, and the differences by reason with one example of each."""

    against: str
    what: str
    outputs: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[Any]] = field(default_factory=dict)

    def add(self, output: Any, ours: Any, theirs: Any, reason: Callable[[Any, Any, Any], str]) -> None:
        self.outputs += 1
        if ours != theirs and not (
            isinstance(ours, float) and isinstance(theirs, int | float) and abs(ours - theirs) <= 1e-6
        ):
            why = reason(output, ours, theirs)
            self.reasons[why] += 1
            self.examples.setdefault(why, [output, ours, theirs])


def _unexplained(output: Any, ours: Any, theirs: Any) -> str:
    return GUESS if theirs == GUESS and ours is None else "not explained"


def lmms_eval(root: Path) -> Iterator[Comparison]:
    tasks = root / "lmms_eval" / "tasks"
    texts = dict(zip(LETTERS, OPTIONS, strict=True))
    letters = list(LETTERS)
    utils = {name: peer(tasks / name / "utils.py", random=NO_GUESS) for name in
             ("blink", "cv_bench", "vstar_bench", "longvideobench", "nextqa", "mvbench", "mme", "chartqa", "videommmu", "tempcompass", "mmmu_pro")}  # fmt: skip
    mcq = peer(tasks / "_task_utils" / "mcq_extract.py")["extract_mcq_answer"]
    mmmu = peer(tasks / "_task_utils" / "mmmu_mcq_utils.py", random=NO_GUESS)["parse_mmmu_multi_choice_response"]
    readings: list[tuple[str, Callable[..., Any], Callable[[str], Any]]] = [
        ("BLINK", metrics.announced_letter, lambda out: utils["blink"]["_extract_answer_letter"](out, LETTERS)),
        ("CV-Bench", metrics.leading_letter, utils["cv_bench"]["_extract_answer_letter"]),
        ("V*", metrics.searched_letter, utils["vstar_bench"]["extract_answer_letter"]),
        ("VideoMME, LVBench, VideoMMMU (choice)", metrics.ranked_letter, lambda out: mcq(out, letters)),
        ("MMMU-Pro standard", metrics.mmmu_letter, lambda out: mmmu(out, letters, texts)),
        ("NExT-QA", metrics.mmmu_letter, lambda out: utils["nextqa"]["parse_multi_choice_response"](out, letters, texts)),
        ("LongVideoBench", metrics.first_capital, lambda out: utils["longvideobench"]["parse_multi_choice_response"](out, letters, texts)),
    ]  # fmt: skip
    for what, ours, theirs in readings:
        comparison = Comparison("lmms-eval 0.7.3", what)
        for output in filter(None, choice_outputs(4000)):
            read, expected = ours(output, texts), theirs(output)
            comparison.add(
                output,
                read if read in texts else None,
                expected if expected in texts or expected == GUESS else None,
                _unexplained,
            )
        yield comparison
    yield from _choices_scored(utils)
    yield from _words_scored(tasks, utils)


def _scored(what: str, outputs: Sequence[str], ours: Callable[[str], Any], theirs: Callable[[str], Any]) -> Comparison:
    """A function that says right or wrong, not which letter."""
    comparison = Comparison("lmms-eval 0.7.3", what)
    for output in outputs:
        comparison.add(output, float(ours(output) or 0), float(quietly(theirs, output) or 0), _unexplained)
    return comparison


def _choices_scored(utils: dict[str, dict[str, Any]]) -> Iterator[Comparison]:
    options = tuple(f"{letter}. {text}" for letter, text in zip(LETTERS, OPTIONS, strict=True))
    item = Record("1", "?", "B", options=options, extra={"track": "vision", "choices": options})
    row = {"id": "1", "subject": "s", "answer": "B", "options": "[]"}
    outputs = [output for output in choice_outputs(4000) if output]

    def vision(output: str) -> bool:
        return bool(utils["mmmu_pro"]["mmmu_pro_process_results"](row, [output])["mmmu_acc"]["parsed_pred"] == "B")

    def muir(output: str) -> bool:  # MultiChoiceRegexFilter and muir_aggregation, whose base class is not loaded
        match = re.match(r"^\s*([A-Z])\.", output)
        return (match[1] if match else output).lower().strip() == "b"

    by_period, lone = metrics.choice(metrics.letter_with_period), metrics.choice(metrics.lone_letter)
    yield _scored("MMMU-Pro vision", outputs, lambda out: metrics.mmmu_pro(out, item, "compat"), vision)
    yield _scored("MuirBench", outputs, lambda out: by_period(out, item, "compat"), muir)
    yield _scored("MVBench", outputs, lambda out: lone(out, item, "compat"), partial(utils["mvbench"]["mcq_acc"], "B"))


def _words_scored(tasks: Path, utils: dict[str, dict[str, Any]]) -> Iterator[Comparison]:
    outputs = short_outputs(4000)
    yes = Record("1", "?", "Yes")
    yes_no = utils["mme"]["parse_pred_ans"]
    yield _scored("MME", outputs, lambda out: metrics.yes_no(out, yes, "compat"), lambda out: yes_no(out) == "yes")
    for solution in ("100", "0.14", "14%", "red car"):
        relaxed = partial(utils["chartqa"]["relaxed_correctness"], target=solution)
        ours = partial(metrics.relaxed, record=Record("1", "?", solution), mode="compat")
        yield _scored(f"ChartQA, solution {solution}", outputs, ours, relaxed)
    vqa = peer(tasks / "_task_utils" / "vqa_eval_metric.py")["EvalAIAnswerProcessor"]()
    comparison = Comparison("lmms-eval 0.7.3", "VizWiz (EvalAI's normalisation)")
    for output in outputs:
        comparison.add(output, metrics.normalise_vqa(output), vqa(output), _unexplained)
    yield comparison
    read, right = utils["videommmu"]["parse_open_response"], utils["videommmu"]["eval_open"]
    for solution in ("4", "red car", "b"):
        ours = partial(metrics.mmmu_open, record=Record("1", "?", solution), mode="compat")
        yield _scored(f"VideoMMMU (open), solution {solution}", outputs, ours, _opened(read, right, solution))
    captions = ("Caption A: a red cat", "Caption B: a blue ball")
    of = Record("1", "?", captions[1], extra={"track": "caption_matching", "choices": captions})
    said = [
        "A",
        "B",
        "B.",
        "Caption B",
        "Caption A.",
        "(B) a blue ball",
        "a blue ball",
        "a red cat",
        *captions,
        "the ball",
    ]
    rule = utils["tempcompass"]["eval_rule"]
    question = "\n".join(["?", *captions])
    yield _scored("TempCompass (captions)", said, lambda out: metrics.tempcompass(out, of, "compat"),
                  lambda out: rule(out, question, captions[1]) == 1)  # fmt: skip


def _opened(read: Callable[..., Any], right: Callable[..., Any], solution: str) -> Callable[[str], Any]:
    return lambda output: right(solution, read(output))


def video_r1(root: Path) -> Iterator[Comparison]:
    theirs = peer(root / "src" / "r1-v" / "src" / "open_r1" / "grpo.py")
    draw = random.Random(3)
    for kind in ("multiple choice", "numerical", "regression", "OCR", "free-form"):
        comparison = Comparison("Video-R1", f"reward, {kind}")
        odd = [(answer, "100") for answer in ("nan", "inf", "-inf", "1_00", "infinity")]
        for answer, solution in cases(kind) + odd:
            text = completions(answer, draw)
            [reward] = quietly(
                theirs["accuracy_reward"], [[{"content": text}]], [f"<answer>{solution}</answer>"], problem_type=[kind]
            )
            comparison.add(
                [text, solution], judge(text, solution, kind, mode="compat").score, float(reward), _video_r1_reason
            )  # type: ignore[arg-type]
        yield comparison
    comparison = Comparison("Video-R1", "reward, format")
    for text in tagged(4000):
        comparison.add(
            text,
            float(well_formed(text, "compat", think_opened=False)),
            theirs["format_reward"]([[{"content": text}]])[0],
            _unexplained,
        )
    yield comparison
    mra = peer(root / "src" / "eval_bench.py", torch=importlib.import_module("torch"))["mean_relative_accuracy"]
    comparison = Comparison("Video-R1", "mean relative accuracy")
    for value in range(-20, 220):
        for truth in (0, 1, 7, 40, 100, -3, 0.5):
            ours = mean_relative_accuracy(str(value / 2), str(truth), mode="compat")
            comparison.add(
                [value / 2, truth], ours, round(mra(value / 2, truth), 6), lambda *_: "float32 at a threshold there"
            )
    yield comparison


def _video_r1_reason(output: Any, ours: Any, theirs: Any) -> str:
    text, _ = output
    if "nan" in text or "inf" in text:
        return "NaN and infinity earn a reward there"
    return "not explained"


def r1_v(root: Path) -> Iterator[Comparison]:
    theirs = peer(root / "src" / "r1-v" / "src" / "open_r1" / "grpo.py")["accuracy_reward"]
    comparison = Comparison("R1-V", "reward, math")
    draw = random.Random(4)
    for answer, solution in cases("math"):
        for text in (completions(answer, draw), f"<think>so ${answer}$</think> <answer>{answer}</answer>", answer):
            [reward] = quietly(theirs, [[{"content": text}]], [f"{solution}"])
            comparison.add(
                [text, solution], judge(text, solution, "math", mode="compat").score, float(reward), _unexplained
            )
    yield comparison


def vlm_r1(root: Path) -> Iterator[Comparison]:
    image = types.SimpleNamespace(open=lambda path: types.SimpleNamespace(size=(1400, 1400)))
    file = root / "src" / "open-r1-multimodal" / "src" / "open_r1" / "vlm_modules" / "qwen_module.py"
    theirs = peer(file, Image=image)["iou_reward"]
    comparison = Comparison("VLM-R1", "reward, boxes (an image that is not resized)")
    draw = random.Random(5)
    whole = {"image_grid_thw": [(1, 100, 100)], "image_path": [["x.png"]]}
    forms = ["[{}, {}, {}, {}]"] * 6 + ["```json\n[{{\"bbox_2d\": [{}, {}, {}, {}], \"label\": \"x\"}}]\n```", "({}, {}, {}, {})", "{} {} {} {}", "[{}.5, {}, {}, {}]",
             "[{}, {}, {}, {}] or [0, 0, 9, 9]", "[-{}, {}, {}, {}]", "[{}, {}, {}]"]  # fmt: skip
    for _ in range(4000):
        x, y = draw.randint(0, 60), draw.randint(0, 60)
        solution = [20, 20, 20 + draw.randint(1, 60), 20 + draw.randint(1, 60)]
        form = draw.choice(forms)
        answer = form.format(x, y, x + draw.randint(-3, 60), y + draw.randint(-3, 60))
        text = f"<think>t</think><answer>{answer}</answer>"
        [reward] = quietly(theirs, [[{"content": text}]], [f"<answer>{json.dumps(solution)}</answer>"], **whole)
        comparison.add(
            [answer, solution], judge(text, str(solution), "box", mode="compat").score, float(reward), _vlm_r1_reason
        )
    yield comparison


def _vlm_r1_reason(output: Any, ours: Any, theirs: Any) -> str:
    answer, _ = output
    found = re.search(r"\[(\d+),\s*(\d+),\s*(\d+),\s*(\d+)]", answer)
    if found is None:
        return "only four whole numbers in square brackets are a box there"
    x0, y0, x1, y1 = map(int, found.groups())
    if x0 >= x1 or y0 >= y1:
        return "a box with its corners in the wrong order has an overlap there"
    return "an overlap of one pixel or less counts as none there" if theirs == 0 else "not explained"


PEERS: dict[str, Callable[[Path], Iterator[Comparison]]] = {
    "lmms-eval": lmms_eval, "Video-R1": video_r1, "R1-V": r1_v, "VLM-R1": vlm_r1,
}  # fmt: skip


# ------------------------------------------------------------------------------------------------- the page


def table(comparisons: Sequence[dict[str, Any]]) -> str:
    """The comparisons as a table in markdown."""
    lines = ["| against | what | outputs | different | why |", "|---|---|---|---|---|"]
    for row in comparisons:
        why = "; ".join(f"{reason} ({count})" for reason, count in row["reasons"].items())
        lines.append(
            f"| {row['against']} | {row['what']} | {row['outputs']:,} | {sum(row['reasons'].values()):,} | {why} |"
        )
    return "\n".join(lines)


def with_table(page: str, comparisons: Sequence[dict[str, Any]]) -> str:
    """`page` with its table written anew."""
    head, _, rest = page.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n\n{table(comparisons)}\n\n{END}{tail}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "peers", type=Path, help="the folder that holds lmms-eval, Video-R1, R1-V and VLM-R1, or some of them"
    )
    folder = parser.parse_args().peers
    kept = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else []
    for name, compare in PEERS.items():
        if not (folder / name).is_dir():
            print(f"{name}: not in {folder}, skipped")
            continue
        found = [vars(comparison) for comparison in compare(folder / name)]
        kept = [row for row in kept if not row["against"].startswith(name)] + found
        for row in found:
            print(
                f"{row['against']}, {row['what']}: {row['outputs']} outputs, {dict(row['reasons'])} {row['examples']}"
            )
    atomic_write_text(RESULTS, json.dumps(kept, indent=1, ensure_ascii=False) + "\n")
    atomic_write_text(PAGE, with_table(PAGE.read_text("utf-8"), kept))


if __name__ == "__main__":
    main()
