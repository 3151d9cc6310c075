"""A server that speaks vLLM's protocol and samples nothing: it answers each prompt with tokens made of its seed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from typing import Any

import torch
from safetensors import safe_open

#: End of sequence, and tokens that the embedded model can be asked for.
EOS, FIRST = 500, 97


@dataclass
class Stub:
    """What the server was asked, in order.

    Attributes:
        prompts: token ids of whole prompts, by what is sent of them (one placeholder for an image).
        weights: of each reload, the sum of one weight; of an adapter, of all of it.
        version: of the weights, as the server knows it.
        workers: its processes in an NCCL group.
    """

    url: str = ""
    requests: list[tuple[str, Any]] = field(default_factory=list)
    prompts: dict[tuple[int, ...], list[int]] = field(default_factory=dict)
    weights: list[float] = field(default_factory=list)
    version: str = "default"
    workers: int = 2
    lock: Any = field(default_factory=Lock)

    def asked(self, path: str) -> list[Any]:
        return [body for asked, body in self.requests if asked == path]

    def answer(self, path: str, body: Any) -> Any:
        with self.lock:
            self.requests.append((path, body))
        match path:
            case "/v1/models":
                return {"data": [{"id": "stub"}]}
            case "/collective_rpc":
                self.weights.append(_sum(Path(body["kwargs"]["weights_path"])))
            case "/v1/load_lora_adapter":
                self.weights.append(_whole_sum(Path(body["lora_path"])))
                return "Success: LoRA adapter 'ral-policy' added successfully."
            case "/update_weight_version":
                self.version = body["new_version"]
            case "/weight_info":
                return {"weight_version": self.version}
            case "/get_world_size":
                return {"world_size": self.workers}
            case "/inference/v1/generate":
                ids = self.prompts.get(tuple(body["token_ids"]), body["token_ids"])
                asked = body["sampling_params"]
                return {"prompt_token_ids": ids, "choices": [_choice(asked, g) for g in range(asked["n"])]}
        return {}


def _choice(asked: dict[str, Any], g: int) -> dict[str, Any]:
    """The first is cut at the limit, the others end after g + 1 tokens."""
    limit, seed = asked["max_tokens"], asked["seed"] or 0
    ids = [FIRST + (seed + i + g) % 20 for i in range(limit if g == 0 else g + 1)]
    ids = ids if g == 0 else [*ids, EOS]
    logprobs = {"content": [{"logprob": -0.5 - i / 10} for i in range(len(ids))]}
    return {"token_ids": ids, "finish_reason": "stop" if g else "length", "logprobs": logprobs}


def _sum(folder: Path) -> float:
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        name = next(name for name in sorted(file.keys()) if "q_proj.weight" in name and "visual" not in name)
        return float(file.get_tensor(name).double().sum())


def _whole_sum(folder: Path) -> float:
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
        return sum(float(file.get_tensor(name).double().sum()) for name in file.keys())  # noqa: SIM118


@contextmanager
def serving(prompts: Sequence[tuple[list[int], torch.Tensor]] = ()) -> Iterator[Stub]:
    """A running stub."""
    stub = Stub(prompts={tuple(sent): whole.tolist() for sent, whole in prompts})

    class Handler(BaseHTTPRequestHandler):
        def _reply(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            told = stub.answer(self.path, json.loads(self.rfile.read(length) or "null"))
            answer = (told if isinstance(told, str) else json.dumps(told)).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_GET = do_POST = _reply

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    stub.url = f"http://127.0.0.1:{server.server_port}"
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield stub
    finally:
        server.shutdown()
        server.server_close()
