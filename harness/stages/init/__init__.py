"""Stages that put another model in the place of the one that came in: the student before it learns anything."""
