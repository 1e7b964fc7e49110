"""Files that are written whole or not at all: the library's, under a name of the experiments."""

from steinnorm.attacks._files import write_bytes as write_bytes
from steinnorm.attacks._files import write_json as write_json
from steinnorm.attacks._files import write_text as write_text
