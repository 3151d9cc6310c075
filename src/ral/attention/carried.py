"""A carrier for objects that go through a model's `forward` to its attention layers and back."""

from __future__ import annotations

from typing import Generic, TypeVar

T = TypeVar("T")


class Carried(Generic[T]):
    """An argument of `forward` that no wrapper looks into: the layers get `value` itself, and what they fill in is kept.

    FSDP2 builds every dataclass, dict, list and tuple among a layer's arguments anew: to cast tensors (a mixed-precision
    policy), and to see gradients pass. A layer would then fill in a copy. DDP and DeepSpeed move such arguments to a device.
    All of them hand on objects of any other kind. So this class must not become a dataclass.
    """

    __slots__ = ("value",)

    def __init__(self, value: T):
        self.value = value
