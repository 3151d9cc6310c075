"""Pages made from hostile strings: Chromium runs nothing of them, asks for nothing, and complains about nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from ral.report import render_heatmap_html, write_items, write_report
from tests.report.saved import write_evaluation, write_quickstart, write_rows
from tests.report.test_page import browser, opened  # noqa: F401, a fixture

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

#: Every string would set `window.ran`, open a dialog, load something or break the page, if it were not taken as text.
HOSTILE = {
    "script": "<script>window.ran = 1; alert(1)</script>",
    "end of a JSON block": '</script><script>window.ran = 1</script>{"a": "</SCRIPT ><!--<script>',
    "event handler": "\"' onmouseover='window.ran = 1' onfocus=window.ran=1 autofocus tabindex=1 x=\"",
    "image": '"><img src=x onerror="window.ran = 1"><img src="http://203.0.113.1/seen.png">',
    "vector image": "<svg onload=window.ran=1><animate onbegin=window.ran=1><foreignObject><iframe srcdoc='<script>parent.ran=1</script>'>",
    "addresses": "javascript:window.ran=1 <a href='javascript:window.ran=1'>x</a> <base href='http://203.0.113.1/'>",
    "style": "</style><style>*{display:none} @import 'http://203.0.113.1/a.css'</style>",
    "refresh": "<meta http-equiv=refresh content='0;url=http://203.0.113.1/'><object data='http://203.0.113.1/'>",
    "template": "{{ 7 * 7 }}{% for x in ().__class__.__base__.__subclasses__() %}{{ x }}{% endfor %}${window.ran=1}`",
    "unicode": "\ud800 \udfff \ufffe \u202e\u2066txt.exe\u2069 \u2028\u2029 a" + "\u0301" * 300,
    "control characters": "".join(map(chr, range(32))) + "\x7f\x1b]0;title\x07 ]]>--><!--",
    "one token of 1 MB": "x" * 1_000_000,
}
NAMES, TEXTS = list(HOSTILE), list(HOSTILE.values())
#: A folder may be called all of this.
FOLDER = "'\"><img src=x onerror=window.ran=1><script>window.ran = 1<"


def harmless(page: Page, complaints: list[str]) -> None:
    """Opens, clicks, hovers and types into what there is; then nothing may have happened."""
    page.on("dialog", lambda dialog: (complaints.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    page.evaluate("document.querySelectorAll('details').forEach(detail => { detail.open = true })")
    page.evaluate(
        """() => {
            for (const node of document.querySelectorAll('body *')) {
                for (const kind of ['mouseover', 'pointermove', 'focus', 'load', 'error', 'toggle', 'begin']) {
                    node.dispatchEvent(new Event(kind, { bubbles: true }));
                }
            }
            for (const node of document.querySelectorAll('main button:not(.copy), main input')) node.click();
        }"""
    )
    page.wait_for_timeout(200)
    assert page.evaluate("window.ran") is None
    assert page.evaluate("document.body.checkVisibility()")
    assert page.locator("iframe, object, embed, base, link:not([rel=icon]), meta[http-equiv=refresh]").count() == 0
    handlers = (
        "Array.from(document.querySelectorAll('*')).flatMap(n => n.getAttributeNames()).filter(n => n.startsWith('on'))"
    )
    assert page.evaluate(handlers) == []
    addresses = page.evaluate(
        "Array.from(document.querySelectorAll('[href], [src]'), n => n.getAttribute('href') ?? n.src)"
    )
    assert all(address.startswith(("#", "data:")) for address in addresses), addresses
    policy = page.get_attribute("meta[http-equiv=Content-Security-Policy]", "content") or ""
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert complaints == []


def spread(count: int, offset: int = 0) -> list[str]:
    """As many hostile strings as there are places, each in turn."""
    return [TEXTS[(offset + i) % len(TEXTS)] for i in range(count)]


def spoil_evaluation(folder: Path) -> None:
    """Every string of HOSTILE once as each text of an item, and once as its picture, map and boxes."""
    items = folder / "items.jsonl"
    rows = [json.loads(line) for line in items.read_text().splitlines()[: len(TEXTS)]]
    for i, row in enumerate(rows):
        fields = ("question", "solution", "completion", "prediction", "id")
        row |= dict(zip(fields, spread(len(fields), i), strict=True))
        if i % 2:
            row |= {"image": TEXTS[i], "boxes": TEXTS[i], "map": {"grid": TEXTS[i], "values": [TEXTS[i]]}}
    write_rows(items, rows)
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps(summary | {"model": TEXTS[1], TEXTS[0]: TEXTS[3]}))


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A quickstart whose every text is hostile, in a folder with such a name."""
    folder = write_quickstart(tmp_path_factory.mktemp("hostile") / FOLDER)
    index = json.loads((folder / "quickstart.json").read_text())
    index |= {"machine": TEXTS[3], "commands": TEXTS, "seconds": dict.fromkeys(TEXTS, TEXTS[0])}
    for i, arm in enumerate(index["arms"]):
        run = folder / arm["path"]
        arm["label"] = TEXTS[i]
        spoil_evaluation(run / "eval" / "rings")
        if arm["name"] == "start":
            continue
        (run / "environment.json").write_text(json.dumps({text[:200]: text for text in TEXTS}))
        (run / "config.yaml").write_text(json.dumps({text[:100]: text for text in TEXTS if text.isprintable()}))
        samples = [
            {"step": 1, "id": "a", "question": TEXTS[i], "solution": TEXTS[4], "completion": text} for text in TEXTS
        ]
        write_rows(run / "samples.jsonl", [sample | {"reward": TEXTS[0]} for sample in samples])
        write_rows(
            run / "metrics.jsonl", [{"step": 1, "reward": TEXTS[0], TEXTS[2]: 1.0}, {"step": TEXTS[1]}, {"step": 2}]
        )
    (folder / "quickstart.json").write_text(json.dumps(index))
    return folder


