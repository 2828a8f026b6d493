"""Image files to arrays: decoding, stain normalization, the memory-mapped cache, streaming."""
