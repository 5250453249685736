"""Training with less memory: which activations are recomputed in the backward pass."""
