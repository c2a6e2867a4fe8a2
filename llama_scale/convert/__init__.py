"""Hugging Face folders to sharded checkpoints and back, with a ledger of every element and a proof by logits."""
