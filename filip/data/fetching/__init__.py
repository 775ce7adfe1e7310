"""Fetch images from the web."""
