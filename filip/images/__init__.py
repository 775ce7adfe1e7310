"""Pictures as pixels: decoding into RGB, and the transform of evaluation."""
