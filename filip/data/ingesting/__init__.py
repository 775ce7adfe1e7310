"""The stages of :mod:`filip.data.ingest`: rows found, captions gathered, shards stored. :mod:`filip.sets` reads."""
