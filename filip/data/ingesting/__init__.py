"""The stages of :mod:`filip.data.ingest`: rows listed, captions grouped, shards stored. :mod:`filip.sets` reads."""
