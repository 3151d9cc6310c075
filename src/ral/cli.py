"""The command line: thin commands over the package, each importing what it needs when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup


class _Commands(TyperGroup):
    """Shows the user's mistakes as one line. Everything the user can get wrong is a ValueError or an OSError."""

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        try:
            return super().invoke(ctx)
        except (ValueError, OSError) as error:
            if ctx.params["debug"]:
                raise
            # Paths and data may hold anything: no markup, and no line breaks that the message does not have.
            Console(stderr=True).print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
            raise typer.Exit(2) from error


app = typer.Typer(cls=_Commands, no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback()
def ral(debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False) -> None:
    """Reinforced Attention Learning: post-train vision-language models on where they look, beside what they say."""


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="A run folder or a quickstart folder.", show_default=False)],
) -> None:
    """Write report.html into a run or quickstart folder: one page, without network access."""
    from ral.report import write_report

    typer.echo(write_report(folder))


def main() -> None:
    """Entry point of the `ral` script."""
    app()
