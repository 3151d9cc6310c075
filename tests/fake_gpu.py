"""A GPU that is not there: tensors that are computed on the CPU and say that they are on `cuda:0`.

Operations that mix devices raise, as on a GPU, and `WAITS` counts what would make the host wait for the device, by the line of
`ral` that asked for it. Kernels, streams and graphs are not emulated.

    python -m tests.fake_gpu        # counts the waits of an optimiser step
"""

from __future__ import annotations

import collections
import functools
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import accelerate
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from transformers import TrainerCallback

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")
#: Waits by the line that asked for them.
WAITS: collections.Counter[str] = collections.Counter()

_ops = torch.ops.aten
#: What returns a value, or a shape that depends on values, to the host.
_WAITING = {
    _ops._local_scalar_dense.default, _ops.nonzero.default, _ops.equal.default, _ops.masked_select.default,
    _ops._unique2.default, _ops.unique_dim.default, _ops.unique_consecutive.default, _ops.is_nonzero.default,
}  # fmt: skip
_INDEXING = {
    _ops.index.Tensor, _ops.index_put.default, _ops.index_put_.default, _ops._index_put_impl_.default,
    _ops._unsafe_index.Tensor,
}  # fmt: skip


def _line() -> str:
    """The innermost line of `ral` that is being run."""
    package = str(Path(__file__).parents[1] / "src" / "ral")
    frames = [frame for frame in traceback.extract_stack() if frame.filename.startswith(package)]
    if not frames:
        return "outside of ral"
    return f"{frames[-1].filename[len(package) + 1 :]}:{frames[-1].lineno} {frames[-1].line}"


class OnGpu(Tensor):
    """A tensor whose values are those of `inner`, on the CPU."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor, requires_grad: bool = False) -> OnGpu:
        made = torch.Tensor._make_wrapper_subclass(
            cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            layout=inner.layout, device="meta", requires_grad=requires_grad,
        )  # fmt: skip
        made.inner = inner
        return made

    device = property(lambda self: GPU)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]
    is_cpu = property(lambda self: False)  # type: ignore[assignment]
    is_meta = property(lambda self: False)  # type: ignore[assignment]

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"OnGpu({self.inner})"

    def tolist(self) -> Any:
        WAITS[_line()] += 1
        return self.inner.tolist()

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    __array__ = numpy  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    gpu, cpu = [t for t in tensors if isinstance(t, OnGpu)], [t for t in tensors if not isinstance(t, OnGpu)]
    target = None if kwargs.get("device") is None else torch.device(kwargs["device"])
    if gpu and any(t.dim() for t in cpu) and func not in _INDEXING | {_ops.copy_.default}:
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found cuda:0 and cpu: {func} at {_line()}"
        )
    masks = func in _INDEXING and any(t is not None and t.dtype == torch.bool for t in args[1])
    ragged = func is _ops.repeat_interleave.Tensor and kwargs.get("output_size") is None
    down = func is _ops._to_copy.default and target is not None and target.type == "cpu"
    if gpu and (func in _WAITING or masks or ragged or down):
        WAITS[_line()] += 1
    on_gpu = bool(gpu) if target is None else target.type in ("cuda", "meta")
    args, kwargs = tree_map(_inner, args), tree_map(_inner, kwargs)
    if kwargs.get("pin_memory"):
        kwargs["pin_memory"] = False
    result = func(*args, **kwargs)
    if not on_gpu:
        return result
    known = {id(t.inner): t for t in gpu}  # of operations in place
    return tree_map(lambda t: known[id(t)] if id(t) in known else OnGpu(t) if isinstance(t, Tensor) else t, result)


def _inner(leaf: Any) -> Any:
    if isinstance(leaf, OnGpu):
        return leaf.inner
    return CPU if isinstance(leaf, torch.device) else leaf


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _tensor(make: Callable[..., Tensor], data: Any, *args: Any, device: Any = None, **named: Any) -> Tensor:
    """`torch.tensor`, which makes its result without the dispatcher."""
    made = data.clone() if isinstance(data, OnGpu) else make(data, *args, **named)
    return made if device is None or torch.device(device).type == "cpu" else made.to(GPU)


def moved(model: nn.Module) -> nn.Module:
    """The model with its weights on the GPU."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(OnGpu(parameter.data), requires_grad=parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = OnGpu(buffer)
    model.tie_weights()  # type: ignore[operator]
    return model


