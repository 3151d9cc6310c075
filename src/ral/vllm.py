"""Rollouts from a vLLM server, which lives in an environment, and usually on GPUs, of its own.

The server is asked through its HTTP API: prompts go as the token ids the policy is trained on with their media beside them,
completions come back as token ids with the log-probabilities they were drawn at. New weights are written to a folder that
both see, and the server reads them in place. It is started on the model that training starts from:

    VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --enable-scale-out --logprobs-mode processed_logprobs
"""

from __future__ import annotations

import base64
import io
import json
import math
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from accelerate import Accelerator
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from PIL import Image
from torch import nn
from torch.distributed.tensor import DTensor

from ral.attention import Prompt
from ral.attention.models import pretrained, special_visual_token_ids, visual_token_ids
from ral.config import ConfigError
from ral.data.media import load_image, load_video
from ral.data.prompt import build_messages
from ral.data.reading import naming
from ral.data.record import DataError, Record
from ral.rollout import Completion, Sampling
from ral.sharding import whole_state

#: How long one request may take, in seconds: a batch of long completions, or the reading of new weights.
TIMEOUT = 1800
#: Added to the logits of tokens that must not be drawn; the lowest that the API takes.
BANNED = -100.0


class ServerError(RuntimeError):
    """The vLLM server cannot be reached, was started without what is needed, or refuses a request."""


