"""Stages that store weights in fewer bits."""
