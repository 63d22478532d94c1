"""Engines that open artifacts: one file a runtime."""