class VLLMServer:
    """A running server, as a sampler of completions.

    Args:
        url: its address, such as `http://127.0.0.1:8000`.
        model: the policy that it is to follow.
        folder: where new weights are written to, and read from by the server.
        num_frames, fps: which frames of a video the policy is shown (`ral.data.media.frame_times`).

    Raises ServerError when nothing answers there, ConfigError for tied embeddings and for an adapter that `merged_state` refuses.
    """

    def __init__(
        self, url: str, model: nn.Module, folder: Path, *, num_frames: int | None = None, fps: float | None = None
    ):
        if isinstance(model, PeftModel):
            refuse_unmergeable(model)
        self.url, self.folder = url.rstrip("/"), folder.resolve()
        self.num_frames, self.fps = num_frames, fps
        base: Any = pretrained(model)
        if base.get_output_embeddings().weight is base.get_input_embeddings().weight:
            raise ConfigError(
                "rollout_engine='vllm' needs an output embedding of its own: vLLM (0.32) keeps its old one where a model ties it to "
                "the input's. Save the model with tie_word_embeddings=False, or set rollout_engine=transformers"
            )
        self.config = base.config
        self.placeholders = set(visual_token_ids(base))
        self.banned = {str(token): BANNED for token in special_visual_token_ids(base)}
        self.name = self._request("GET", "/v1/models")["data"][0]["id"]

    def follow(self, model: nn.Module, accelerator: Accelerator) -> None:
        """Take up the policy's weights, and forget what was computed with the old ones. All processes must call it.

        Args:
            model: as accelerate has prepared it; sharded weights are gathered on the main process, an adapter is sent merged.
        """
        policy = accelerator.unwrap_model(model)
        merge = isinstance(policy, PeftModel)
        weights = merged_state(policy, accelerator) if merge else whole_state(model, accelerator)
        if accelerator.is_main_process:
            pretrained(model).save_pretrained(self.folder, state_dict=weights)
            path = {"weights_path": str(self.folder)}
            self._request("POST", "/collective_rpc", {"method": "reload_weights", "kwargs": path})
            # Its worker forgets image features with the old weights, and its scheduler has to be told so.
            for cache in ("prefix", "encoder"):
                self._request("POST", f"/reset_{cache}_cache", {})
        accelerator.wait_for_everyone()

    def sample(
        self,
        records: Sequence[Record],
        prompts: Sequence[Prompt],
        num_generations: int,
        sampling: Sampling,
        generators: Sequence[torch.Generator],
    ) -> list[list[Completion]]:
        """`num_generations` completions for every prompt, all prompts at once; `records` are where their media are.

        The generators give each prompt's seed, so that it is drawn the same whatever it is batched with, as far as the
        server computes the same.

        Raises:
            ServerError: the server makes another prompt of an image or video than the policy's processor does.
            DataError: a video that stands at other positions for the server than for the policy.
        """
        complete = partial(self._complete, num_generations=num_generations, sampling=sampling)
        with ThreadPoolExecutor(max_workers=len(prompts)) as pool:
            return list(pool.map(complete, records, prompts, generators))

    def _complete(
        self, record: Record, prompt: Prompt, generator: torch.Generator, num_generations: int, sampling: Sampling
    ) -> list[Completion]:
        ids = prompt.input_ids.tolist()
        with naming(record):
            answer = self._request(
                "POST",
                "/inference/v1/generate",
                {
                    "model": self.name,
                    "token_ids": self._without_repeats(ids),
                    "content_parts": self._media(record, prompt) or None,
                    "return_token_ids": True,
                    "sampling_params": {
                        "n": num_generations,
                        "seed": generator.initial_seed() % 2**63,
                        "temperature": sampling.temperature,
                        "top_p": sampling.top_p,
                        "top_k": sampling.top_k,
                        "max_tokens": sampling.max_completion_length,
                        "stop_token_ids": list(sampling.eos_token_ids),
                        "logit_bias": self.banned,
                        "logprobs": 0,
                        "output_kind": 2,  # whole completions only, or all but the last to finish are lost
                    },
                },
            )
        if answer["prompt_token_ids"] != ids:
            raise ServerError(
                f"{record.origin}: the vLLM server makes {len(answer['prompt_token_ids'])} tokens of this prompt, the policy's "
                f"processor {len(ids)}. Start the server on the same model, with the pixel limits of the run "
                "(--mm-processor-kwargs) and, for videos, all frames that it is sent "
                '(--media-io-kwargs \'{"video": {"video_backend": "opencv", "num_frames": -1}}\').'
            )
        return [_completion(choice) for choice in answer["choices"]]

    def _media(self, record: Record, prompt: Prompt) -> list[dict[str, str]]:
        """Images and videos in the order of their places in the prompt, without loss."""
        rates = video_rates(self.config, record, prompt)
        media = []
        for part in (part for message in build_messages(record, think=False) for part in message["content"]):
            if part["type"] == "image":
                image = load_image(part["image"], record.origin)
                media.append({"type": "image_url", "url": _data_url("image/png", _png(image))})
            elif part["type"] == "video":
                video = load_video(Path(part["video"]), num_frames=self.num_frames, fps=self.fps, origin=record.origin)
                media.append(
                    {"type": "video_url", "url": _data_url("video/avi", lossless_video(video.frames, next(rates)))}
                )
        return media

    def _without_repeats(self, ids: list[int]) -> list[int]:
        """One placeholder for every image and video: the server repeats it for each of its visual tokens."""
        before = [None, *ids]
        return [
            token for token, last in zip(ids, before, strict=False) if token not in self.placeholders or token != last
        ]

    def _request(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
                return json.loads(response.read() or "null")
        except urllib.error.HTTPError as error:
            if error.code == HTTPStatus.NOT_FOUND:
                raise ServerError(
                    f"the vLLM server at {self.url} does not serve {path}; start it with VLLM_SERVER_DEV_MODE=1 in its "
                    "environment and --enable-scale-out (vLLM 0.32 or newer)"
                ) from error
            said = error.read(500).decode(errors="replace")
            raise ServerError(f"the vLLM server at {self.url} refuses {path}: {said}") from error
        except OSError as error:  # refused, unknown host, timed out
            raise ServerError(
                f"no vLLM server answers at {self.url} ({error}); start one, and set vllm_url to its address: "
                "VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --enable-scale-out --logprobs-mode processed_logprobs"
            ) from error


def refuse_unmergeable(model: PeftModel) -> None:
    """Raise ConfigError for an adapter whose merged weights are more than its base's plus a product of two matrices."""
    config: Any = model.active_peft_config
    for refused, what in (
        (not isinstance(config, LoraConfig), f"an adapter of the kind {config.peft_type}"),
        (any(getattr(module, "lora_variant", None) for module in model.modules()), "a variant of LoRA such as DoRA"),
        (getattr(config, "bias", "none") != "none", "trained biases (bias)"),
        (getattr(config, "lora_bias", False), "biases of the adapter (lora_bias)"),
        (bool(getattr(config, "modules_to_save", None)), "modules_to_save"),
        (bool(getattr(config, "trainable_token_indices", None)), "trained tokens (trainable_token_indices)"),
        (any(not weight.is_floating_point() for weight in model.parameters()), "an adapter on quantised weights"),
    ):
        if refused:
            raise ConfigError(
                f"rollout_engine='vllm' sends LoRA merged into its base model's weights, and cannot send {what}; leave that "
                "out, or set rollout_engine=transformers"
            )


@torch.no_grad()
def merged_state(model: PeftModel, accelerator: Accelerator) -> dict[str, torch.Tensor]:
    """The base model's weights with the active LoRA adapters added, by the base model's own names; the model stays as it is.

    Sharded weights are whole on the main process, which alone has any then; all must call this.
    """
    base = model.get_base_model()
    layers: dict[str, Any] = {name: module for name, module in base.named_modules() if isinstance(module, LoraLayer)}
    weights = {}
    for name, value in base.state_dict().items():
        owner, _, parameter = name.rpartition(".base_layer.")
        if any(f".{part}" in name for part in LoraLayer.adapter_layer_names):
            continue
        if owner in layers and parameter == "weight":
            for adapter in layers[owner].active_adapters:
                value = value + layers[owner].get_delta_weight(adapter).to(value.dtype)
        sharded = isinstance(value, DTensor)
        whole = value.full_tensor() if sharded else value
        if accelerator.is_main_process:
            weights[name.replace(".base_layer.", ".")] = whole.cpu() if sharded else whole
    return weights


def video_rates(config: Any, record: Record, prompt: Prompt) -> Iterator[Fraction]:
    """Frames a second, for every video of a record, that give it the same positions in vLLM (0.32) as in the policy.

    Args:
        config: of the policy's model.

    Raises DataError where no rate does.
    """
    if record.videos and config.model_type == "qwen3_vl":
        raise DataError(
            f"{record.origin}: has a video, between whose frames a vLLM server writes times of its own for Qwen3-VL; "
            "set rollout_engine to transformers"
        )
    count = len(record.videos)
    places = prompt.places.split([math.prod(grid) for grid in prompt.grids])
    every = prompt.inputs.get("second_per_grid_ts", torch.ones(count)).float().cpu()  # Qwen2-VL knows no seconds
    first = len(prompt.grids) - count  # images come before
    for (t, h, w), where, seconds in zip(prompt.grids[first:], places[first:], every, strict=True):
        own = prompt.position_ids[0, where[:: h * w]].cpu()
        # vLLM rounds times down in float64, transformers in float32, and may need the next number up for the same.
        for sent in (seconds, seconds.nextafter(seconds + 1)):
            times = (torch.arange(t) * (sent.double() * getattr(config.vision_config, "tokens_per_second", 1))).long()
            # Behind a video, vLLM counts on from its largest position in time or space, transformers 5 from space.
            if torch.equal(times, own - own[0]) and times[-1] < max(h, w):
                break
        else:
            raise DataError(
                f"{record.origin}: to a vLLM server this video, or the text behind it, stands at other positions than to "
                f"transformers: it takes {int(own[-1] - own[0]) + 1} in time and {max(h, w)} in space. Take no more in time than "
                "in space (a shorter video, larger frames), or set rollout_engine to transformers"
            )
        yield Fraction(config.vision_config.temporal_patch_size / sent.item()).limit_denominator(1_000_000)


def _data_url(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def lossless_video(frames: np.ndarray, rate: Fraction) -> bytes:
    """`frames` uint8 `[T, H, W, 3]` as a video without loss, which says its rate exactly.

    A single frame is doubled, as the processor doubles it, for the server's decoder (OpenCV) reads no video of one frame.
    """
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="avi") as container:
        stream = container.add_stream("ffv1", rate=rate)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "bgr0"
        for frame in frames if len(frames) > 1 else frames.repeat(2, axis=0):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def _completion(choice: dict[str, Any]) -> Completion:
    """A choice of the server's answer, whose ids hold the end-of-sequence token already."""
    logps = torch.tensor([token["logprob"] for token in choice["logprobs"]["content"]])
    return Completion(torch.tensor(choice["token_ids"]), choice["finish_reason"] == "length", logps)
