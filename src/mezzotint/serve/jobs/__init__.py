"""Detached work: claimed from the store, drawn through the gateway, told as events."""
