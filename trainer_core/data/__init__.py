"""From a folder of pictures to cached batches."""
