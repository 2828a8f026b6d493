"""Splitting into training, validation and test images, and sampling of the training images."""
