"""What ``python -m experiments`` can do: one module a command, each importable on its own."""
