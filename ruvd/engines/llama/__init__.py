"""The embedded engine: llama.cpp's server as a child process, with its KV cache."""
