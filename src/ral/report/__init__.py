"""Reports and heat maps, made of saved files only; no model is loaded."""

from ral.report.heatmap import render_heatmap_html, render_heatmap_png
from ral.report.items import write_items
from ral.report.page import write_report

__all__ = ["render_heatmap_html", "render_heatmap_png", "write_items", "write_report"]
