"""Makes MathML of the pages' LaTeX while the site is built: no script, no font and no request when it is read."""

from __future__ import annotations

import re
from html import unescape
from typing import Any

from math_core import LatexError, LatexToMathML
from mkdocs.exceptions import PluginError
from mkdocs.structure.pages import Page

#: What `pymdownx.arithmatex` leaves of `$…$` (a span) and `$$…$$` (a div).
_MARKED = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', flags=re.DOTALL)
_CONVERTER = LatexToMathML(fancy_error=False)


def on_page_content(html: str, page: Page, **_: Any) -> str:
    """The page's HTML with every formula as a `<math>` element. Raises PluginError for one that is not LaTeX."""

    def mathml(marked: re.Match[str]) -> str:
        latex = unescape(marked[2])
        try:
            return _CONVERTER.convert_with_local_state(latex, displaystyle=marked[1] == "div")
        except LatexError as error:
            raise PluginError(f"{page.file.src_path}: {latex}: {error}") from error

    return _MARKED.sub(mathml, html)
