"""Puts the page of all options on the site. Every line is a setting's own explanation, read from the source."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ral.options import Group, options_of

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

#: Settings of transformers come last, and are told apart: their explanations are transformers' own.
_OTHERS = ("transformers.", "trl.")
_HEAD = """\
# All options

Every key of a recipe, in groups. `ral train --help` prints the same list. On the command line a key is an option: `learning_rate` is
`--learning_rate 1e-6`. In Python, the keys of the first two groups are arguments of `RALTrainer` (`data` is `train_dataset`), and the others
are fields of `RALConfig`. [Recipes and runs](recipes.md) shows recipes, and [Anchors and options](anchors.md) explains the attention term.
"""


def page() -> str:
    groups = options_of("ral.recipe:Recipe")
    own = [group for group in groups if not group.of.startswith(_OTHERS)]
    others = [group for group in groups if group.of.startswith(_OTHERS)]
    parts = [_HEAD, *map(_section, own), "## Settings of `transformers.TrainingArguments`\n"]
    parts += [_section(group, "###") for group in others]
    return "\n".join(parts)


def _section(group: Group, level: str = "##") -> str:
    rows = [f"| `{one.name}` | {_default(one.default)} | {_cell(one.help)} |" for one in group.options]
    return "\n".join([f"{level} {group.title}\n", "| key | default | meaning |", "|---|---|---|", *rows, ""])


def _default(text: str | None) -> str:
    return "must be given" if text is None else f"`{_cell(text)}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("{%", "{ %")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The site's files with `options.md`."""
    from mkdocs.structure.files import File

    files.append(File.generated(config, "options.md", content=page()))
    return files
