from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from ral.errors import DataError
from ral.report import render_heatmap_html, write_report
from ral.report.experiment import read_experiment
from tests.report.saved import write_evaluation, write_quickstart, write_rows, write_seeds, write_training

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

SECTIONS = {"results", "looks", "training", "gallery", "failures", "layers", "limits", "setup"}
MARKUP = " ".join(
    (
        "' onmouseover='window.ran = 1",
        '"><img src=x onerror="window.ran = 1">',
        "<script>window.ran = 1</script>",
        "</script><script>window.ran = 1</script>",
        "{{ 7 * 7 }}<svg onload=window.ran=1>",
        "]]>--></style><style>*{display:none}</style>",
        "\ud800\udfff\x00\x1b[31m\u202eabc\u2028",
    )
)
ONE_TOKEN = "x" * 1_000_000


@pytest.fixture(scope="module")
def finished_quickstart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete quickstart folder; tests must not change it."""
    return write_quickstart(tmp_path_factory.mktemp("quickstart"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next((found for name in ("chromium", "google-chrome", "chrome") if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip("no Chromium on the PATH")
    with api.sync_playwright() as playwright:
        yield (started := playwright.chromium.launch(executable_path=path, args=["--no-sandbox"]))
        started.close()


def opened(browser: Browser, report: Path, **context: object) -> tuple[Page, list[str]]:
    """The page in a fresh context, and everything that it complains about."""
    page = browser.new_context(**context).new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on(
        "request",
        lambda request: None if request.url.startswith(("file:", "data:")) else complaints.append(request.url),
    )
    page.goto(report.as_uri())
    return page, complaints


def test_a_folder_without_artefacts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing to report; expected quickstart\.json"):
        write_report(tmp_path)


@pytest.mark.parametrize("arms", [None, [], [3], [{"label": "GRPO"}]])
def test_a_broken_index_names_the_field(tmp_path: Path, arms: object) -> None:
    (tmp_path / "quickstart.json").write_text(json.dumps({"arms": arms}))
    with pytest.raises(DataError, match=r"quickstart\.json: .*arms"):
        write_report(tmp_path)


def test_half_written_and_broken_files_cost_only_themselves(tmp_path: Path) -> None:
    write_training(tmp_path, "grpo", steps=4)
    with open(tmp_path / "metrics.jsonl", "ab") as stream:
        stream.write(b'{"step": 5, "rew')
    (tmp_path / "environment.json").write_bytes(b"\xff{")
    (tmp_path / "config.yaml").write_text("a: [")
    (tmp_path / "eval" / "rings").mkdir(parents=True)
    (tmp_path / "eval" / "rings" / "summary.json").write_text(
        '{"n": "many", "accuracy": NaN, "ci": 3, "grounding": []}'
    )
    experiment = read_experiment(tmp_path)
    assert len(experiment.arms[0].first.metrics) == 4
    notices = " ".join(experiment.notices)
    assert all(text in notices for text in ("metrics.jsonl: 1 unreadable line(s)", "environment.json", "config.yaml"))
    assert "Not everything could be read" in write_report(tmp_path).read_text(encoding="utf-8")


def test_an_image_outside_of_the_evaluation_folder_is_not_read(tmp_path: Path) -> None:
    write_evaluation(tmp_path / "eval" / "rings", "grpo", items=1, shown=1)
    folder = tmp_path / "eval" / "rings"
    shutil.copy(folder / "media" / "0.png", tmp_path / "secret.png")
    item = json.loads((folder / "items.jsonl").read_text())
    write_rows(folder / "items.jsonl", [item | {"image": "../../secret.png"}])
    assert "could not be read" in write_report(tmp_path).read_text(encoding="utf-8")


@pytest.mark.browser
def test_quickstart_page(browser: Browser, finished_quickstart: Path) -> None:
    report = write_report(finished_quickstart)
    assert report.stat().st_size < 5_000_000
    page, complaints = opened(browser, report, viewport={"width": 1280, "height": 900})
    assert {node.get_attribute("id") for node in page.query_selector_all("section[id]")} == SECTIONS
    headline = page.inner_text("h1")
    assert headline.startswith("Training lifts accuracy from 50\u202f% to 70")
    assert "ahead of GRPO" in headline
    assert page.locator(".verdict", has_text="within item noise").count() == 1
    assert page.locator("#gallery .exhibit").count() == 12
    assert page.locator("#gallery .exhibit .tile").count() == 48
    assert page.locator("#training > .charts > .chart").count() == 6
    assert page.locator("#live").count() == 0
    assert "not measured" not in page.inner_text("#results ~ section >> nth=0")
    assert complaints == []


@pytest.mark.browser
def test_controls(browser: Browser, finished_quickstart: Path) -> None:
    page, complaints = opened(browser, write_report(finished_quickstart), color_scheme="light")

    def paper() -> str:
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    light = paper()
    page.click("#theme")
    assert paper() != light
    assert page.get_attribute("#theme", "aria-pressed") == "true"

    page.locator("input[value='fixed broken']").check(force=True)
    changed = page.query_selector_all("#gallery .exhibit:not([hidden])")
    outcomes = {node.get_attribute("data-outcome") for node in changed}
    assert outcomes <= {"fixed", "broken"}
    assert outcomes
    assert page.inner_text("#shown").endswith("images shown")

    heat = page.locator("#gallery .exhibit:not([hidden]) .heat").first
    assert heat.evaluate("node => getComputedStyle(node).opacity") == "0.8"
    page.locator("#strength").fill("40")
    assert heat.evaluate("node => getComputedStyle(node).opacity") == "0.4"
    assert heat.evaluate("node => getComputedStyle(node).imageRendering") == "auto", "smoothed between tokens"
    page.locator("#tokens").check()
    assert heat.evaluate("node => getComputedStyle(node).imageRendering") == "pixelated"
    page.locator("input[value=off]").check(force=True)
    assert heat.evaluate("node => getComputedStyle(node).display") == "none"

    page.locator("#training .plot").first.focus()
    page.keyboard.press("ArrowLeft")
    assert page.locator("#training .chart").first.locator("output").first.inner_text()
    assert complaints == []


@pytest.mark.browser
def test_images_stand_in_a_grid(browser: Browser, finished_quickstart: Path) -> None:
    """Four models' answers to two images in a row, twelve images on less than five screens."""
    page, _ = opened(browser, write_report(finished_quickstart), viewport={"width": 1280, "height": 900})
    boxes = [node.bounding_box() for node in page.query_selector_all("#gallery .exhibit")]
    assert len({round(box["x"]) for box in boxes if box}) == 2
    assert page.evaluate("document.getElementById('gallery').scrollHeight") < 4.5 * 900