def _lower_right(queries: int, keys: int) -> Tensor:
    """In place of torch's, which is a kind of tensor of its own."""
    return torch.ones(queries, keys, dtype=torch.bool, device=GPU).tril(keys - queries)


@contextmanager
def present() -> Iterator[None]:
    """Within it the GPU is there; `WAITS` begins at nothing."""
    from ral.attention import layout
    from ral.config import RALConfig

    WAITS.clear()
    to = nn.Module.to

    def keep(self: nn.Module, *args: Any, **named: Any) -> nn.Module:
        return self if any(isinstance(p, OnGpu) for p in self.parameters()) else to(self, *args, **named)

    device = property(lambda self: GPU)
    with (
        mock.patch.object(torch.cuda, "_lazy_init"),
        mock.patch.object(torch.cuda, "get_device_properties", return_value=SimpleNamespace(total_memory=2**36)),
        mock.patch.object(torch, "tensor", functools.partial(_tensor, torch.tensor)),
        mock.patch.object(nn.Module, "to", keep),
        mock.patch.object(layout, "causal_lower_right", _lower_right),
        mock.patch.object(RALConfig, "device", property(lambda self: (self._setup_devices, GPU)[1])),
        mock.patch.object(accelerate.Accelerator, "device", device),
        _Mode(),
    ):
        yield


class _SecondBatch(TrainerCallback):
    """Counts from the second rollout batch on: before the first, a run checks its model."""

    def on_log(self, args: Any, state: Any, control: Any, **named: Any) -> None:
        if state.global_step == 2:
            WAITS.clear()
            DECODED.clear()


#: Decoding steps, one entry each: the rows that were decoded.
DECODED: list[int] = []


def waits_of_two_updates(**settings: Any) -> tuple[collections.Counter[str], collections.Counter[str]]:
    """The waits of one rollout batch and its two updates on four micro-batches: outside of decoding, and in it."""
    from ral import RALConfig, RALTrainer
    from ral.rollouts import graphs
    from ral.testbed import load_start
    from ral.testbed.rings import ring_records

    def lengths(completions: list[str], **columns: Any) -> list[float]:
        return [float(sum(map(ord, text)) % 7) for text in completions]

    def advance(steps: Any, batch: Any, longest: int) -> None:
        DECODED.append(sum(part.size for part in batch))
        ordinary(steps, batch, longest)

    model, processor = load_start()
    ordinary = graphs.Steps.advance
    with present(), tempfile.TemporaryDirectory() as folder, mock.patch.object(graphs.Steps, "advance", advance):
        moved(model)
        values = {
            "output_dir": folder, "use_cpu": True, "template": "plain", "max_steps": 4, "save_strategy": "no",
            "disable_tqdm": True, "num_generations": 4, "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 4, "max_completion_length": 8, "temperature": 1.3, "gradient_norm_steps": 1,
        }  # fmt: skip
        args = RALConfig(**values | settings)
        trainer = RALTrainer(
            model, args, ring_records(8, seed=0), processing_class=processor, reward_funcs=lengths,
            callbacks=[_SecondBatch()],
        )  # fmt: skip
        trainer.train()
        found = collections.Counter(WAITS)
    decoding = collections.Counter({line: n for line, n in found.items() if "for part in batch]).tolist()" in line})
    return found - decoding, decoding


if __name__ == "__main__":
    elsewhere, decoding = waits_of_two_updates()
    print(
        f"{len(DECODED)} decoding steps, {decoding.total()} waits for tokens; {elsewhere.total()} others in two updates"
    )
    for line, n in (elsewhere + decoding).most_common():
        print(f"{n:6}  {line}")
