"""Turns SimpleTuner's configuration files into a workflow of this pack."""
