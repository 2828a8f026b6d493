"""Drawn tissue, for demos and tests."""
