"""Text encoder, VAE and the prompts they are given."""
