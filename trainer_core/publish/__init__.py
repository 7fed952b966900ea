"""Sending results elsewhere: trackers, hub, model card."""
