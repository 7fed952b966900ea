"""The Lumina2 model: network, files, text encoder, VAE, objective and sampling."""
