"""Preflight: ask every host of a run what could keep it from running there, and name the culprit with the remedy."""
