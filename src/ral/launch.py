"""Runs a recipe: from its settings to a trained model in a run folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from peft import LoraConfig

from ral.data.readers import read_records
from ral.data.record import Record
from ral.recipe import Recipe
from ral.runs import last_checkpoint, prepare_run, refuse_occupied
from ral.testbed import start_checkpoint
from ral.testbed.easy_vqa import easy_vqa_records
from ral.testbed.episodes import episode_records, told_records
from ral.testbed.rings import ring_records
from ral.trainer import RALTrainer

#: How many ring searches `data: rings` is, and the seed of their images, by split.
RINGS = {"train": (4096, 1), "test": (512, 2)}
#: The same for `data: episodes`, videos, and `data: told`, the episodes in words.
EPISODES = {"train": (2048, 1), "test": (256, 2)}


def train(recipe: Recipe, *, resume: bool = False, overwrite: bool = False) -> Path:
    """Train what `recipe` says, save the model in `final/`, and return the run folder.

    Raises ValueError for an output folder that holds a run (see `prepare_run`), and what `RALTrainer` refuses. The
    earlier run that `overwrite` replaces is removed only once the new one's model, data and settings are found good.
    """
    args = recipe.args
    folder = Path(str(args.output_dir))
    main_process = args.process_index == 0
    if main_process:
        refuse_occupied(folder, resume=resume, overwrite=overwrite)
    trainer = RALTrainer(
        start_checkpoint() if recipe.model == "start" else recipe.model,
        args,
        train_dataset=load_data(recipe.data, "train", recipe.data_root),
        eval_dataset=load_data(recipe.eval_data, "test", recipe.data_root) if recipe.eval_data else None,
        reward_funcs=recipe.reward_funcs,
        reward_weights=recipe.reward_weights,
        peft_config=LoraConfig(**recipe.peft) if recipe.peft else None,
    )
    with args.main_process_first(local=False, desc="preparing the run folder"):
        if main_process:
            prepare_run(folder, recipe.settings(), resume=resume, overwrite=overwrite)
    checkpoint = last_checkpoint(folder) if resume else None
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    trainer.save_model(str(folder / "final"))
    return folder


def load_data(source: str | Sequence[str], split: Literal["train", "test"], root: str | None = None) -> list[Record]:
    """The records of one split of `rings`, `episodes`, `told`, `easy-vqa`, or whatever `read_records` reads.

    Of several sources, the records of all, one source after the other; training shuffles them. Raises DataError as
    `read_records` does.
    """
    if not isinstance(source, str):
        return [record for one in source for record in load_data(one, split, root)]
    if source == "rings":
        return ring_records(*RINGS[split])
    if source == "episodes":
        return episode_records(*EPISODES[split])
    if source == "told":
        return told_records(*EPISODES[split])
    if source == "easy-vqa":
        return easy_vqa_records(split)
    return list(read_records(source, root=root, split=split))
