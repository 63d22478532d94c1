"""Stages that remove weights."""
