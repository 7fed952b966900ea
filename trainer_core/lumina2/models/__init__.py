"""Models as files: find, check, load and save them."""
