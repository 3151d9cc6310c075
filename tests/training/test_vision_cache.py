"""Features of a frozen vision tower that are read from disk are those that it computes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_leaves

from ral.attention import prepare_prompt, vision_features
from ral.config import ConfigError
from ral.runs.names import METRICS
from ral.training import vision_cache
from ral.training.vision_cache import SUFFIX, VisionCache
from tests.tiny import VISION_KINDS, prompt, tiny_model
from tests.training.test_trainer import G, lines, settings, spread, trainer

MEDIA = ("image", "images", "video", "mixed")


def flat(features: dict[str, Any]) -> list[torch.Tensor]:
    """The tensors that the decoder takes."""
    outputs = [(output.pooler_output, getattr(output, "deepstack_features", None)) for output in features.values()]
    return [leaf for leaf in tree_leaves(outputs) if leaf is not None]


def counts(cache: VisionCache) -> tuple[float, float]:
    metrics = cache.metrics()
    return tuple(float(metrics[f"vision_cache/{name}"].total) for name in ("hit", "damaged"))  # type: ignore[return-value]


@pytest.mark.parametrize("kind", VISION_KINDS)
def test_what_is_read_is_what_was_computed(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(kind)
    inputs = [prompt(media, seed=i, model=kind) for i, media in enumerate(MEDIA)]
    expected = [vision_features(model, one) for one in inputs]
    cache = VisionCache(model, tmp_path, 1e9)
    for one in inputs:
        cache.features(one)
    assert counts(cache) == (0, 0)
    monkeypatch.setattr(vision_cache, "vision_features", lambda *_: pytest.fail("it is there already"))
    again = VisionCache(model, tmp_path, 1e9)  # of another process
    for one, features in zip(inputs, expected, strict=True):
        found = again.features(one)
        assert found.keys() == features.keys()
        assert all(type(found[name]) is type(features[name]) for name in found)
        assert len(flat(found)) == len(flat(features)) > 0
        assert all(torch.equal(a, b) for a, b in zip(flat(found), flat(features), strict=True))
        assert prepare_prompt(model, one, found).features is found
    assert counts(again) == (4, 0)
    assert again.features(prompt("text")) == {}, "nothing is kept of a text"
    assert counts(again) == (0, 0)


def test_other_pixels_grids_or_weights_are_other_entries(tmp_path: Path) -> None:
    model = tiny_model()
    cache, inputs = VisionCache(model, tmp_path, 1e9), prompt("image")
    cache.features(inputs)
    cache.features({**inputs, "input_ids": inputs["input_ids"] + 1})
    assert counts(cache) == (1, 0), "the words do not count"
    cache.features({**inputs, "pixel_values": inputs["pixel_values"] * (1 + 1e-6)})
    cache.features({**inputs, "image_grid_thw": torch.tensor([[1, 6, 4]])})
    with torch.no_grad():
        next(iter(model.model.visual.parameters())).view(-1)[0] += 1e-3
    VisionCache(model, tmp_path, 1e9).features(inputs)
    assert counts(cache) == (0, 0)
    assert len(list(tmp_path.glob(f"*/*{SUFFIX}"))) == 4


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty"])
def test_a_damaged_entry_is_computed_again_and_replaced(damage: str, tmp_path: Path) -> None:
    model, inputs = tiny_model(), prompt("image")
    cache = VisionCache(model, tmp_path, 1e9)
    expected = flat(cache.features(inputs))
    [file] = tmp_path.glob(f"*/*{SUFFIX}")
    whole = file.read_bytes()
    changed = {"flipped": whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:], "cut": whole[:-5], "empty": b""}[damage]
    file.write_bytes(changed)
    cache.metrics()
    assert all(torch.equal(a, b) for a, b in zip(flat(cache.features(inputs)), expected, strict=True))
    assert counts(cache) == (0, 1)
    assert file.read_bytes() == whole
    cache.features(inputs)
    assert counts(cache) == (1, 0)


def test_entries_that_were_not_used_for_longest_make_room(tmp_path: Path) -> None:
    model = tiny_model()
    every = [prompt("image", seed=i) for i in range(6)]
    cache = VisionCache(model, tmp_path, 1e9)
    cache.features(every[0])
    [file] = tmp_path.glob(f"*/*{SUFFIX}")
    size = file.stat().st_size
    small = VisionCache(model, tmp_path, 4.5 * size)
    for i, one in enumerate(every[1:4]):
        small.features(one)
        for age, path in enumerate(tmp_path.glob(f"*/*{SUFFIX}")):
            os.utime(path, ns=(age, age) if path != file else (10**9 + i, 10**9 + i))
    small.features(every[0])  # used last
    small.features(every[4])
    assert sum(path.stat().st_size for path in tmp_path.glob(f"*/*{SUFFIX}")) <= 4.5 * size
    assert file.exists()
    small.metrics()
    small.features(every[0])
    small.features(every[4])
    assert counts(small) == (2, 0)
    VisionCache(model, tmp_path / "none", size / 2).features(every[0])
    assert not list((tmp_path / "none").glob(f"*/*{SUFFIX}")), "what is larger than the limit is not kept"


def test_a_folder_that_cannot_be_written_costs_the_entries_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, inputs = tiny_model(), prompt("image")
    (tmp_path / "file").touch()
    cache = VisionCache(model, tmp_path / "file" / "cache", 1e9)
    for _ in range(2):
        assert flat(cache.features(inputs))
    assert caplog.text.count("takes no more entries") == 1


def test_training_is_the_same_with_it(tmp_path: Path) -> None:
    step = {"reward_funcs": spread, "per_device_train_batch_size": G, "max_completion_length": 4, "max_steps": 2}
    runs = {}
    for name, more in {"without": {}, "empty": {}, "full": {}}.items():
        cached = {} if name == "without" else {"vision_cache": str(tmp_path / "cache")}
        runs[name] = trainer(tmp_path / name, **step | more | cached)
        runs[name].train()
    states = {name: run.model.state_dict() for name, run in runs.items()}
    for name in ("empty", "full"):
        assert all(torch.equal(value, states["without"][key]) for key, value in states[name].items())
    hits = [lines(tmp_path / name / METRICS)[0].get("vision_cache/hit") for name in runs]
    assert hits == [None, 0, 1]


def test_a_tower_that_is_trained_has_no_features_to_keep(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"vision_cache.*freeze_vision"):
        settings(tmp_path, vision_cache=str(tmp_path), freeze_vision=False)
    with pytest.raises(ConfigError, match="vision_cache_gb must be positive"):
        settings(tmp_path, vision_cache_gb=0)
