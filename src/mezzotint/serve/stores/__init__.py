"""What outlives a request: jobs, keys and usage in SQL, pictures in a folder or a bucket."""
