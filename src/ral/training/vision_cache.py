"""Features of a frozen vision tower on disk: what was computed once, in this run or another, is read instead.

An entry is found by what it is made of: the tower's weights, and the processor's tensors, which hold the pixels as the processor's
settings make them. So other weights, media or settings are other entries, and none is ever out of date.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import transformers
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers.utils import ModelOutput

from ral.attention.models import pretrained, vision_features, vision_tower
from ral.config import RALConfig
from ral.files import atomic_write_bytes
from ral.models.sharding import whole
from ral.objective.terms import Mean

logger = logging.getLogger(__name__)

#: How the files of entries end; each begins with the digest of what follows.
SUFFIX, DIGEST = ".features", hashlib.sha256().digest_size
#: Of the limit that is left after entries were removed, so that not every new one removes one.
KEPT = 0.9
#: The processor's tensors that a tower does not see.
_TEXT = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")


class VisionCache:
    """Features of `model`'s vision tower, which must be frozen. Processes may share a folder.

    Args:
        folder: of the entries. limit: bytes of all of them; the ones that were not used for longest go first.
    """

    def __init__(self, model: nn.Module, folder: Path, limit: float):
        self.model, self.folder, self.limit = model, folder, limit
        self._found = {"vision_cache/hit": [0, 0], "vision_cache/damaged": [0, 0]}
        self._size: int | None = None  # of all entries, as far as this process knows
        self._writes = True

    def features(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The features of one prompt's media, as `vision_features` computes them; read where they are there, else kept.

        An entry that was damaged is computed again and replaced.
        """
        seen = {name: value for name, value in inputs.items() if isinstance(value, Tensor) and name not in _TEXT}
        if not any(name.startswith("pixel_values") for name in seen):
            return {}
        path = self._path(seen)
        found, damaged = self._read(path)
        for name, counted in (("hit", found is not None), ("damaged", damaged)):
            total = self._found[f"vision_cache/{name}"]
            total[0], total[1] = total[0] + counted, total[1] + 1
        if found is not None:
            return found
        with torch.no_grad():
            made = vision_features(self.model, inputs)
        if self._writes:
            self._write(path, _encoded(made))
        return made

    def metrics(self) -> dict[str, Mean]:
        """Shares of prompts since the last call: read from the cache, and found damaged there."""
        found = {name: Mean(torch.tensor(float(n)), torch.tensor(float(of))) for name, (n, of) in self._found.items()}
        self._found = {name: [0, 0] for name in self._found}
        return found

    def _path(self, seen: Mapping[str, Tensor]) -> Path:
        digest = hashlib.sha256(self._tower)
        for name in sorted(seen):
            _add(digest, name, seen[name])
        key = digest.hexdigest()
        return self.folder / key[:2] / f"{key[2:]}{SUFFIX}"

    @cached_property
    def _tower(self) -> bytes:
        """A digest of the tower: its weights, its classes, and what computes them."""
        base = pretrained(self.model)
        kinds = [type(part).__qualname__ for part in vision_tower(base).modules()]
        about = [transformers.__version__, torch.__version__, base.device.type, *kinds]
        digest = hashlib.sha256(json.dumps(about).encode())
        for name, value in vision_tower(base).state_dict().items():
            _add(digest, name, value)
        return digest.digest()

    def _read(self, path: Path) -> tuple[dict[str, Any] | None, bool]:
        """The features of an entry, or None; and whether it was there and damaged."""
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None, False
        except OSError:
            return None, True
        if hashlib.sha256(content[DIGEST:]).digest() != content[:DIGEST]:
            return None, True
        try:
            found = _decoded(content[DIGEST:], pretrained(self.model).device)
        except (SafetensorError, KeyError, ValueError, ImportError, AttributeError):  # written by another version
            return None, True
        os.utime(path)  # it was used now
        return found, False

    def _write(self, path: Path, content: bytes) -> None:
        if len(content) > self.limit:
            return
        try:
            atomic_write_bytes(path, hashlib.sha256(content).digest() + content)
            self._size = self._measured() if self._size is None else self._size + DIGEST + len(content)
            if self._size > self.limit:
                self._size = self._evict()
        except OSError as error:
            self._writes = False
            logger.warning(
                "vision_cache: %s takes no more entries (%s); the run goes on without adding any", self.folder, error
            )

    def _entries(self) -> Iterator[tuple[Path, os.stat_result]]:
        for path in self.folder.glob(f"*/*{SUFFIX}"):
            try:
                yield path, path.stat()
            except FileNotFoundError:  # another process has removed it
                continue

    def _measured(self) -> int:
        return sum(status.st_size for _, status in self._entries())

    def _evict(self) -> int:
        """Remove the entries that were not used for longest; the size of what is left."""
        entries = sorted(self._entries(), key=lambda entry: entry[1].st_mtime_ns)
        size = sum(status.st_size for _, status in entries)
        for path, status in entries:
            if size <= KEPT * self.limit:
                break
            path.unlink(missing_ok=True)
            size -= status.st_size
        return size


def vision_cache(model: nn.Module, args: RALConfig) -> VisionCache | None:
    """The cache of a run's settings, if these name a folder."""
    return (
        None if args.vision_cache is None else VisionCache(model, Path(args.vision_cache), args.vision_cache_gb * 1e9)
    )


def _add(digest: Any, name: str, value: Tensor) -> None:
    values = whole(value).detach().cpu().contiguous()
    digest.update(f"{name} {values.dtype} {list(values.shape)};".encode())
    digest.update(values.reshape(-1).view(torch.uint8).numpy())


def _encoded(features: Mapping[str, Any]) -> bytes:
    """What the decoder takes of the tower's outputs (`families.family.joined`), as safetensors with a description."""
    tensors: dict[str, Tensor] = {}
    described: dict[str, Any] = {}
    for modality, output in features.items():
        main = "pooler_output" if output.get("pooler_output") is not None else "last_hidden_state"
        taken = {name: value for name, value in output.items() if name == main or name.endswith("_features")}
        described[modality] = {
            "kind": [type(output).__module__, type(output).__qualname__],
            "parts": {name: _named(f"{modality}.{name}", value, tensors) for name, value in taken.items()},
        }
    text = torch.frombuffer(bytearray(json.dumps(described).encode()), dtype=torch.uint8)
    return safetensors.torch.save({**tensors, "description": text})


def _named(name: str, value: Any, tensors: dict[str, Tensor]) -> Any:
    """`value` with names in the place of its tensors, which are put under them."""
    if isinstance(value, Tensor):
        tensors[name] = value.detach().cpu().contiguous()
        return name
    return None if value is None else [_named(f"{name}.{i}", part, tensors) for i, part in enumerate(value)]


def _decoded(content: bytes, device: torch.device) -> dict[str, Any]:
    tensors = safetensors.torch.load(content)
    described = json.loads(bytes(tensors.pop("description").tolist()))
    features = {}
    for modality, about in described.items():
        module, kind = about["kind"]
        output = getattr(import_module(module), kind) if module.startswith("transformers.") else None
        if not (isinstance(output, type) and issubclass(output, ModelOutput)):
            raise ValueError(f"{module}.{kind} is no output of a model")
        features[modality] = output(**{name: _built(part, tensors, device) for name, part in about["parts"].items()})
    return features


def _built(named: Any, tensors: Mapping[str, Tensor], device: torch.device) -> Any:
    """The value that `_named` made `named` of."""
    if isinstance(named, str):
        return tensors[named].to(device)
    return None if named is None else tuple(_built(part, tensors, device) for part in named)
