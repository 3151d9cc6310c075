"""The command line: thin commands over the package. Each imports what it needs when it runs."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import typer
from rich.console import Console
from typer.core import TyperCommand, TyperGroup

from ral.errors import RalError, UsageError
from ral.runs.names import EVALUATIONS, ITEMS
from ral.runs.redaction import redacted

#: Modules whose notes to their own callers a user can do nothing about.
_LIBRARIES = r"(accelerate|datasets|huggingface_hub|peft|torch|transformers|trl)\b"


class _Commands(TyperGroup):
    """Prints errors that the user can fix as one line: a RalError, or a path that the system refuses. Others are bugs."""

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        os.environ.pop("MPLBACKEND", None)  # nothing is drawn on a display, and matplotlib refuses one it does not know
        try:
            with warnings.catch_warnings():
                if not ctx.params["debug"]:
                    for kind in (FutureWarning, DeprecationWarning):
                        warnings.filterwarnings("ignore", category=kind, module=_LIBRARIES)
                return super().invoke(ctx)
        except (RalError, OSError) as error:
            if ctx.params["debug"]:
                raise
            # Paths and data may hold anything: no markup, and no line breaks that the message does not have.
            message = f"error: {redacted(str(error))}"
            Console(stderr=True).print(message, style="red", markup=False, highlight=False, soft_wrap=True)
            raise typer.Exit(2) from error


class _TakesSettings(TyperCommand):
    """A command that accepts the fields of a dataclass as `--field value`, mixed with its own options in any order.

    `context.args` holds these words for `ral.recipe.parse_settings`.
    """

    #: The dataclass, as `module:name`: a module may be slow to import. What fields are that are not given.
    settings: str
    otherwise: str

    def kind(self) -> type:
        module, _, name = self.settings.partition(":")
        return getattr(import_module(module), name)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        from ral.recipe import split_settings

        own, given = split_settings(self.kind(), args)
        super().parse_args(ctx, own)
        ctx.args = given
        return given

    def format_help(self, ctx: Any, formatter: Any) -> None:
        switches = {name for name, hint in get_type_hints(self.kind()).items() if hint is bool}
        names = {item.name: item.name.replace("_", "-") for item in fields(self.kind())}
        spelt = {key: f"--{name}, --no-{name}" if key in switches else f"--{name}" for key, name in names.items()}
        lines = [f"{spelt[item.name]}: {item.metadata['help']}" for item in fields(self.kind())]
        self.epilog = "\n\n".join([f"Settings, {self.otherwise}:", *lines])
        super().format_help(ctx, formatter)


class _TakesRecipe(TyperCommand):
    """A command that takes a recipe, and any of its keys as `--key value`, which its help lists in groups."""

    #: The class of the recipe, as `ral.options.options_of` takes it.
    recipe = "ral.recipe:Recipe"

    def format_help(self, ctx: Any, formatter: Any) -> None:
        from ral.options import options_of

        self.epilog = "Keys of a recipe, each of them also an option:"
        for group in options_of(self.recipe):
            lines = [
                f"--{one.name}{'' if one.default in (None, 'None') else f' ({one.default})'}: {one.help}"
                for one in group.options
            ]
            self.epilog += "\n\n" + "\n\n".join([f"{group.title}:", *lines])
        super().format_help(ctx, formatter)


class _TakesSFTRecipe(_TakesRecipe):
    recipe = "ral.training.sft:SFTTask"


class _TakesPromptSettings(_TakesSettings):
    settings = "ral.data.settings:PromptSettings"
    otherwise = "as in the recipe to be trained"


class _TakesEvalSettings(_TakesSettings):
    settings = "ral.evaluate.settings:EvalSettings"
    otherwise = "by default those of the model's run"


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"token_normalize_func": lambda word: word.replace("_", "-")},  # as keys of recipes are spelt
)


@app.callback()
def ral(debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False) -> None:
    """Reinforced Attention Learning: post-train vision-language models on where they look, beside what they say."""


@app.command()
def quickstart(
    output: Annotated[Path, typer.Option(help="Folder to write to.")] = Path("quickstart"),
    seed: Annotated[int, typer.Option(help="Seed of the order of prompts and of all rollouts.")] = 0,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps of every arm.", show_default="tuned")] = None,
    held_out: Annotated[int, typer.Option(help="Images to evaluate on.")] = 512,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier quickstart.")] = False,
) -> None:
    """Train GRPO and RAL from the embedded start checkpoint on the CPU, and write the page that compares them."""
    from ral.quickstart import run_quickstart

    typer.echo(run_quickstart(output, seed=seed, steps=steps, held_out=held_out, overwrite=overwrite))


#: Words that no option takes are overrides of the recipe.
_TAKES_OVERRIDES = {"allow_extra_args": True, "ignore_unknown_options": True}
_Recipe = Annotated[Path, typer.Argument(help="A recipe: a flat YAML file.", show_default=False)]
_Resume = Annotated[bool, typer.Option("--resume", help="Resume from the run's last good checkpoint.")]
_Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the run that the folder holds.")]


@app.command(cls=_TakesSFTRecipe, context_settings=_TAKES_OVERRIDES)
def sft(context: typer.Context, recipe: _Recipe, resume: _Resume = False, overwrite: _Overwrite = False) -> None:
    """Fine-tune on worked examples, the stage before `ral train`. --key VALUE overrides any key of the recipe."""
    from ral.recipe import load_recipe, read_given

    _announce(recipe, *read_given(recipe, context.args))  # refuses at once what can be; the rest is slow to import
    from ral.report import write_report
    from ral.training.sft import SFTTask, fine_tune

    loaded = load_recipe(recipe, context.args, SFTTask)
    _without_bars()
    folder = fine_tune(loaded, resume=resume, overwrite=overwrite)
    if loaded.args.process_index == 0:
        typer.echo(write_report(folder))


@app.command(cls=_TakesRecipe, context_settings=_TAKES_OVERRIDES)
def train(context: typer.Context, recipe: _Recipe, resume: _Resume = False, overwrite: _Overwrite = False) -> None:
    """Train by a recipe and write the run's report. --key VALUE overrides any key of the recipe."""
    from ral.recipe import load_recipe, read_given

    _announce(recipe, *read_given(recipe, context.args))
    loaded = load_recipe(recipe, context.args)
    from ral.report import write_report
    from ral.training.launch import train

    _without_bars()
    folder = train(loaded, resume=resume, overwrite=overwrite)
    if loaded.args.process_index == 0:
        typer.echo(write_report(folder))


