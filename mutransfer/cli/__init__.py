"""The command line: `mutransfer explain | check | train | sweep | transfer`. Only the verbs import torch."""

from mutransfer.cli.dispatch import main

__all__ = ["main"]
