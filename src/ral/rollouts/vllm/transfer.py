"""Ways to bring the policy's weights to its servers (`vllm_transfer`).

    disk      all weights through a folder that trainer and servers share, ideally in memory; an adapter is merged
    adapter   a LoRA adapter alone, through that folder: a hundredth of the weights, also on a quantised model
    nccl      all weights over the GPUs' network, to servers on other GPUs or machines; an adapter is merged

Weights are sent in the precision that the policy computes in.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import extract_model_from_parallel
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn

from ral.attention.models import is_sharded, pretrained
from ral.errors import ConfigError, MissingPackageError
from ral.models.sharding import held_state, whole
from ral.models.zero3 import whole_weight
from ral.rollouts.vllm.client import Client, ServerError
from ral.rollouts.vllm.merging import merged_weights, refuse_unmergeable, refuse_unservable

#: The adapter's name on the servers.
ADAPTER = "ral-policy"
#: What vLLM calls the weights that it was started on.
AS_STARTED = "default"
#: Bytes of the weights that travel with one request over NCCL, and are whole on the sender at once.
CHUNK = 2**30


class Transfer(Protocol):
    """Sends weights to servers.

    Attributes:
        sleep_level: of servers that sleep between rollouts: 1 keeps their weights in the host's memory, 2 forgets them.
        adapter: the name of the model that requests ask for, where it is not the one that a server was started on.
    """

    sleep_level: ClassVar[int]
    adapter: ClassVar[str | None]

    def refuse(self, model: nn.Module) -> None:
        """Raise ConfigError for a model that cannot be sent like this."""

    def send(self, model: nn.Module, accelerator: Accelerator, servers: Sequence[Client]) -> None:
        """Send the weights of a model as accelerate has prepared it. All processes must call it."""


class _Whole:
    """What the ways that send all weights have in common."""

    sleep_level: ClassVar[int] = 2
    adapter: ClassVar[str | None] = None

    def refuse(self, model: nn.Module) -> None:
        if isinstance(model, PeftModel):
            refuse_unmergeable(model)


@dataclass
class DiskTransfer(_Whole):
    """All weights through a folder, which the servers read in place.

    Attributes:
        folder: absolute. dtype: of floating-point weights as they are sent; None: as they are.
    """

    folder: Path
    dtype: torch.dtype | None

    def send(self, model: nn.Module, accelerator: Accelerator, servers: Sequence[Client]) -> None:
        weights = {}
        for name, value in whole_weights(model, accelerator, self.dtype):
            if accelerator.is_main_process:
                # Tied weights stand under both names, as vLLM on CPUs holds two copies of them.
                weights[name] = value.to("cpu", copy=True)
        if accelerator.is_main_process:
            pretrained(model).save_pretrained(self.folder, state_dict=weights)
            reload = {"method": "reload_weights", "kwargs": {"weights_path": str(self.folder)}}
            on_all(servers, lambda server: server.post("/collective_rpc", reload))


@dataclass
class AdapterTransfer:
    """The LoRA adapter through a folder. The servers load it in place of the last one.

    Attributes:
        folder, dtype: as for `DiskTransfer`.
    """

    folder: Path
    dtype: torch.dtype | None
    sleep_level: ClassVar[int] = 1
    adapter: ClassVar[str | None] = ADAPTER

    def refuse(self, model: nn.Module) -> None:
        if not isinstance(model, PeftModel):
            raise ConfigError(
                "vllm_transfer='adapter' needs an adapter to send; train LoRA, or set vllm_transfer='disk'"
            )
        refuse_unservable(model)

    def send(self, model: nn.Module, accelerator: Accelerator, servers: Sequence[Client]) -> None:
        if accelerator.is_main_process:
            on_all(servers, self._require_base)
        policy: Any = extract_model_from_parallel(model)
        weights = {}
        for name, value in get_peft_model_state_dict(policy, held_state(policy)).items():
            gathered = whole(cast(value, self.dtype))
            if accelerator.is_main_process:
                weights[name] = gathered.cpu().contiguous()
        if accelerator.is_main_process:
            policy.active_peft_config.save_pretrained(str(self.folder))
            save_file(weights, self.folder / "adapter_model.safetensors")
            loaded = {"lora_name": ADAPTER, "lora_path": str(self.folder), "load_inplace": True}
            on_all(servers, lambda server: server.post("/v1/load_lora_adapter", loaded))

    def _require_base(self, server: Client) -> None:
        """Raise ServerError where other weights than those of the start were sent to the server: the adapter stands on these."""
        served = server.get("/weight_info")["weight_version"]
        if served != AS_STARTED and not served.startswith(ADAPTER):
            raise ServerError(
                f"the vLLM server at {server.url} serves the weights {served!r} of another run, and not those it was started on, which "
                "vllm_transfer='adapter' adds to; start it again"
            )


class Broadcast(Protocol):
    """A group of this process, rank 0, and the workers of all servers."""

    def __call__(self, tensor: Tensor) -> None:
        """Queue the broadcast of a tensor on the GPU."""


@dataclass
class NCCLTransfer(_Whole):
    """All weights over the GPUs' network, tensor by tensor.

    The protocol is vLLM's own (0.32), by its way for trainers that do not run vLLM: NCCL's unique id travels over HTTP.

    Attributes:
        dtype: as for `DiskTransfer`. connect: (ranks, unique id) → the group; both are made by NCCL.
    """

    dtype: torch.dtype | None
    unique_id: Callable[[], bytes]
    connect: Callable[[int, bytes], Broadcast]
    group: Broadcast | None = None

    def send(self, model: nn.Module, accelerator: Accelerator, servers: Sequence[Client]) -> None:
        main = accelerator.is_main_process
        if main and self.group is None:
            self.group = self._join(servers)
        if main:
            on_all(servers, lambda server: server.post("/start_weight_update"))
        for chunk in chunks(whole_weights(model, accelerator, self.dtype), CHUNK):  # gathering is for all processes
            if main:
                self._send(chunk, servers)
        if main:
            on_all(servers, lambda server: server.post("/finish_weight_update"))

    def _join(self, servers: Sequence[Client]) -> Broadcast:
        """The servers' workers wait for this process while it connects, and it for them."""
        sizes = [int(server.get("/get_world_size")["world_size"]) for server in servers]
        ranks, identity = 1 + sum(sizes), self.unique_id()
        with ThreadPoolExecutor(len(servers)) as pool:
            asked = [
                pool.submit(
                    server.post,
                    "/init_weight_transfer_engine",
                    {
                        "init_info": {
                            "nccl_unique_id_b64": base64.b64encode(identity).decode(),
                            "rank_offset": 1 + sum(sizes[:i]),
                            "world_size": ranks,
                            "packed": False,
                        }
                    },
                )
                for i, server in enumerate(servers)
            ]
            group = self.connect(ranks, identity)
            for answer in asked:
                answer.result()
        return group

    def _send(self, chunk: list[tuple[str, Tensor]], servers: Sequence[Client]) -> None:
        assert self.group is not None
        update = {
            "names": [name for name, _ in chunk],
            "dtype_names": [str(value.dtype).removeprefix("torch.") for _, value in chunk],
            "shapes": [list(value.shape) for _, value in chunk],
        }
        with ThreadPoolExecutor(len(servers)) as pool:
            asked = [pool.submit(server.post, "/update_weights", {"update_info": update}) for server in servers]
            for _, value in chunk:
                self.group(value)
            for answer in asked:  # a server that refuses says so here; waiting for the GPU would hang
                answer.result()
        if torch.cuda.is_available():
            torch.cuda.current_stream().synchronize()


