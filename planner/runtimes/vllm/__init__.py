"""vLLM, and whatever else reads compressed-tensors: a Hugging Face folder with packed weights."""
