"""What each node does, one function each."""
