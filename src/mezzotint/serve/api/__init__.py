"""The HTTP surfaces. Each module translates one wire schema, and none draws, queues or retries."""
