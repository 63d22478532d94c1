"""Stages that damage a model on purpose, to test what should notice."""
