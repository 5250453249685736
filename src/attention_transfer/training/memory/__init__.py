"""Less memory in training: activations that are recomputed in the backward pass."""
