"""Terms of the loss and models from papers, as a package outside of FILIP would bring them: examples of entry points.

No study that FILIP reports by is trained with them. Each is a module with a
:class:`filip.train.losses.term.Term`, and a line under ``[project.entry-points."filip.losses"]`` in pyproject.toml.
``encoders`` has the models, for the group ``filip.encoders``. FILIP itself imports none of them.
"""
