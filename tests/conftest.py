"""Settings of every test."""

from __future__ import annotations

import os

from hypothesis import settings

# How long an example takes says how busy the machine is. The same commit gets the same examples: a change is judged by them, not
# by luck. `HYPOTHESIS_PROFILE=search make test` looks for others.
settings.register_profile("ral", deadline=None, derandomize=True)
settings.register_profile("search", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ral"))
