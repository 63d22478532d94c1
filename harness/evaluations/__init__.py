"""Measures: tasks, agents, fidelity, probes."""
