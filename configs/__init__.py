"""Experiments: one file each; `keras_recipe` describes the keys."""
