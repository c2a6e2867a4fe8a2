"""Spec and plan -> a bundle of text, and from the bundle to processes."""
