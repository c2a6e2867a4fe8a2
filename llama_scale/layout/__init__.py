"""How a LLaMA's tensors are named, shaped and cut: the one table that plan, checkpoint, convert and train share."""
