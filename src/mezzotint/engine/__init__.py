"""The engine: who is here (`scheduler`), which rows share a step (`rules`), what it costs (`cost`), the loop
(`engine`)."""
