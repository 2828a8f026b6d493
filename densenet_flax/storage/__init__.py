"""What a run keeps on disk: the work directory, checkpoints, features."""
