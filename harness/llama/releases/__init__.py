"""The catalogue of llama.cpp releases that can be deployed."""
