"""Load generators, judges and reports: of the engine, of a backend's passes, of the service over HTTP."""
