"""A branch on some entries of a stream is one of the stream where these are put back; so is one on learned queries."""

from __future__ import annotations

import piece_models as pieces
import pytest
import residual_models as zoo
import torch

from mutransfer.planning.branches import find_branches, stream_norms
from mutransfer.planning.places import assign_places, unexplained
from mutransfer.planning.sites import attention_sites
from mutransfer.planning.stacks import compare_depths
from mutransfer.planning.trace import trace
from mutransfer.planning.verify import TOLERANCE, verify
from mutransfer.rules.depth import Place

ENDS = {
    pieces.FirstApart: ["attention.o", "mlp.down"],
    pieces.CutAfterwards: ["attention.o", "mlp.down"],
    pieces.TwoKinds: ["attention.o", "mlp.down", "other.down"],
    pieces.ChosenRows: ["attention.o", "mlp.down", "other.down"],
}
SEEN = (torch.randn(2, 4, zoo.WIDTH, generator=torch.Generator().manual_seed(0)),)


def in_blocks(traced):
    return [branch for branch in find_branches(traced) if branch.module.startswith("blocks.")]


def ends(branches):
    return [branch.terminals[0].removesuffix(".weight") for branch in branches]


def places_of(build, inputs):
    """Every parameter's place at depth 3, and those that no rule is known for."""
    traced, deep = (trace(build(depth), inputs) for depth in (2, 3))
    templates, branches = compare_depths(traced.uses, deep.uses).templates, in_blocks(deep)
    found = assign_places(deep, branches, templates)
    return found, unexplained(found, deep, branches, templates)


@pytest.mark.parametrize("block", ENDS, ids=lambda block: block.__name__)
def test_a_branch_on_a_part_of_the_stream_is_found_verified_and_all_of_the_block_has_its_place(block):
    torch.manual_seed(0)
    model = zoo.Stack(block, 2)
    found = in_blocks(trace(model, zoo.ids()))
    assert ends(found) == [f"blocks.{i}.{end}" for i in range(2) for end in ENDS[block]]
    assert all(branch.inside is None for branch in found)
    assert max(verdict.error for verdict in verify(model, zoo.ids(), found)) < TOLERANCE
    assert places_of(lambda depth: zoo.Stack(block, depth), zoo.ids())[1] == ()


def test_norms_of_the_parts_that_a_stream_is_put_together_of_are_on_it():
    traced = trace(zoo.Stack(pieces.TwoKinds, 2), zoo.ids())
    norms = stream_norms(traced, find_branches(traced))
    assert {name for name in norms if name.startswith("blocks.0.")} == {
        "blocks.0.norm1.weight",
        *(f"blocks.0.{norm}.{kind}" for norm in ("norm2", "norm3") for kind in ("weight", "bias")),
    }


@pytest.mark.parametrize("block", [pieces.Steps, pieces.Crossed], ids=lambda block: block.__name__)
def test_control_a_part_plus_what_is_made_of_another_part_is_no_branch(block):
    assert in_blocks(trace(zoo.Stack(block, 2), zoo.ids())) == []


@pytest.mark.parametrize("samples", [1, 2])
def test_learned_queries_that_attend_to_one_another_first_have_that_branch_too(samples):
    torch.manual_seed(0)
    model, seen = pieces.FirstQueries(2), (SEEN[0][:samples],)
    found = find_branches(trace(model, seen))
    assert ends(found) == ["blocks.0.attention.o", "blocks.0.o", "blocks.1.attention.o", "blocks.1.o"]
    assert max(verdict.error for verdict in verify(model, seen, found)) < TOLERANCE
    places, lost = places_of(pieces.FirstQueries, seen)
    assert lost == ()
    assert places["blocks.0.attention.q.weight"] is places["blocks.0.norm1.weight"] is Place.INNER
    assert places["queries"] is places["norm.weight"] is Place.OUTSIDE


def test_control_a_sum_of_parameters_is_no_stream():
    assert in_blocks(trace(zoo.Stack(pieces.Merged, 2), zoo.ids())) == []


def test_a_number_on_learned_queries_belongs_to_the_softmax_scale_as_on_those_of_later_blocks():
    sites = attention_sites(trace(pieces.FirstQueries(2), SEEN))
    reading = [site for site in sites if not site.module.endswith("attention")]
    assert [(site.module, site.scale) for site in reading] == [("blocks.0", 0.5), ("blocks.1", 0.5)]
