"""Fetch images from the web."""

import os

# img2dataset imports albumentations, which asks the network for a newer version of itself whenever it is imported. Set
# here, because the workers of a cluster import this package first and have no other environment of ours.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
