"""The engine: which rows share the next step (`scheduler`), what a step costs (`cost`), the loop (`engine`)."""
