"""Networks (Flax NNX) that take their normalisation as an argument."""
