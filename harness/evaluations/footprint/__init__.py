"""Whose student is this: what a distilled model's texts still show of the teacher it learned from."""
