"""Where images come from: folders, TFDS data sets, drawn tiles."""
