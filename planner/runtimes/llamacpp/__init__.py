"""llama.cpp: one GGUF file, read by it, by Ollama and by LM Studio."""
