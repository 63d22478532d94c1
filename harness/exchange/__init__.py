"""Records from and for other tools: their logs become our records, and our records become their files."""
