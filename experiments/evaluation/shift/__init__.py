"""Measures rules for a norm's statistics on shifted test data, in batches of several sizes."""
