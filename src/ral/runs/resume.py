"""Settings that may change when a run resumes. Other changes are refused with the old and the new value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ral.errors import ConfigError, RunError

#: Settings that leave alone which updates are made from which data: how long, what is written, measured and kept, and how
#: the work is spread. Where the data lies may change, too: its content is compared by `data.fingerprint`.
MAY_CHANGE = {
    "activation_checkpointing", "activation_checkpointing_kwargs", "allow_outside", "box_scale", "columns", "data", "data_root", "disable_tqdm", "do_eval", "do_train", "gradient_checkpointing", "gradient_checkpointing_kwargs",
    "greater_is_better", "load_best_model_at_end", "local_rank", "look_items", "look_probes", "look_steps", "max_steps", "metric_for_best_model", "num_train_epochs",
    "num_completions_to_print", "output_dir", "per_device_eval_batch_size", "project", "push_to_hub", "reward_timeout", "rollout_rows", "run_name", "samples_per_step",
    "skip_memory_metrics", "torch_empty_cache_steps", "vision_cache", "vision_cache_gb",
}  # fmt: skip
MAY_CHANGE_PREFIXES = (
    "dataloader_", "ddp_", "eval_", "hub_", "log_", "logging_", "report_to", "save_", "trackio_",
)  # fmt: skip

#: Settings of earlier versions: the default that each had, which old recipes and run folders may still say, and what became
#: of it.
REMOVED: dict[str, tuple[Any, str]] = {
    "attention_schedule": ("constant", "λ stays as it is over the run; attention_share scales it by the gradients"),
    "explore_schedule": ("constant", "σ stays as it is over the run"),
    "explore_keys": ("visual", "the bias is drawn on visual tokens, and on all where a prompt has none"),
    "explore_layers": (None, "every decoder layer feels the bias"),
}

#: Their product with the number of processes is what must stay: an optimiser step of the same completions.
BATCH = ("per_device_train_batch_size", "gradient_accumulation_steps")


def without_removed(settings: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The settings without those that were removed. Raises ConfigError for one with another value than its old default."""
    for key, (default, now) in REMOVED.items():
        if settings.get(key, default) != default:
            raise ConfigError(f"{where}: the setting {key} was removed: {now}. Leave it out (here: {settings[key]!r}).")
    return {key: value for key, value in settings.items() if key not in REMOVED}


def refuse_changes(
    old: Mapping[str, Any], new: Mapping[str, Any], old_facts: Mapping[str, Any], new_facts: Mapping[str, Any]
) -> None:
    """Raise ValueError, naming every setting with its old and new value, unless the run can go on under `new`.

    Args:
        old, new: the settings in `config.yaml` and those to go on with, as plain YAML values.
        old_facts, new_facts: of `environment.json`: `data`, the data's fingerprint, and `processes`, their number.
    """
    old = {key: value for key, value in old.items() if key not in REMOVED or value != REMOVED[key][0]}
    changes = [
        f"{key}: {_told(old, key)} → {_told(new, key)}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not _may_change(key)
    ]
    if (before := _completions(old, old_facts)) != (after := _completions(new, new_facts)):
        changes.append(f"completions per step ({' × '.join((*BATCH, 'processes'))}): {before} → {after}")
    if changes:
        raise RunError(
            f"the settings are not those that the run was started with: {'; '.join(changes)}. Take them back to go on with "
            "--resume, or start a new run in another output_dir (model may be the checkpoint's folder)."
        )
    if old_facts.get("data") != new_facts.get("data"):
        raise RunError(
            f"the training data ({new.get('data')}) is not what the run was started with ({old.get('data')}): its records "
            "differ in content, order or number. Bring the old data back to go on with --resume, or start a new run in "
            "another output_dir (model may be the checkpoint's folder)."
        )


def _may_change(key: str) -> bool:
    return key in MAY_CHANGE or key in BATCH or key.startswith(MAY_CHANGE_PREFIXES)


def _told(settings: Mapping[str, Any], key: str) -> str:
    return repr(settings[key]) if key in settings else "not set"


def _completions(settings: Mapping[str, Any], facts: Mapping[str, Any]) -> int:
    return int(settings.get(BATCH[0], 1)) * int(settings.get(BATCH[1], 1)) * int(facts.get("processes", 1))
