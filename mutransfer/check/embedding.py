"""Whether the embedding must be raised for a depth check.

Where the base's branches together are larger than the stream that they are added to, what the stream is made of depends
on the depth whatever the rule: more and smaller branches add up to less. muP's own embedding_mult mends that, and
changes no exponent. Measured on a sandwich decoder with branches of the embedding's size, CompleteP: the readout's
change -0.24 at embedding_mult 1, -0.10 at 2, -0.04 at 4.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from mutransfer.check.measure import Snapshot
from mutransfer.planning.templates import Templates
from mutransfer.rules.depth import Place


def branches_over_stream(shown: Snapshot, places: Mapping[str, Place], templates: Templates) -> float:
    """Root of the summed squares of all branches over the RMS of the stream before them; 0 where no branch is seen.

    Args:
        shown: at init, at the base.
        places: template -> place.
        templates: how names are read.
    """
    names = [use.parameter for use in shown.uses]
    ended = [one for one in shown.sums if one.after >= 0]
    branches = [one for one in ended if places.get(templates.of(names[one.after])) is Place.TERMINAL]
    if not branches or not branches[0].stream:
        return 0.0
    return math.hypot(*(one.branch for one in branches)) / branches[0].stream
