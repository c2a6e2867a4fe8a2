"""Text to token files: reading text, tokenizers, writing and reading .bin/.idx pairs."""
