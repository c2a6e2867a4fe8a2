"""Checkpoints that every engine writes without communication and that any layout reads: see docs/checkpoints.md."""
