"""Predictions of image files as a table: what `main.py --mode=predict` does.

image_files      which files
predict_files    each file: decoded, prepared, through the network, noted in the journal
network_batches  images in threads, batches through the network
journal          what is done, so that a stopped job resumes
outputs          what the job writes, and whether it can
table_writer     from the journal to a CSV or Parquet file
"""
