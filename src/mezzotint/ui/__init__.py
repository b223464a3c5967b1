"""The page people draw with: a client of the service's HTTP routes, and nothing else.

Read `page.py` for what is on it, `watching.py` for how it stays current, `service.py` for what it asks.
"""
