"""Builds a release of llama.cpp on this computer and proves that it serves over several rpc-servers."""
