"""Pure functions of tensors: attention maps, losses, measures, and the fused pass over features."""
