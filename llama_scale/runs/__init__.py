"""Runs and their folders: create, supervise, watch, stop and resume. No torch."""