@pytest.mark.browser
def test_the_slider_moves_through_training(browser: Browser, finished_quickstart: Path) -> None:
    page, complaints = opened(browser, write_report(finished_quickstart))
    cards = page.locator("#looks .lookcard:visible")
    shown = page.locator("#looks .lookcard:visible .heat")

    def seen() -> list[str]:
        return [heat.get_attribute("href") or "" for heat in shown.all()]

    assert cards.count() == 3, "one image at one step, for each arm"
    last = seen()
    assert "at step 120" in cards.first.inner_text()
    assert page.inner_text("#looks .steps output") == "step 120"
    page.locator("#looks-step").focus()
    page.keyboard.press("ArrowLeft")
    assert page.inner_text("#looks .steps output") == "step 80"
    assert page.get_attribute("#looks-step", "aria-valuetext") == "step 80"
    assert all(before != after for before, after in zip(seen(), last, strict=True))
    assert "at step 80" in cards.first.inner_text()
    page.keyboard.press("Home")
    assert "at step 0" in cards.first.inner_text()
    assert cards.locator(".badge", has_text="wrong").count() == 3
    # The chart below reads its values at the slider's step.
    steps = [json.loads(line) for line in (finished_quickstart / "grpo/looks/items.jsonl").read_text().splitlines()]
    mass = np.mean([row["grounding"]["mass"] for row in steps if row["step"] == 0])
    assert float(page.locator("#looks .chart output").first.inner_text()) == pytest.approx(mass, abs=0.001)

    first = cards.first.inner_text()
    question = page.locator("#looks .watched:visible h3").inner_text()
    page.locator("input[name=watched][value='1']").check(force=True)
    assert page.locator("#looks .watched:visible").count() == 1
    assert (page.locator("#looks .watched:visible h3").inner_text(), cards.first.inner_text()) != (question, first)

    page.click("#looks .play")
    page.locator("#looks .play", has_text="Pause").wait_for()
    page.locator("#looks .play", has_text="Play").wait_for()
    assert page.inner_text("#looks .steps output") == "step 120"
    assert complaints == []


