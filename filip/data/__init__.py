import os

# img2dataset imports albumentations, which asks the network for a newer version of itself whenever it is imported
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
