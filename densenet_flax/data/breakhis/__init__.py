"""BreakHis as a standard TFDS data set; `files` knows its names and layout."""
