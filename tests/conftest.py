"""Settings of every test."""

from __future__ import annotations

from hypothesis import settings

# How long an example takes says how busy the machine is.
settings.register_profile("ral", deadline=None)
settings.load_profile("ral")
