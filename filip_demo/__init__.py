"""The embedded demo corpus: emoji drawn by nine artists, with their Unicode CLDR names, served over HTTP.

``python -m filip_demo.corpus`` fetches, renders and lists it; ``python -m filip_demo.serving``
serves it while a command runs, so that a study downloads it by URL like any other source.
"""
