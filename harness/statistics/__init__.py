"""Pure functions on paired measurements, each citing its source."""