@pytest.mark.browser
def test_completions_stand_by_reward_and_step(browser: Browser, finished_quickstart: Path) -> None:
    page, complaints = opened(browser, write_report(finished_quickstart))
    group = page.locator(".group:visible").first
    rewards = [float(text) for text in group.locator(".score").all_inner_texts()]
    assert rewards == [1.0] * 4 + [0.1] * 2
    assert group.locator(".part").last.get_attribute("width") == "4.0"
    page.locator("#rollouts-step").press("Home")
    assert page.locator(".group:visible").first.get_attribute("aria-label") == "Completions of GRPO at step 1"
    assert complaints == []


@pytest.mark.browser
def test_failures_of_all_arms_are_paged_through(browser: Browser, finished_quickstart: Path) -> None:
    page, complaints = opened(browser, write_report(finished_quickstart))
    items = {
        arm: [
            json.loads(line) for line in (finished_quickstart / arm / "eval/rings/items.jsonl").read_text().splitlines()
        ]
        for arm in ("start", "grpo", "ral-old", "ral-explore")
    }
    failed = sum(any(row["correct"] < 0.5 for row in rows) for rows in zip(*items.values(), strict=True))
    assert page.inner_text("#place") == f"1 to 10 of {failed}"
    assert page.locator("#items thead th").count() == 6
    page.click("#next")
    assert page.inner_text("#place").startswith("11 to 20")
    page.locator("input[name=state][value=fixed]").check(force=True)
    assert page.locator("#items tbody tr").first.locator("td").nth(1).locator(".badge").inner_text() == "wrong"
    assert complaints == []


@pytest.mark.browser
def test_runs_of_one_setting_are_one_arm(browser: Browser, tmp_path: Path) -> None:
    folders = write_seeds(tmp_path)
    experiment = read_experiment(*reversed(folders))
    assert [(arm.label, [run.seed for run in arm.runs]) for arm in experiment.arms] == [
        ("ral-explore", [0, 1, 2]), ("grpo", [0, 1, 2]),
    ]  # fmt: skip
    report = write_report(*folders, output=tmp_path / "both.html")
    assert report == tmp_path / "both.html"
    page, complaints = opened(browser, report)
    assert "seeds 0, 1, 2" in page.inner_text(".kicker")
    assert "3 paired seeds" in page.inner_text(".certainty")
    assert page.locator("#training path.spread").count() > 8
    assert page.locator("#training path.raw").count() == 0
    assert page.locator("tbody tr", has_text="3 seeds").count() == 2
    assert page.locator("dt", has_text="seed").first.locator("xpath=following-sibling::dd").text_content() == "0, 1, 2"
    assert complaints == []


def test_folders_named_after_their_seed_take_their_arm_from_the_folder_above(tmp_path: Path) -> None:
    given = []
    for arm in ("grpo", "old-1"):
        for folder in write_seeds(tmp_path / f"of-{arm}"):
            if folder.name.startswith("grpo"):
                seed = folder.name[-1]
                given.append(shutil.copytree(folder, tmp_path / arm / f"seed-{seed}"))
                if arm == "old-1":
                    config = given[-1] / "config.yaml"
                    config.write_text(config.read_text().replace("attention_coef: 0.0", "attention_coef: 1.0"))
    arms = read_experiment(*given).arms
    assert [(arm.label, [run.seed for run in arm.runs]) for arm in arms] == [("grpo", [0, 1, 2]), ("old-1", [0, 1, 2])]


