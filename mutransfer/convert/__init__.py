"""parameterize(): the one call. Makes the Plan and applies it."""

from mutransfer.convert.export import export
from mutransfer.convert.parameterize import Plan, parameterize, plan

__all__ = ["Plan", "export", "parameterize", "plan"]
