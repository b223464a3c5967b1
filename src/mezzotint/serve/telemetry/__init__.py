"""Metrics, traces and logs. None of them ever holds a prompt or a picture."""
