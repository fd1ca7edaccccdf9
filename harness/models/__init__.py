"""GGUF facts, Ollama storage and synthetic models."""
