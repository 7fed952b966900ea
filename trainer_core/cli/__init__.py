"""The command line: the command itself, its surroundings, and the bundled example."""
