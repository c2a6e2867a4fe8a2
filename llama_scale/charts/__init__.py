"""Drawings of plans and runs, from plain shapes to SVG and PNG, without a plotting library."""
