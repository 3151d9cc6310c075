"""What a recipe will need: memory per GPU, and time, from the model's configuration alone."""

from ral.plan.duration import Machine
from ral.plan.page import Plan, plan, render

__all__ = ["Machine", "Plan", "plan", "render"]