@pytest.mark.browser
@pytest.mark.parametrize("width", [390, 1280])
def test_the_report_runs_nothing(browser: Browser, quickstart: Path, width: int) -> None:  # noqa: F811
    report = write_report(quickstart)
    assert report.stat().st_size < 5_000_000
    page, complaints = opened(browser, report, viewport={"width": width, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator(".exhibit").count() > 0
    harmless(page, complaints)


@pytest.mark.browser
def test_the_table_of_items_runs_nothing(browser: Browser, tmp_path: Path) -> None:  # noqa: F811
    folder = tmp_path / FOLDER
    write_evaluation(folder, "grpo", items=len(TEXTS), shown=len(TEXTS))
    spoil_evaluation(folder)
    page, complaints = opened(browser, write_items(folder), viewport={"width": 390, "height": 900})
    assert page.locator("#items tbody tr").count() == len(TEXTS)
    page.fill("#find", "<script>")
    assert 0 < page.locator("#items tbody tr").count() < len(TEXTS)
    harmless(page, complaints)


@pytest.mark.browser
@pytest.mark.parametrize("name", NAMES)
def test_the_heat_map_runs_nothing(browser: Browser, tmp_path: Path, name: str) -> None:  # noqa: F811
    text = HOSTILE[name]
    path = tmp_path / f"{FOLDER}.html"
    picture = np.zeros((40, 80, 3), dtype=np.uint8)
    render_heatmap_html(
        picture, np.ones((2, 4)), [], path, title=text, question=text, completion=text, facts=[(text, text)]
    )
    page, complaints = opened(browser, path)
    harmless(page, complaints)


@pytest.mark.browser
def test_the_listeners_hear_what_would_run(browser: Browser, tmp_path: Path) -> None:  # noqa: F811
    """The same strings in a page that trusts them: it runs, so a silent page is no accident of the test."""
    path = tmp_path / "trusting.html"
    path.write_text(f"<body>{HOSTILE['image']}{HOSTILE['end of a JSON block']}</body>", encoding="utf-8")
    page, complaints = opened(browser, path)
    page.wait_for_timeout(200)
    assert page.evaluate("window.ran") == 1
    assert any("203.0.113.1" in complaint for complaint in complaints)
