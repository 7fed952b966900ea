"""The network, and how its tokens lie in a batch."""
