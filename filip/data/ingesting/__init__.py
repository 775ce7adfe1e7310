"""Stages of :mod:`filip.data.ingest`: list rows, group captions, store shards. :mod:`filip.sets` reads."""
