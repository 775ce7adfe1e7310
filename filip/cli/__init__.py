"""The command line: how a dataclass of settings becomes a command, an option its check, and an error its sentence."""
