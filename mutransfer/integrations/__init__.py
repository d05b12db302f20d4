"""Doors: a plan's groups, clipping and schedule guard in the loops of others."""
