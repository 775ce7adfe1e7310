"""Show the explorer: a page in which a text's words and an image's patches are matched with each other.

``filip explore export`` writes the page (``assets/``) of a :class:`filip.explore.gallery.Gallery` as a file that opens
from disk.
"""
