"""From trained weights to numbers: attacks, per-example results, rows, checks."""
