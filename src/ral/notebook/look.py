"""`ral.look`: asks a model about an image or a video, and draws where it looked."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image
from torch import nn
from transformers import Trainer

from ral.data.settings import PromptSettings
from ral.errors import UsageError
from ral.evaluate.answering import Glance, glance, load_for_answering
from ral.evaluate.settings import EvalSettings
from ral.report.heatmap import render_heatmap_html, render_heatmap_png
from ral.runs.html import facts, png
from ral.testbed import model_name


@dataclass(frozen=True)
class LookFigure:
    """The answer to one question and the attention of the row that predicts it; a notebook shows it as a picture."""

    question: str
    seen: Glance

    @property
    def answer(self) -> str | None:
        """The answer's body; None if the text holds none."""
        return self.seen.answer

    def facts(self) -> list[tuple[str, str]]:
        """What the picture shows, by name."""
        seen = self.seen
        row = "the first token, as no answer was found" if seen.answer is None else f"the answer {seen.answer!r}"
        medium = "video" if seen.sheet.times else "image"
        found = [("Row", f"predicts {row}"), ("Layer", f"{seen.number} of 0 to {len(seen.look.layers) - 1}")]
        found += [("Heads", ", ".join(map(str, seen.heads)))] if seen.heads else []
        found += [(f"Attention on the {medium}", f"{seen.layer.visual_share:.0%}")]
        if seen.sheet.times:
            found += [("Frames at", ", ".join(f"{time:.1f}" for time in seen.sheet.times) + " s, row by row")]
        return found

    def save(self, path: str | Path, *, token_grid: bool = False) -> Path:
        """Write a .png file, smoothed between visual tokens unless `token_grid`, or an .html page that has both.

        Raises UsageError for another name.
        """
        path, seen = Path(path), self.seen
        pixels, asked = np.asarray(seen.sheet.picture), _without_marks(self.question)
        if path.suffix == ".html":
            return render_heatmap_html(
                pixels, seen.map, [], path, question=asked, completion=seen.text, facts=self.facts()
            )
        if path.suffix != ".png":
            raise UsageError(f"{path}: expected a name that ends in .png or .html.")
        caption = "; ".join(f"{name}: {fact}" for name, fact in self.facts())
        said = f"{seen.text}\n{caption}"
        return render_heatmap_png(pixels, seen.map, [], path, title=asked, caption=said, token_grid=token_grid)

    def _repr_png_(self) -> bytes:
        with TemporaryDirectory() as folder:
            return self.save(Path(folder) / "look.png").read_bytes()

    def _repr_html_(self) -> str:
        return png(self._repr_png_()) + facts([("Text", self.seen.text), *self.facts()])


def look(
    model: Any,
    image: str | Path | Image.Image | None = None,
    question: str = "",
    *,
    video: str | Path | None = None,
    processor: Any = None,
    settings: EvalSettings | PromptSettings | None = None,
) -> LookFigure:
    """Ask `question` about `image` (or `video`), and draw where the model looked when it gave the answer.

    Args:
        model: a folder, a run folder, a hub id or `start`, asked as in its own run; a `RALTrainer`, asked with its settings; or a
            model, with its `processor`. A model that is named is loaded once.
        settings: how to ask, in place of the model's own.

    Raises what `ral.evaluate.answering.glance` raises, and UsageError for a model without its processor.
    """
    if isinstance(model, str | Path):
        name = model_name(str(model))
        own, (loaded, processor) = EvalSettings.of_model(name), _loaded(name)
    elif isinstance(model, Trainer):
        own, loaded, processor = EvalSettings.of_config(model.args.to_dict()), model.model, model.processing_class
    elif isinstance(model, nn.Module) and processor is not None:
        own, loaded = EvalSettings(), model
    else:
        raise UsageError("look needs the name of a model, a RALTrainer, or a model with its processor")
    if settings is not None and not isinstance(settings, EvalSettings):
        settings = EvalSettings.of_config(vars(settings))
    shown = Path(image) if isinstance(image, str) else image
    clip = None if video is None else Path(video)
    training = loaded.training
    try:
        seen = glance(loaded.eval(), processor, question, settings or own, image=shown, video=clip)
    finally:
        loaded.train(training)
    return LookFigure(question, seen)


@lru_cache(maxsize=1)
def _loaded(name: str) -> tuple[Any, Any]:
    return load_for_answering(name)


def _without_marks(question: str) -> str:
    return " ".join(question.replace("<image>", " ").replace("<video>", " ").split())
