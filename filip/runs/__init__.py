"""Read the folder that a training writes: its checkpoints, and its model."""
