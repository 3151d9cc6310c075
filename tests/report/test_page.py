from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from ral.data.record import DataError
from ral.report import render_heatmap_html, write_report
from ral.report.artefacts import read_experiment
from tests.report.saved import write_evaluation, write_quickstart, write_rows, write_training

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

SECTIONS = {"results", "training", "gallery", "layers", "limits", "setup"}
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
    assert len(experiment.arms[0].metrics) == 4
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
    assert headline.startswith("Start 50\u202f%")
    assert "GRPO 70\u202f%" in headline
    assert page.locator(".verdict", has_text="within noise").count() == 1
    assert page.locator(".exhibit").count() == 12
    assert page.locator(".exhibit .tile").count() == 48
    assert page.locator("#training > .charts > .chart").count() == 6
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
    outcomes = {node.get_attribute("data-outcome") for node in page.query_selector_all(".exhibit:not([hidden])")}
    assert outcomes <= {"fixed", "broken"}
    assert outcomes
    assert page.inner_text("#shown").endswith("images shown")

    heat = page.locator(".exhibit:not([hidden]) .heat").first
    assert heat.evaluate("node => getComputedStyle(node).opacity") == "0.8"
    page.locator("#strength").fill("40")
    assert heat.evaluate("node => getComputedStyle(node).opacity") == "0.4"
    page.locator("input[value=off]").check(force=True)
    assert heat.evaluate("node => getComputedStyle(node).display") == "none"

    page.locator(".plot").first.focus()
    page.keyboard.press("ArrowLeft")
    assert page.locator(".chart").first.locator("output").first.inner_text()
    assert complaints == []


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
    assert page.locator(".exhibit .tile").count() == 48
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
    assert page.locator("script").count() == 2
    assert page.locator("style").count() == 1
    assert page.locator("img").count() == 0
    assert page.locator(".exhibit").count() == 4
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
