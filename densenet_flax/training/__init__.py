"""Stages, the train step, the optimizer, the prefix cache and the trainer."""
