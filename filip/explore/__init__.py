"""Show the explorer: a page in which a text's words and an image's patches are matched with each other.

``filip explore export`` writes it as a file that opens from disk; ``filip explore serve`` serves it for any text and
any image. Both show the same page (``assets/``) on the same :class:`filip.explore.gallery.Gallery`.
"""
