"""BreakHis as a standard TFDS data set."""

VERSION = "1.0.0"
