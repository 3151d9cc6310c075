"""The planner: memory per GPU and time of a recipe, from the model's configuration alone."""

from ral.plan.duration import Machine
from ral.plan.page import Plan, plan, render

__all__ = ["Machine", "Plan", "plan", "render"]
