"""Load generators, judges and reports: clients of the server, never of its insides."""
