"""The engine: which rows share a step (`scheduler`), what it costs (`cost`), the loop (`engine`)."""
