"""From a configuration to trained weights: one loop over a jitted step."""
