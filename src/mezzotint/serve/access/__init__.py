"""Who may, and how much: keys, rates, quotas. Knows the database, nothing of engines."""
