"""Compression steps: one file a method."""
