"""What is trained and measured: settings as plain data, the presets, and changes to them."""
