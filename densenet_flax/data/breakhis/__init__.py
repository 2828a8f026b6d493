"""BreakHis as a standard TFDS data set; `files` knows its names and layout."""

VERSION = "1.0.0"
