"""The folder of a training on disk: its checkpoints, and the model that is in it. Training writes it."""
