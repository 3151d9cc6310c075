"""A carrier for objects that go through a model's `forward` to its attention layers and back."""

from __future__ import annotations

from typing import Generic, TypeVar

T = TypeVar("T")


class Carried(Generic[T]):
    """An opaque argument of `forward`. Layers get `value` itself, not a copy, so the caller sees what they write into it.

    FSDP2 rebuilds every dataclass, dict, list and tuple among a layer's arguments, to cast tensors (mixed precision) and to
    observe gradients. A layer would then write into a copy. DDP and DeepSpeed move such arguments to a device. All of them pass
    on other objects unchanged. So this class must not become a dataclass.
    """

    __slots__ = ("value",)

    def __init__(self, value: T):
        self.value = value
