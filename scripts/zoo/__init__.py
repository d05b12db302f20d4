"""Every model there is, converted and checked."""
