"""Renders the templates. Everything is escaped, and only the page's own script may run."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ral.statistics import p_text

#: What stands where a value was not measured: a page must not leave the reader to guess at a blank.
MISSING = "not measured"


def render(template: str, **context: Any) -> str:
    """The page from `templates/<template>` with styles and script inlined and a content security policy that names
    the hashes of exactly these two, so that markup smuggled into a question or a completion could not run."""
    style, script = _source("page.css"), _source("page.js")
    policy = (
        "default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'; "
        f"style-src '{_digest(style)}'; script-src '{_digest(script)}'"
    )
    page = _environment.get_template(template)
    return page.render(style=Markup(style), script=Markup(script), policy=policy, **context)


def clip(text: object, limit: int) -> str:
    """`text`, cut after `limit` characters with a remark on how much was left out."""
    full = str(text)
    return full if len(full) <= limit else f"{full[:limit]}… [cut; {len(full):,} characters in all]"


def percent(value: float | None, digits: int = 0) -> str:
    return MISSING if value is None else f"{value * 100:.{digits}f}\u202f%"


def points(value: float) -> str:
    """A difference of two shares in percentage points, with its sign."""
    return f"{value * 100:+.1f}".replace("-", "−")


def decimal(value: float | None, digits: int = 2) -> str:
    return MISSING if value is None else f"{value:.{digits}f}".replace("-", "−")


def compact(value: float) -> str:
    """`value` in at most three significant digits, as a reader would write it on an axis."""
    if value == 0:
        return "0"
    power = math.floor(math.log10(abs(value)))
    if power < -3 or power > 5:
        mantissa = f"{value / 10**power:.3g}".removesuffix(".0")
        superscript = str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
        prefix = "" if mantissa == "1" else "−" if mantissa == "-1" else f"{mantissa}·".replace("-", "−")
        return f"{prefix}10{superscript}"
    digits = max(0, 2 - power)
    text = f"{value:.{digits}f}"
    return (text.rstrip("0").rstrip(".") if "." in text else f"{value:,.0f}").replace("-", "−")


def script_json(value: Any) -> Markup:
    """`value` as JSON that is safe inside a `<script>` element: no character in it can end the element."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


def _source(name: str) -> str:
    loader = _environment.loader
    assert loader is not None
    return loader.get_source(_environment, name)[0]


_environment = Environment(
    loader=PackageLoader("ral.report"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_environment.filters |= {
    "clip": clip,
    "percent": percent,
    "points": points,
    "decimal": decimal,
    "compact": compact,
    "p_text": p_text,
    "script_json": script_json,
}
