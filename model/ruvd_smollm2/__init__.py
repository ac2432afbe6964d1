"""The file of SmolLM2-135M-Instruct, which ruvd finds beside this module."""
