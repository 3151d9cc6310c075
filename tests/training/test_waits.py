"""How often the host waits for the device, counted on a GPU that is not there."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

#: Outside of decoding, in the two updates of a rollout batch, whatever the number of micro-batches.
WAITS = 18
COUNT = """
import json, logging
logging.disable(logging.WARNING)
from tests import fake_gpu
elsewhere, decoding = fake_gpu.waits_of_two_updates(gradient_accumulation_steps={accumulation})
print(json.dumps([len(fake_gpu.DECODED), decoding.total(), elsewhere]))
"""


@pytest.mark.parametrize("accumulation", [2, 4])
def test_the_host_waits_once_a_token_and_ten_times_elsewhere(accumulation: int) -> None:
    """In a process of its own, as it puts things in the place of torch's. Waits do not grow with the micro-batches."""
    words = [sys.executable, "-c", COUNT.format(accumulation=accumulation)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    steps, tokens, elsewhere = json.loads(done.stdout.splitlines()[-1])
    assert tokens == steps + 1, "one for each decoding step, and one for the tokens that the prompts' pass gives"
    assert sum(elsewhere.values()) == WAITS <= 2 * 10, elsewhere
