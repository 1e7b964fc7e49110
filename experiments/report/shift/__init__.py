"""Reports how rules for a norm's statistics do on shifted test data."""
