"""Reference models in the standard parameterization, sized by `width`."""

from mutransfer.train.models.registry import MODELS, build_model

__all__ = ["MODELS", "build_model"]
