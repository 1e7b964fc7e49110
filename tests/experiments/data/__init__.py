"""Tests of the loaders, on small real files written here."""