def test_a_seed_given_twice_is_said(tmp_path: Path) -> None:
    folders = write_seeds(tmp_path)
    again = shutil.copytree(folders[0], tmp_path / "again")
    experiment = read_experiment(*folders, again)
    assert [len(arm.runs) for arm in experiment.arms] == [3, 3]
    assert any("another run with seed 0 of grpo" in notice for notice in experiment.notices)


def test_quickstarts_of_several_seeds_share_their_start(tmp_path: Path) -> None:
    first = write_quickstart(tmp_path / "first")
    second = shutil.copytree(first, tmp_path / "second")
    for config in second.glob("*/config.yaml"):
        config.write_text(config.read_text().replace("seed: 0", "seed: 1"))
    experiment = read_experiment(first, second)
    assert [(arm.name, len(arm.runs)) for arm in experiment.arms] == [
        ("start", 1), ("grpo", 2), ("ral-old", 2), ("ral-explore", 2),
    ]  # fmt: skip
    assert experiment.notices == []


def test_arms_of_one_name_are_told_apart_by_their_settings(tmp_path: Path) -> None:
    for parent, name in (("a", "grpo"), ("b", "ral-old")):
        (tmp_path / parent / "run").mkdir(parents=True)
        write_training(tmp_path / parent / "run", name, steps=3)
    labels = [arm.label for arm in read_experiment(tmp_path / "a/run", tmp_path / "b/run").arms]
    assert labels == ["run, attention_coef 0.0", "run, attention_coef 1.0"]


def test_the_task_of_a_page_is_one_that_most_arms_were_evaluated_on(tmp_path: Path) -> None:
    for name, tasks in (("a", ("first", "rings")), ("b", ("rings",)), ("c", ("rings",))):
        for task in tasks:
            write_evaluation(tmp_path / name / "eval" / task, "grpo", items=4, shown=0)
    assert read_experiment(*(tmp_path / name for name in "abc")).task == "rings"
    assert read_experiment(tmp_path / "a").task == "first"


@pytest.mark.parametrize("name", ["runs/plain", "runs/it's 1; touch hacked", "my runs/$(touch hacked)"])
def test_commands_can_be_pasted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (tmp_path / name).mkdir(parents=True)
    write_training(tmp_path / name, "grpo", steps=2)
    config = tmp_path / name / "config.yaml"
    config.write_text(config.read_text() + "model: start\ndata: rings\n")
    monkeypatch.chdir(tmp_path)
    for folder in (Path(name), tmp_path / name):
        (command,) = read_experiment(folder).commands
        assert shlex.split(command) == ["ral", "train", f"{name}/config.yaml", "--output_dir", "again"]
    printed = subprocess.run(["bash", "-c", command.replace("ral train", "ls --", 1)], capture_output=True, text=True)
    assert printed.stdout.strip().endswith("config.yaml"), "a shell finds the file"
    assert not (tmp_path / "hacked").exists()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert shlex.split(read_experiment(tmp_path / name).commands[0])[2] == str(config)


@pytest.mark.browser
def test_a_page_of_a_run_that_goes_on_reloads_until_it_is_over(browser: Browser, tmp_path: Path) -> None:
    write_training(tmp_path, "grpo", steps=3)
    context = browser.new_context()
    context.clock.install()
    page = context.new_page()
    page.goto(write_report(tmp_path, running=True).as_uri())
    assert page.inner_text("h1").endswith("step 3 of 3.")
    page.click("#theme")
    theme = page.get_attribute("html", "data-theme")

    write_training(tmp_path, "grpo", steps=5)
    write_report(tmp_path, running=True)
    page.click("#pause")
    context.clock.run_for(60_000)
    assert page.inner_text("h1").endswith("step 3 of 3."), "it waits where a reader said so"
    page.click("#pause")
    with page.expect_navigation():
        context.clock.run_for(16_000)
    assert page.inner_text("h1").endswith("step 5 of 5.")
    assert page.get_attribute("html", "data-theme") == theme

    write_report(tmp_path)
    with page.expect_navigation():
        context.clock.run_for(16_000)
    assert page.inner_text("h1") == "Trained, not yet evaluated."
    loads: list[str] = []
    page.on("load", lambda page: loads.append(page.url))
    context.clock.run_for(120_000)
    assert loads == []


