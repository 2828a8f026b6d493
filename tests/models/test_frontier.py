"""The frontier: what a user may write, and all that follows from it."""
