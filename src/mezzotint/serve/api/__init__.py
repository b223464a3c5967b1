"""The HTTP surfaces, each a translation of its wire schema, and what they share. None queues or retries."""
