"""Pictures and numbers that tell how training goes."""
