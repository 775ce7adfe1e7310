"""Image-caption sets on disk, read in one way by ingest, evaluation, explorer and index.

:mod:`filip.sets.layouts` lists the layouts, :mod:`filip.sets.columns` the names of columns; a
:class:`filip.sets.layout.Reading` names the files to read, and every file, line or key becomes a
:class:`filip.sets.layout.Row`. :mod:`filip.sets.image_set` gathers the rows of a set that fits in memory.
"""
