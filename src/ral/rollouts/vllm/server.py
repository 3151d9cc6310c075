"""The client of a running vLLM server, which samples completions."""

from __future__ import annotations

import base64
import io
import json
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from peft import PeftModel
from PIL import Image
from torch import Tensor, nn

from ral.attention import Prompt
from ral.attention.models import pretrained, special_visual_token_ids, visual_token_ids
from ral.data.media import load_image, load_video
from ral.data.prompt import build_messages
from ral.data.record import Record
from ral.data.record_errors import name_in_errors
from ral.errors import ConfigError, RalError
from ral.models.sharding import full_state_dict
from ral.rollouts.sampling import Completion, Sampling
from ral.rollouts.vllm.merging import merged_state, refuse_unmergeable
from ral.rollouts.vllm.video import lossless_video, video_rates

#: How long one request may take, in seconds: a batch of long completions, or the reading of new weights.
TIMEOUT = 1800
#: Added to the logits of tokens that must not be drawn; the lowest that the API takes.
BANNED = -100.0
#: What to do where no server of the right kind answers.
_START = (
    "start one, and set vllm_url to its address: VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --enable-scale-out "
    "--logprobs-mode processed_logprobs"
)
#: Why rollouts under a look bias are refused.
NO_LOOK_BIAS = (
    "attention_anchor='explore' samples under a bias on attention, which vLLM cannot add; set rollout_engine=transformers, or "
    "choose another attention_anchor"
)


class ServerError(RalError, RuntimeError):
    """The vLLM server cannot be reached, was started without what is needed, or refuses a request."""


class VLLMServer:
    """A running server, as a sampler of completions.

    Args:
        url: its address, such as `http://127.0.0.1:8000`.
        model: the policy whose weights it samples from.
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
        self.name = self._served()

    def _served(self) -> str:
        """The name of the model that the server is started on."""
        answer = self._request("GET", "/v1/models")
        try:
            return str(answer["data"][0]["id"])
        except (LookupError, TypeError) as error:
            raise ServerError(
                f"{self.url} does not list a model as vLLM does, but answers {str(answer)[:200]}; {_START}"
            ) from error

    def sync_weights(self, model: nn.Module, accelerator: Accelerator) -> None:
        """Take up the policy's weights, and forget what was computed with the old ones. All processes must call it.

        Args:
            model: as accelerate has prepared it; sharded weights are gathered on the main process, an adapter is sent merged.
        """
        policy = accelerator.unwrap_model(model)
        merge = isinstance(policy, PeftModel)
        weights = merged_state(policy, accelerator) if merge else full_state_dict(model, accelerator)
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
        generators: Sequence[torch.Generator] | None = None,
        look_bias: Sequence[Tensor] | None = None,
    ) -> list[list[Completion]]:
        """`num_generations` completions for every prompt, all prompts at once; `records` are where their media are.

        The generators give each prompt's seed, so that it is drawn the same whatever it is batched with, as far as the
        server computes the same. Without them the server chooses.

        Raises:
            ServerError: the server makes another prompt of an image or video than the policy's processor does.
            DataError: a video that stands at other positions for the server than for the policy.
            ConfigError: a look bias.
        """
        if look_bias is not None:
            raise ConfigError(NO_LOOK_BIAS)
        complete = partial(self._complete, num_generations=num_generations, sampling=sampling)
        with ThreadPoolExecutor(max_workers=len(prompts)) as pool:
            return list(pool.map(complete, records, prompts, generators or [None] * len(prompts)))

    def _complete(
        self,
        record: Record,
        prompt: Prompt,
        generator: torch.Generator | None,
        num_generations: int,
        sampling: Sampling,
    ) -> list[Completion]:
        ids = prompt.input_ids.tolist()
        seed = None if generator is None else generator.initial_seed() % 2**63
        with name_in_errors(record):
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
                        "seed": seed,
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
        for part in (part for message in build_messages(record) for part in message["content"]):
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
        except (
            OSError,
            HTTPException,
            ValueError,
        ) as error:  # refused, unknown host, timed out; no HTTP; no JSON, no address
            said = " ".join(str(error).split())  # of another protocol, it may hold line breaks
            raise ServerError(f"no vLLM server answers at {self.url} ({said}); {_START}") from error


def _data_url(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _completion(choice: dict[str, Any]) -> Completion:
    """A choice of the server's answer, whose ids hold the end-of-sequence token already."""
    logps = torch.tensor([token["logprob"] for token in choice["logprobs"]["content"]])
    return Completion(torch.tensor(choice["token_ids"]), choice["finish_reason"] == "length", logps)
