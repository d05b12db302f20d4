"""The command line: `mutransfer explain | check | train | sweep | transfer`. Imports torch only where a verb needs it."""

from mutransfer.cli.dispatch import main

__all__ = ["main"]
