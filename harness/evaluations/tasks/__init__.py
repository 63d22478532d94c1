"""Accuracy tasks, lm-eval's and our own."""
