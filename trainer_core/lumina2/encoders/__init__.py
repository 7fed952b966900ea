"""What turns captions and pictures into what the network reads."""
