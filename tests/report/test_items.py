from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from ral.cli import app
from ral.errors import DataError
from ral.report import write_items
from tests.report.saved import write_evaluation, write_rows
from tests.report.test_page import MARKUP, browser, opened  # noqa: F401, a fixture

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.fixture
def evaluation(tmp_path: Path) -> Path:
    """Sixty items, the first twelve with pictures; the last one unparsed and truncated, one before half right."""
    folder = tmp_path / "rings"
    write_evaluation(folder, "grpo", items=60, shown=12)
    rows = [json.loads(line) for line in (folder / "items.jsonl").read_text().splitlines()]
    rows[-1] |= {"prediction": None, "correct": 0.0, "truncated": True, "completion": "<think> on and on"}
    rows[-2] |= {"prediction": "perhaps", "correct": 0.0, "unparsed": True}
    rows[-3] |= {"correct": 0.6667}
    write_rows(folder / "items.jsonl", rows)
    return folder


def saved(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "items.jsonl").read_text().splitlines()]


def test_a_folder_without_items_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected items\.jsonl"):
        write_items(tmp_path)


def test_the_command_writes_the_page_of_one_evaluation(evaluation: Path) -> None:
    found = CliRunner().invoke(app, ["report", str(evaluation)])
    assert found.stdout.strip() == str(evaluation / "items.html")


def test_the_page_says_what_it_does_not_show(evaluation: Path) -> None:
    rows = saved(evaluation)
    rows[0]["completion"] = "x" * 2001
    write_rows(evaluation / "items.jsonl", rows)
    page = write_items(evaluation).read_text(encoding="utf-8")
    assert "Not on this page: images of 48 items" in page
    assert "ends of 1 items&#39; texts beyond 2,000 characters" in page
    assert "items.jsonl holds for 60 items" in page


@pytest.mark.browser
def test_pages_filters_and_search(browser: Browser, evaluation: Path) -> None:  # noqa: F811
    page, complaints = opened(browser, write_items(evaluation))
    rows = page.locator("#items tbody tr")
    right = sum(row["correct"] >= 0.5 for row in saved(evaluation))
    assert rows.count() == 25
    assert page.inner_text("#place") == "1 to 25 of 60"
    assert page.locator("#items img").count() == 12
    assert page.evaluate("document.querySelector('#items img').naturalWidth") > 0
    page.click("#next")
    page.click("#next")
    assert (rows.count(), page.inner_text("#place")) == (10, "51 to 60 of 60")
    assert page.locator("#next").is_disabled()
    assert "right 0.67" in page.inner_text("#items")

    for state, count in (("right", right), ("wrong", 58 - right), ("unparsed", 2), ("truncated", 1)):
        page.locator(f"input[value={state}]").check(force=True)
        assert page.inner_text("#place").endswith(f"of {count}")
        assert f"{count} {state}" in page.inner_text(".lead")
        if state != "truncated":
            assert rows.locator(".badge", has_text=state).count() == rows.count() == min(count, 25)
    assert "on and on" in page.inner_text("#items")

    page.locator("input[value=all]").check(force=True)
    page.fill("#find", "PERHAPS")
    assert (rows.count(), page.inner_text("#place")) == (1, "1 to 1 of 1")
    page.fill("#find", "nothing like it")
    assert (rows.count(), page.inner_text("#place")) == (0, "none")
    assert complaints == []


@pytest.mark.browser
@pytest.mark.parametrize("script", [True, False])
def test_hostile_text_runs_nothing(browser: Browser, evaluation: Path, script: bool) -> None:  # noqa: F811
    rows = saved(evaluation)[:3]
    for row in rows:
        row |= dict.fromkeys(("id", "question", "solution", "completion", "prediction", "image"), MARKUP)
    rows += [saved(evaluation)[4] | {"id": MARKUP + "tokens", "tokens": MARKUP}]
    rows += [saved(evaluation)[5] | {"id": "score", "correct": MARKUP}]
    write_rows(evaluation / "items.jsonl", rows)
    page, complaints = opened(
        browser, write_items(evaluation), java_script_enabled=script, viewport={"width": 390, "height": 900}
    )
    assert page.locator("#items tbody tr").count() == 1  # ids are the same
    assert page.locator("#items img").count() == 0
    assert "items.jsonl:4: field 'tokens': expected a whole number" in page.inner_text("main")
    assert "So it is with 1 more." in page.inner_text("main")
    assert page.locator("script").count() == 2
    if script:
        assert page.evaluate("window.ran") is None
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert complaints == []


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessibility(browser: Browser, evaluation: Path, scheme: str) -> None:  # noqa: F811
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    page, _ = opened(browser, write_items(evaluation), color_scheme=scheme, bypass_csp=True)
    found = axe.Axe().run(page).response["violations"]
    assert [(violation["id"], violation["nodes"][0]["html"]) for violation in found] == []


@pytest.mark.browser
def test_a_thousand_items_stay_quick(browser: Browser, tmp_path: Path) -> None:  # noqa: F811
    write_evaluation(tmp_path, "grpo", items=1000, shown=0)
    path = write_items(tmp_path)
    assert path.stat().st_size < 1_500_000
    page, _ = opened(browser, path)
    took = page.evaluate(
        "() => { const start = performance.now(); document.getElementById('next').click(); return performance.now() - start }"
    )
    assert page.inner_text("#place") == "26 to 50 of 1000"
    assert took < 500