def _announce(recipe: Path, given: dict[str, Any], override: dict[str, Any]) -> None:
    """Say on the main process what starts, as models are slow to load."""
    from ral.runs.announcement import announcement
    from ral.testbed import SHIPPED

    if os.environ.get("RANK", "0") == "0":
        typer.echo(announcement(recipe, {**given, **override}, SHIPPED))


def _without_bars() -> None:
    """Switch off the bars of loading and saving weights, about which a user can do nothing; those of downloads stay."""
    from transformers.utils import logging

    logging.disable_progress_bar()


@app.command(context_settings=_TAKES_OVERRIDES)
def plan(
    context: typer.Context,
    recipe: _Recipe,
    gpus: Annotated[int, typer.Option(help="Number of GPUs.")] = 1,
    gpu_memory: Annotated[float, typer.Option(help="Memory of one GPU in GiB.")] = 80,
    prompt_tokens: Annotated[
        int | None, typer.Option(help="Tokens of the longest prompt.", show_default="as pixels and frames allow")
    ] = None,
    completion_tokens: Annotated[
        int | None,
        typer.Option(help="Tokens of the average completion, for the time.", show_default="max_completion_length"),
    ] = None,
    examples: Annotated[
        int | None, typer.Option(help="Records to train on.", show_default="of max_steps or the data")
    ] = None,
    sharding: Annotated[
        str | None, typer.Option(help="ddp, fsdp2, zero2 or zero3.", show_default="as in the recipe")
    ] = None,
    tflops: Annotated[float, typer.Option(help="Peak of one GPU in matrix products, in TFLOP/s.")] = 989,
    bandwidth: Annotated[float, typer.Option(help="Memory bandwidth of one GPU, in TB/s.")] = 3.35,
    utilisation: Annotated[float, typer.Option(help="Share of the peak that forward and backward passes reach.")] = 0.4,
    layer_ms: Annotated[float, typer.Option(help="Minimal time of a layer in a decoding step, in milliseconds.")] = 1.0,
    link: Annotated[float, typer.Option(help="TB/s that a GPU gets from the others of its machine.")] = 0.3,
    network: Annotated[float, typer.Option(help="TB/s that a GPU gets from other machines.")] = 0.04,
    host_memory: Annotated[
        float | None, typer.Option(help="Memory of one machine in GiB.", show_default="not compared")
    ] = None,
    compare: Annotated[bool, typer.Option("--compare", help="Show the recipe under other settings, too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Estimate what a recipe of `ral train` needs: memory per GPU, changes if it does not fit, and time.

    Reads the model's configuration only. --key VALUE overrides any key of the recipe. Exit code 1: it does not fit.
    """
    from ral.recipe import read_given

    read_given(recipe, context.args)
    from ral.plan import Machine, render
    from ral.plan import plan as make_plan
    from ral.plan.setup import Sharding

    found = make_plan(
        recipe, context.args, gpus=gpus, gpu_memory=gpu_memory, prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens, examples=examples,
        sharding=None if sharding is None else _choice(Sharding, sharding, "--sharding"),
        machine=Machine(tflops, bandwidth, utilisation, layer_ms, link=link, network=network),
        host=host_memory, compare=compare,
    )  # fmt: skip
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=2))
    else:
        Console(highlight=False, soft_wrap=True).print(render(found))
    raise typer.Exit(0 if found.fits else 1)


@app.command()
def export(
    run: Annotated[
        str,
        typer.Argument(
            help="A run that trained an adapter, its folder, or a checkpoint in shards.", show_default=False
        ),
    ],
    output: Annotated[Path, typer.Option(help="Folder to write the model to.")],
) -> None:
    """Write a whole model, for use without this package: an adapter merged into its base model, or shards put together."""
    from ral.models.loading import export

    _without_bars()
    export(run, output)
    typer.echo(output)


@app.command(cls=_TakesPromptSettings)
def check(
    context: typer.Context,
    data: Annotated[
        list[str], typer.Argument(help="Files, folders or hub ids; or a recipe of `ral train`.", show_default=False)
    ],
    data_root: Annotated[Path | None, typer.Option(help="Folder that media paths start from.")] = None,
    split: Annotated[str, typer.Option(help="Split of a folder or hub data set.")] = "train",
    allow_outside: Annotated[
        bool, typer.Option("--allow-outside", help="Accept media paths that leave the root.")
    ] = False,
    columns: Annotated[
        str | None, typer.Option(help="Our name: the data's, as in a recipe: '{problem: caption, images: picture}'.")
    ] = None,
    box_scale: Annotated[
        str | None, typer.Option(help="What boxes count: pixels, unit or thousand.", show_default="as the format says")
    ] = None,
    eval_data: Annotated[
        str | None, typer.Option(help="Evaluation data; its media must not be in the training data.")
    ] = None,
    scorer: Annotated[
        str | None,
        typer.Option(
            "--scorer", "--mode", help="Scorer that reads solutions: strict or compat.", show_default="strict"
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Count prompt tokens with this model's processor.", show_default="the recipe's")
    ] = None,
    max_prompt_tokens: Annotated[
        int | None, typer.Option(help="Longest prompt to accept; needs a model.", show_default="what the model takes")
    ] = None,
    examples: Annotated[int, typer.Option(help="Rows to name for every kind of problem.")] = 5,
    show: Annotated[int, typer.Option(help="Prompts to print, exactly as the model gets them; needs a model.")] = 0,
    clean: Annotated[Path | None, typer.Option(help="Folder to write the good rows to, with their media.")] = None,
) -> None:
    """List the content of data and its errors. Exit code 1 if training would fail.

    Of a recipe, the data, prompts, model and rewards are the recipe's.
    """
    from ral.data.check import check_records
    from ral.rewards.answers import Mode
    from ral.training.checked_data import checked_data

    checked = checked_data(
        data, context.args, split=split, eval_data=eval_data,
        scorer=_choice(Mode, scorer, "--scorer") if scorer else None,
        reading={"root": data_root, "allow_outside": allow_outside or None, **_naming(columns, box_scale)},
    )  # fmt: skip
    model = model or checked.model
    if model is None and (max_prompt_tokens is not None or show):
        needs = "--max-prompt-tokens" if max_prompt_tokens is not None else "--show"
        raise UsageError(f"{needs} needs --model, whose processor makes the prompts' tokens.")
    processor, budget = (None, None) if model is None else _prompting(model)
    with _counted("rows") as progress:
        result = check_records(
            checked.read, unscorable=checked.unscorable, evaluation=checked.evaluation, processor=processor,
            max_prompt_tokens=max_prompt_tokens or budget, prompt=checked.prompt, show=show, clean=clean, progress=progress,
        )  # fmt: skip
    typer.echo(redacted(result.to_text(examples)))
    raise typer.Exit(result.exit_code)


def _prompting(model: str) -> tuple[Any, int | None]:
    """The processor of a model, and the tokens that its positions reach."""
    from ral.models.loading import load_processor, prompt_budget

    return load_processor(_model_path(model)), prompt_budget(_model_path(model))


def _naming(columns: str | None, box_scale: str | None) -> dict[str, Any]:
    """The options of column names and of the scale of boxes, as arguments of `read_records`."""
    from ral.data.record import BoxScale

    return {
        "columns": None if columns is None else _mapping(columns, "--columns"),
        "box_scale": None if box_scale is None else _choice(BoxScale, box_scale, "--box-scale"),
    }


def _mapping(value: str, option: str) -> dict[str, Any]:
    """The names in YAML that an option gives."""
    from ral.files import parse_yaml

    found = parse_yaml(value)
    if not isinstance(found, dict):
        raise UsageError(f"{option} {value!r} is no mapping; write it as '{{problem: caption, images: picture}}'.")
    return found


@contextmanager
def _counted(what: str) -> Iterator[Callable[[int], None]]:
    """What to call with the number of things done, which is shown on stderr while it grows."""
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn(f"{{task.completed:,}} {what}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task(what, total=None)
        yield lambda done: progress.update(bar, completed=done)


def _choice(kind: Any, value: str, option: str) -> Any:
    """`value`, if it is one of the values of the Literal `kind`."""
    if value not in get_args(kind):
        raise UsageError(f"{option} {value!r} is not known; choose one of {', '.join(get_args(kind))}.")
    return value


@app.command(name="eval", cls=_TakesEvalSettings)
def evaluate(
    context: typer.Context,
    model: Annotated[
        str, typer.Argument(help="A model folder, a run folder, a hub id, or `start`.", show_default=False)
    ],
    tasks: Annotated[str, typer.Option(help="Tasks, separated by commas: rings, easy-vqa, or benchmarks by name.")],
    output: Annotated[
        Path | None, typer.Option(help="Folder to write to, one sub-folder per task.", show_default="RUN/eval")
    ] = None,
    n: Annotated[int | None, typer.Option("--n", help="Items per task.", show_default="all")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the choice of items.")] = 0,
    data: Annotated[str | None, typer.Option(help="A benchmark's table on this machine.", show_default="hub")] = None,
    media: Annotated[Path | None, typer.Option(help="Folder of images and videos outside the table.")] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="Ask as a run of this recipe is asked.", show_default="as the model's own run")
    ] = None,
    columns: Annotated[
        str | None, typer.Option(help="Column names of your own data, as in a recipe.", show_default="the run's")
    ] = None,
    box_scale: Annotated[
        str | None, typer.Option(help="What boxes of your own data count.", show_default="the run's")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Items generated together.")] = 32,
    num_workers: Annotated[int, typer.Option(help="Processes that decode media beside the model.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace earlier evaluations.")] = False,
) -> None:
    """Evaluate a model on tasks: answers, scores, and where it looked. Continues an interrupted evaluation."""
    from rich.progress import Progress

    from ral.evaluate.answering import load_for_answering
    from ral.evaluate.runner import evaluate
    from ral.evaluate.settings import EvalSettings, run_folder, saved_settings
    from ral.evaluate.tasks.selection import find_task
    from ral.recipe import load_recipe, parse_settings
    from ral.report import write_items

    path = _model_path(model)
    saved = saved_settings(path) if recipe is None else load_recipe(recipe).settings()
    settings = EvalSettings.of_config(saved, **parse_settings(EvalSettings, context.args))
    naming = {key: saved.get(key) if value is None else value for key, value in _naming(columns, box_scale).items()}
    chosen = [find_task(name.strip(), n=n, seed=seed, data=data, media=media, **naming) for name in tasks.split(",")]
    if output is None:
        run = run_folder(path)
        if run is None:
            raise UsageError(f"{model} lies in no run folder, so give --output, the folder to write to.")
        output = run / EVALUATIONS
    _without_bars()
    loaded, processor = load_for_answering(path)
    for task in chosen:
        with Progress(console=Console(stderr=True)) as progress:
            bar = progress.add_task(task.name)
            summary = evaluate(
                loaded, processor, task, output / task.name, settings=settings, name=model, batch_size=batch_size,
                num_workers=num_workers, overwrite=overwrite, progress=partial(progress.update, bar),
            )  # fmt: skip
        write_items(output / task.name)
        typer.echo(f"{summary.sentence()} {output / task.name}")


@app.command(cls=_TakesEvalSettings)
def look(
    context: typer.Context,
    model: Annotated[
        str, typer.Argument(help="A model folder, a run folder, a hub id, or `start`.", show_default=False)
    ],
    question: Annotated[str, typer.Option(help="The question; <image> or <video> marks the place of the medium.")],
    output: Annotated[Path, typer.Option(help="A .png file, or an .html page with a slider.")],
    image: Annotated[Path | None, typer.Option(help="The image.")] = None,
    video: Annotated[
        Path | None, typer.Option(help="The video, in place of an image; each temporal patch gets a map.")
    ] = None,
    token_grid: Annotated[
        bool, typer.Option("--token-grid", help="Draw each visual token as a square, not smoothed (.png).")
    ] = False,
) -> None:
    """Draw where a model looks when it answers a question about an image or a video."""
    from ral.evaluate.settings import EvalSettings
    from ral.notebook.look import look
    from ral.recipe import parse_settings

    if output.suffix not in (".png", ".html"):
        raise UsageError(f"{output}: expected a name that ends in .png or .html.")
    path = _model_path(model)
    settings = EvalSettings.of_model(path, **parse_settings(EvalSettings, context.args))
    _without_bars()
    typer.echo(look(path, image, question, video=video, settings=settings).save(output, token_grid=token_grid))


def _model_path(model: str) -> str:
    """The shipped checkpoints go by name, as in recipes."""
    from ral.testbed import model_name

    return model_name(model)


@app.command()
def compare(
    run_a: Annotated[Path, typer.Argument(help="A run folder with evaluations.", show_default=False)],
    run_b: Annotated[Path, typer.Argument(help="The run to compare with it.", show_default=False)],
) -> None:
    """Compare the evaluations of two runs, item by item, on their common tasks."""
    from ral.evaluate.comparison import compare_runs

    for sentence in compare_runs(run_a, run_b):
        typer.echo(sentence)


@app.command()
def replay(
    dump: Annotated[
        Path, typer.Argument(help="Dump of a stopped run: its nonfinite-N or failed-reward-N.", show_default=False)
    ],
    process: Annotated[int, typer.Option(help="Process whose batch is run.")] = 0,
    reward: Annotated[
        str | None,
        typer.Option(help="The function to call again, as a recipe names it.", show_default="none is called"),
    ] = None,
) -> None:
    """Run again the batch that stopped a run, and show where it becomes non-finite."""
    from tempfile import TemporaryDirectory

    from ral.training.replay import replay

    with TemporaryDirectory() as scratch:
        for finding in replay(dump, Path(scratch), process, reward):
            typer.echo(finding)


@app.command()
def report(
    runs: Annotated[
        list[Path],
        typer.Argument(help="Run and quickstart folders, or the folder of one evaluation.", show_default=False),
    ],
    output: Annotated[
        Path | None, typer.Option(help="File to write.", show_default="report.html in the folder, of several here")
    ] = None,
) -> None:
    """Write one page on runs: report.html, or items.html for an evaluation. Runs that differ only in the seed form an arm."""
    from ral.report import write_items, write_report

    if len(runs) == 1 and (runs[0] / ITEMS).is_file():
        if output is not None:
            raise UsageError("the page of an evaluation lies in its folder, beside its images; leave out --output.")
        typer.echo(write_items(runs[0]))
    else:
        typer.echo(write_report(*runs, output=output))


def main() -> None:
    """Entry point of the `ral` script."""
    app()
