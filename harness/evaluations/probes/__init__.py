"""Speed, memory and load time."""