@pytest.mark.browser
def test_a_page_without_news_for_an_hour_stops_reloading(browser: Browser, tmp_path: Path) -> None:
    write_training(tmp_path, "grpo", steps=3)
    context = browser.new_context()
    context.clock.install(time=time.time() + 3700)
    page = context.new_page()
    page.goto(write_report(tmp_path, running=True).as_uri())
    loads: list[str] = []
    page.on("load", lambda page: loads.append(page.url))
    context.clock.run_for(120_000)
    assert loads == []
    assert "may have been stopped" in page.inner_text("#live")


def test_measured_heads_stand_among_the_settings(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("attention_heads: {top: 2, by: evidence}\n")
    (tmp_path / "heads.json").write_text(json.dumps({"heads": [[5, 0], [3, 1]]}))
    page = write_report(tmp_path).read_text()
    assert "attention_heads.measured" in page
    assert "[5, 0], [3, 1]" in page


@pytest.mark.browser
def test_heads_and_the_causal_check(browser: Browser, tmp_path: Path) -> None:
    write_evaluation(tmp_path / "eval" / "rings", "grpo", items=30, shown=0)
    file = tmp_path / "eval" / "rings" / "summary.json"
    heads = [[{"mass": mass} for mass in layer] for layer in ((0.1, 0.02), (0.4, None))]
    masking = {"n": 28, "logp": -0.1, "box": -2.0, "random": -0.25, "difference": -1.75, "ci": [-2.2, -1.3]}
    file.write_text(
        json.dumps(json.loads(file.read_text()) | {"probes": {"n": 28, "heads": heads, "masking": masking}})
    )
    page, complaints = opened(browser, write_report(tmp_path))
    cells = page.locator(".heads tbody td")
    assert cells.all_inner_texts() == ["10", "2", "40", "–"]
    assert [cell.get_attribute("class") for cell in cells.all()] == ["shade-2", "shade-0", "shade-9", None]
    text = page.inner_text("#layers")
    assert "most: layer 1 head 0 (40\u202f%), layer 0 head 0" in text
    assert "a difference of −1.75 (95 % interval −2.20 to −1.30, 28 items). The answer depends on the box." in text
    assert complaints == []


@pytest.mark.browser
def test_print_shows_the_first_and_the_last_step(browser: Browser, finished_quickstart: Path) -> None:
    page, _ = opened(browser, write_report(finished_quickstart))
    page.emulate_media(media="print")
    texts = page.locator("#looks .watched").first.locator(".unscripted:visible").all_inner_texts()
    assert texts == ["Step 0", "Step 120"]
    assert not page.locator("#looks .steps").is_visible()


@pytest.mark.browser
def test_the_page_opens_in_under_a_second(browser: Browser, finished_quickstart: Path) -> None:
    report = write_report(finished_quickstart)
    # The best of three, as what else the machine does is not the page's.
    loads = [opened(browser, report)[0].evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd")
             for _ in range(3)]  # fmt: skip
    assert min(loads) < 1000


@pytest.mark.browser
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_sideways_scrolling(browser: Browser, finished_quickstart: Path, width: int, scheme: str) -> None:
    page, _ = opened(
        browser, write_report(finished_quickstart), viewport={"width": width, "height": 900}, color_scheme=scheme
    )
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.browser
def test_works_without_script(browser: Browser, finished_quickstart: Path) -> None:
    page, complaints = opened(browser, write_report(finished_quickstart), java_script_enabled=False)
    assert page.locator("#gallery .exhibit .tile").count() == 48
    assert page.locator("#looks .lookcard:visible").count() == 3 * 2 * 3, "images, first and last step, arms"
    assert page.locator(".chart path.line").count() > 18
    assert not page.locator("#theme").is_visible()
    assert complaints == []


@pytest.mark.browser
def test_single_run_says_what_is_missing(browser: Browser, tmp_path: Path) -> None:
    write_training(tmp_path, "ral-old", steps=30)
    page, complaints = opened(browser, write_report(tmp_path))
    assert page.inner_text("h1") == "Trained, not yet evaluated."
    text = page.inner_text("main")
    for missing in (
        "This run has no evaluation yet",
        "No images to show",
        "No layer sweep was measured",
        "not measured",
    ):
        assert missing in text
    assert complaints == []


@pytest.mark.browser
def test_evaluation_without_training_or_pictures(browser: Browser, tmp_path: Path) -> None:
    write_evaluation(tmp_path / "eval" / "rings", "grpo", items=40, shown=0)
    page, complaints = opened(browser, write_report(tmp_path))
    text = page.inner_text("main")
    for missing in ("No training was logged here", "kept no images or attention maps", "config.yaml is absent"):
        assert missing in text
    assert complaints == []


@pytest.mark.browser
@pytest.mark.parametrize("hostile", [MARKUP, ONE_TOKEN], ids=["markup", "one token of 1 MB"])
def test_hostile_text_runs_nothing(browser: Browser, finished_quickstart: Path, tmp_path: Path, hostile: str) -> None:
    folder = shutil.copytree(finished_quickstart, tmp_path / "hostile")
    index = json.loads((folder / "quickstart.json").read_text())
    index |= {"machine": hostile, "commands": [hostile]}
    for arm in index["arms"]:
        arm["label"] = hostile
        items = folder / arm["path"] / "eval" / "rings" / "items.jsonl"
        rows = [json.loads(line) for line in items.read_text().splitlines()[:4]]
        for row in rows:
            row |= {"question": hostile, "solution": hostile, "completion": hostile, "prediction": hostile}
        rows[0] |= {"image": hostile, "boxes": hostile, "map": {"grid": hostile, "values": [hostile]}}
        write_rows(items, rows)
        if arm["name"] != "start":
            run = folder / arm["path"]
            (run / "environment.json").write_text(json.dumps({hostile: hostile}))
            (run / "config.yaml").write_text(json.dumps({hostile[:100]: hostile}))
            write_rows(run / "looks" / "items.jsonl", [row | {"step": 1} for row in rows] + [{"step": hostile}])
            sample = {"step": 1, "id": hostile, "question": hostile, "completion": hostile, "reward": hostile}
            write_rows(run / "samples.jsonl", [sample])
            write_rows(
                run / "metrics.jsonl", [{"step": 1, "reward": hostile}, {"step": hostile}, {"step": 2, "reward": 1}]
            )
    (folder / "quickstart.json").write_text(json.dumps(index))
    report = write_report(folder)
    assert report.stat().st_size < 5_000_000
    page, complaints = opened(browser, report, viewport={"width": 390, "height": 900})
    page.evaluate("document.querySelectorAll('details').forEach(detail => { detail.open = true })")
    page.mouse.move(200, 400)
    assert page.evaluate("window.ran") is None
    assert page.locator("script").count() == 3
    assert page.locator("style").count() == 1
    assert page.locator("img:not([src^='data:'])").count() == 0
    assert page.locator("#gallery .exhibit").count() == 4
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert complaints == []


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessibility(browser: Browser, finished_quickstart: Path, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    page, _ = opened(browser, write_report(finished_quickstart), color_scheme=scheme, bypass_csp=True)
    page.evaluate("document.querySelectorAll('details').forEach(detail => { detail.open = true })")
    found = axe.Axe().run(page).response["violations"]
    assert [(violation["id"], violation["nodes"][0]["html"]) for violation in found] == []


@pytest.mark.browser
def test_look_page(browser: Browser, tmp_path: Path) -> None:
    report = render_heatmap_html(
        np.zeros((40, 80, 3), dtype=np.uint8),
        np.ones((2, 4)),
        [(0, 0, 9, 9)],
        tmp_path / "look.html",
        question=MARKUP,
    )
    page, complaints = opened(browser, report)
    page.locator("input[value=veil]").check(force=True)
    assert page.evaluate("getComputedStyle(document.querySelector('.veil')).display") != "none"
    assert page.evaluate("window.ran") is None
    assert complaints == []
