"""Hydra configuration of the commands: one YAML per model, data set-up and experiment."""
