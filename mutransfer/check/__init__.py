"""Does it hold? The coordinate check: every parameter's own contribution against the law, width by width."""

from mutransfer.check.coordinates import coord_check
from mutransfer.check.report import CoordReport

__all__ = ["CoordReport", "coord_check"]
