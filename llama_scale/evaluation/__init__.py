"""What a model can do: task metrics with confidence intervals, texts, embeddings; on assembled Hugging Face models."""
