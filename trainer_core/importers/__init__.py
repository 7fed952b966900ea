"""Other trainers' configuration files become workflows of this pack."""
