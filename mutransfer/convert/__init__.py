"""parameterize(): the one call. Makes the Plan and applies it."""

from mutransfer.convert.parameterize import Plan, parameterize, plan

__all__ = ["Plan", "parameterize", "plan"]
