"""A configuration in, a report out."""
