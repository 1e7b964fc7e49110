"""Files that are written whole or not at all: the library's, under a name of the experiments."""

from steinnorm.attacks._files import write_bytes, write_json, write_text

__all__ = ["write_bytes", "write_json", "write_text"]
