"""Trains: reference models, data that needs no download, one plain loop."""