def nccl_unique_id() -> bytes:
    """Raises MissingPackageError without nccl4py, ConfigError without a GPU."""
    if not torch.cuda.is_available():
        raise ConfigError("vllm_transfer='nccl' sends weights between GPUs, and this process has none; set it to disk")
    try:
        from nccl.core import get_unique_id
    except ImportError as error:
        raise MissingPackageError("vllm_transfer='nccl' needs nccl4py: pip install -e '.[nccl]'") from error
    return bytes(get_unique_id())


def nccl_group(ranks: int, unique_id: bytes) -> Broadcast:
    """Join the group as rank 0. vLLM's workers add up one number right after joining, and wait for it."""
    from nccl.core import SUM, Communicator, UniqueId

    group = Communicator.init(ranks, 0, UniqueId.from_bytes(unique_id))
    one = torch.zeros(1, device="cuda")
    stream = torch.cuda.current_stream().cuda_stream
    group.allreduce(one, one, SUM, stream=stream)

    def broadcast(tensor: Tensor) -> None:
        group.broadcast(tensor, tensor, 0, stream=torch.cuda.current_stream().cuda_stream)

    return broadcast


#: By the setting `vllm_transfer`, from the folder of `vllm_weights` and the precision of what is sent.
TRANSFERS: dict[str, Callable[[Path, torch.dtype | None], Transfer]] = {
    "disk": DiskTransfer,
    "adapter": AdapterTransfer,
    "nccl": lambda _, dtype: NCCLTransfer(dtype, nccl_unique_id, nccl_group),
}


def whole_weights(
    model: nn.Module, accelerator: Accelerator, dtype: torch.dtype | None
) -> Iterator[tuple[str, Tensor]]:
    """The policy's weights by its base model's names, an adapter merged; one at a time is gathered, by all processes."""
    policy = extract_model_from_parallel(model)
    if isinstance(policy, PeftModel):
        named: Iterable[tuple[str, Tensor]] = merged_weights(policy)
    elif is_sharded(model):
        named = held_state(policy).items()
    else:
        named = accelerator.get_state_dict(model).items()
    for name, value in named:
        yield name, whole(cast(value, dtype))


def cast(value: Tensor, dtype: torch.dtype | None) -> Tensor:
    """The values of a weight, in `dtype` where they are floating-point numbers; None: as they are."""
    value = whole_weight(value).detach()
    return value.to(dtype) if dtype is not None and value.is_floating_point() else value


def chunks(named: Iterable[tuple[str, Tensor]], size: int) -> Iterator[list[tuple[str, Tensor]]]:
    """Consecutive weights, `size` bytes or a little more at a time."""
    chunk: list[tuple[str, Tensor]] = []
    held = 0
    for name, value in named:
        chunk.append((name, value.contiguous()))
        held += value.nbytes
        if held >= size:
            yield chunk
            chunk, held = [], 0
    if chunk:
        yield chunk


def on_all(servers: Sequence[Client], ask: Callable[[Client], Any]) -> None:
    """Ask all servers at the same time. Raises what the first of them raises."""
    with ThreadPoolExecutor(len(servers)) as pool:
        list(pool.map(ask, servers))
