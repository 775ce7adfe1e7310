"""Stages of :mod:`filip.data.score`: measure each image of a shard, and find near-duplicates among all of them."""
