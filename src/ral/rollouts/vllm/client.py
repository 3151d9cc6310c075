"""HTTP requests to one vLLM server, and the errors that they end in."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from http import HTTPStatus
from http.client import HTTPException
from typing import Any

from ral.errors import RalError

#: How long one request may take, in seconds: a batch of long completions, or the reading of new weights.
TIMEOUT = 1800
#: What to do where no server of the right kind answers.
START = (
    "start one, and set vllm_url to its address: VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --enable-scale-out "
    "--logprobs-mode processed_logprobs"
)


class ServerError(RalError, RuntimeError):
    """A vLLM server cannot be reached, was started without what is needed, serves other weights, or refuses a request."""


class Client:
    """One server.

    Args:
        url: its address, such as `http://127.0.0.1:8000`.

    Attributes:
        model: the name of the model that the server was started on.

    Raises ServerError when nothing answers there.
    """

    def __init__(self, url: str):
        self.url = url.rstrip("/")
        self.model = self._model()

    def _model(self) -> str:
        answer = self.get("/v1/models")
        try:
            return str(answer["data"][0]["id"])
        except (LookupError, TypeError) as error:
            raise ServerError(
                f"{self.url} does not list a model as vLLM does, but answers {str(answer)[:200]}; {START}"
            ) from error

    def get(self, path: str) -> Any:
        """The server's answer, decoded. Raises ServerError."""
        return self._request("GET", path, None)

    def post(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """The server's answer, decoded. Raises ServerError."""
        return self._request("POST", path, json.dumps(body or {}).encode())

    def _request(self, method: str, path: str, data: bytes | None) -> Any:
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
                return _decoded(response.read())
        except urllib.error.HTTPError as error:
            if error.code == HTTPStatus.NOT_FOUND:
                raise ServerError(
                    f"the vLLM server at {self.url} does not serve {path.partition('?')[0]}; {_needed(path)} (vLLM 0.32 or newer)"
                ) from error
            said = error.read(500).decode(errors="replace")
            raise ServerError(f"the vLLM server at {self.url} refuses {path}: {said}") from error
        except (
            OSError,
            HTTPException,
            ValueError,
        ) as error:  # refused, unknown host, timed out; no HTTP; no JSON, no address
            said = " ".join(str(error).split())  # of another protocol, it may hold line breaks
            raise ServerError(f"no vLLM server answers at {self.url} ({said}); {START}") from error


def _decoded(answer: bytes) -> Any:
    """JSON. The answer to a loaded adapter is a plain sentence."""
    return answer.decode() if answer.startswith(b"Success") else json.loads(answer or b"null")


def _needed(path: str) -> str:
    """What a server that serves `path` is started with."""
    if "lora_adapter" in path:
        return "start it with VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 in its environment and --enable-lora --max-lora-rank R"
    if path.startswith(("/sleep", "/wake_up", "/is_sleeping")):
        return "start it with VLLM_SERVER_DEV_MODE=1 in its environment and --enable-sleep-mode"
    return "start it with VLLM_SERVER_DEV_MODE=1 in its environment and --enable-scale-out"
