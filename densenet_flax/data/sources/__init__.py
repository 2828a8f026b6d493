"""Where images come from: BreakHis, folders of tiles, TFDS data sets."""
