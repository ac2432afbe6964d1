"""The vocabulary, the contracts and the rules of `ruvd`. It imports nothing third-party."""
