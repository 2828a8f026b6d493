"""Faster forms of plain operations, each tested against the plain one (see `models`)."""
