"""Is the candidate worse than its baseline? Policies, verdicts and how they are written; it reads records only."""
