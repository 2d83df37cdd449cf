"""Where a full model comes from: a Hugging Face folder (a hub id is one, once it was fetched), or GGUF files."""
