"""Search one's own pictures: ``filip search PHOTOS "a red bicycle"``."""
