"""Stages that store weights in fewer bits: one file a method.

Files that begin with an underscore drive a library for the methods that go through it, `recipe` holds the arguments
that all share, and `proof` holds every result against the files that were written. `emulated` is the shortest way to a
new one.
"""
