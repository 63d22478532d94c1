"""Stages that change the file format and nothing else."""
