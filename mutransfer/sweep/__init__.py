"""Runs grids of trials: overrides become hashed points, points wait in a store, and workers empty it."""
