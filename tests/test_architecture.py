"""The page on the architecture says what is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from docs.architecture import PAGES, ROOT, SOURCE, written

from ral.config import RALConfig
from ral.evaluate.look_recorder import LookRecorder
from ral.testbed import load_start
from ral.testbed.rings import ring_records
from ral.training.live_report import LiveReport
from ral.training.run_origin import RunOrigin
from ral.training.terminal import show
from ral.training.trainer import RALTrainer

PAGE = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_tree_is_that_of_the_package(page: Path) -> None:
    assert written(page) == page.read_text(encoding="utf-8"), "run `python -m docs.architecture`"


def test_files_that_it_names_exist() -> None:
    named = set(re.findall(r"`([a-z_]+(?:/[a-z_]+)*/[a-z_]*\.py)`", PAGE))
    assert len(named) > 15
    missing = [name for name in named if not (SOURCE / name).is_file() and not (ROOT / name).is_file()]
    assert not missing


def test_callbacks_fire_in_the_order_of_the_table(tmp_path: Path) -> None:
    model, processor = load_start()
    args = RALConfig(output_dir=str(tmp_path), use_cpu=True, template="plain", disable_tqdm=True)
    looks = LookRecorder(ring_records(1, seed=0), 1)
    trainer = RALTrainer(model, args, ring_records(8, seed=0), processing_class=processor, callbacks=[looks])
    # As `ral.training.launch.run` does.
    trainer.remove_callback(RunOrigin)
    trainer.add_callback(LiveReport())
    show(trainer, "the start model on 8 records")
    trainer.get_train_dataloader()
    added = [
        type(one).__name__ for one in trainer.callback_handler.callbacks if type(one).__module__.startswith("ral.")
    ]
    table = PAGE[PAGE.index("| callback |") : PAGE.index("## Where do I change X?")]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == added


def test_the_glossary_holds_twenty_terms() -> None:
    glossary = PAGE[PAGE.index("## Glossary") :]
    assert len(re.findall(r"^\| [a-z]", glossary, re.MULTILINE)) >= 20
