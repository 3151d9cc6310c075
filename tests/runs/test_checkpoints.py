from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path

import pytest

from ral.runs.checkpoints import (
    MANIFEST,
    CheckpointError,
    checkpoints,
    digests,
    fault,
    good_checkpoint,
    keep_newest,
    last_checkpoint,
    newest_good_checkpoint,
    remove,
    seal,
)
from tests.killing import flip_bit


def saved(folder: Path, step: int, *, sealed: bool = True) -> Path:
    path = folder / f"checkpoint-{step}"
    (path / "shards").mkdir(parents=True)
    (path / "model.safetensors").write_bytes(bytes(range(256)))
    (path / "shards" / "rank_1.bin").write_bytes(b"state")
    if sealed:
        seal(path, processes=2)
    return path


def test_a_manifest_names_every_file_with_its_hash(tmp_path: Path) -> None:
    manifest = json.loads((saved(tmp_path, 4) / MANIFEST).read_text())
    assert manifest["processes"] == 2
    assert set(manifest["files"]) == {"model.safetensors", "shards/rank_1.bin"}
    sha256 = "40aff2e9d2d8922e47afd4648e6967497158785fbd1da870e7110266bf944880"  # of the bytes 0 to 255
    assert manifest["files"]["model.safetensors"] == {"bytes": 256, "sha256": sha256}
    assert fault(tmp_path / "checkpoint-4") is None


def test_missing_damaged_and_unfinished_are_told_apart(tmp_path: Path) -> None:
    assert "missing: there is no such folder" in str(fault(tmp_path / "checkpoint-1"))
    assert "unfinished" in str(fault(saved(tmp_path, 1, sealed=False)))
    flipped, cut, gone, unreadable = (saved(tmp_path, step) for step in (2, 3, 4, 5))
    flip_bit(flipped / "model.safetensors")
    (cut / "model.safetensors").write_bytes(b"half")
    (gone / "shards" / "rank_1.bin").unlink()
    (unreadable / MANIFEST).write_text("{")
    assert fault(flipped) == "damaged: model.safetensors is not what was saved (its SHA-256 differs)"
    assert fault(cut) == "damaged: model.safetensors has 4 bytes, not the 256 that were saved"
    assert fault(gone) == "missing: shards/rank_1.bin is not there any more"
    assert fault(unreadable) == "damaged: manifest.json cannot be read"
    weights = saved(tmp_path, 6, sealed=False)
    seal(weights, processes=1, resumable=False)
    assert "save_only_model" in str(fault(weights))
    with pytest.raises(CheckpointError, match=r"checkpoint-3 cannot be used. damaged: model.safetensors has 4 bytes"):
        good_checkpoint(cut)


def test_each_process_answers_for_the_files_it_wrote_and_the_main_one_for_the_others(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint-2"
    own = ["rng_state_{}.pth", "optimizer_0/__{}_0.distcp", "global_step2/zero_pp_rank_{}_mp_rank_00_model_states.pt"]
    for name in [pattern.format(rank) for pattern in own for rank in range(3)] + [
        "optimizer_0/.metadata",
        "config.json",
    ]:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(name)
    shares = [digests(path, (rank, 3)) for rank in range(3)]
    assert [len(share) for share in shares] == [5, 3, 3]
    assert all(str(rank) in name for rank in (1, 2) for name in shares[rank])
    together = {name: value for share in shares for name, value in share.items()}
    assert together == digests(path)
    seal(path, processes=3, files=together)
    flip_bit(path / "rng_state_2.pth")
    assert [fault(path, (rank, 3)) is None for rank in range(3)] == [True, True, False]
    assert [fault(path, (rank, 2)) is None for rank in range(2)] == [False, True], (
        "of two processes the first has the third's"
    )


def test_the_newest_good_one_is_taken_and_others_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    good = saved(tmp_path, 9)
    flip_bit(saved(tmp_path, 10) / "model.safetensors")
    saved(tmp_path, 100, sealed=False)
    (tmp_path / "checkpoint-notes").mkdir()
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    with caplog.at_level(logging.WARNING):
        assert newest_good_checkpoint(tmp_path) == good
    told = [record.message for record in caplog.records]
    assert "checkpoint-100 is passed over (unfinished" in told[0]
    assert "checkpoint-10 is passed over (damaged: model.safetensors" in told[1]
    assert told[1].endswith("going on from checkpoint-9")


def test_without_a_good_one_all_are_listed(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint to resume from, as it has none"):
        newest_good_checkpoint(tmp_path)
    flip_bit(saved(tmp_path, 2) / "model.safetensors")
    saved(tmp_path, 4, sealed=False)
    with pytest.raises(CheckpointError, match=r"checkpoint-4 .*unfinished.*checkpoint-2 .*damaged"):
        newest_good_checkpoint(tmp_path)


def test_a_removal_that_is_cut_off_leaves_an_unfinished_checkpoint_not_a_damaged_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by the soak: a kill while an old checkpoint was removed left its manifest beside files that were gone."""
    older, newer = saved(tmp_path, 2), saved(tmp_path, 4)

    def killed(path: Path, ignore_errors: bool) -> None:
        (path / "model.safetensors").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            remove(older)
    assert "unfinished" in str(fault(older))
    keep_newest(tmp_path, limit=3)
    assert checkpoints(tmp_path) == [newer]


def test_the_newest_by_time_and_the_best_are_kept(tmp_path: Path) -> None:
    paths = {step: saved(tmp_path, step) for step in (2, 4, 6, 8)}
    for age, step in enumerate((6, 2, 8, 4)):  # a run went back to step 2, and saved step 4 last
        os.utime(paths[step] / MANIFEST, (age, age))
    keep_newest(tmp_path, limit=4)
    assert len(checkpoints(tmp_path)) == 4
    keep_newest(tmp_path, limit=3, best=paths[6])
    assert checkpoints(tmp_path) == [paths[4], paths[6], paths[8]]
    keep_newest(tmp_path, limit=1, best=paths[6])
    assert checkpoints(tmp_path) == [paths[4], paths[6]]
    keep_newest(tmp_path, limit=1)
    assert checkpoints(tmp_path) == [paths[4]]
