"""What the user asks: the YAML spec as frozen pydantic models."""
