"""The experiments: training, attacking and reporting, one command each.

Run ``python -m experiments --help``.  The library ``steinnorm`` never imports this package.
"""
