"""Names of all files in a run folder, for writers and readers alike. Imports nothing.

RUN/                    what one training run leaves
  config.yaml           every setting, as resolved; `ral train` takes it as a recipe
  environment.json      versions, commit, class of machine, number of processes and fingerprint of the training data
  metrics.jsonl         one object per logged step
  samples.jsonl         rollouts of logged steps, one object per completion
  heads.json            the heads that were measured at the start, if attention_heads asks for it
  looks/                items.jsonl and media/ of the looks during training
  final/                the trained model
  eval/TASK/            one evaluation: settings.json, items.jsonl, media/, summary.json, items.html
  report.html           the page on the run
QUICKSTART/             quickstart.json, and a run folder for every arm
"""

from __future__ import annotations

from pathlib import Path

CONFIG = "config.yaml"
ENVIRONMENT = "environment.json"
METRICS = "metrics.jsonl"
SAMPLES = "samples.jsonl"
HEADS = "heads.json"
LOOKS = "looks"
FINAL = "final"
EVALUATIONS = "eval"
REPORT = "report.html"
#: The settings beside saved weights: in a checkpoint, in `final/`, and where a model is exported to.
TRAINING_ARGS = "training_args.json"

#: In the folder of an evaluation; `ITEMS` and `MEDIA` in that of the looks, too.
ITEMS = "items.jsonl"
MEDIA = "media"
EVALUATION = "settings.json"
SUMMARY = "summary.json"
ITEMS_PAGE = "items.html"

#: In the folder of a quickstart.
QUICKSTART = "quickstart.json"

#: What every run writes, also one that saves nothing.
RECORDS = (CONFIG, ENVIRONMENT, METRICS, SAMPLES)
#: What belongs to a run, beside its checkpoints: all that `--overwrite` removes.
ARTEFACTS = (CONFIG, ENVIRONMENT, METRICS, SAMPLES, HEADS, LOOKS, FINAL, EVALUATIONS, REPORT)


def evaluations(run: Path) -> dict[str, Path]:
    """The folder of every evaluation of a run, by the name of its task: those that hold items."""
    return {path.parent.name: path.parent for path in sorted(run.glob(f"{EVALUATIONS}/*/{ITEMS}"))}
