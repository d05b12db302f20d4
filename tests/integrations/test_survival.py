"""A converted model lives through what training does to models: copies, files, meta, compile, export, recomputation."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing
from torch.optim.swa_utils import AveragedModel
from toy_models import Block, Decoder, token_batches, token_loss

import mutransfer as mt
from mutransfer.errors import ConfigError

IDS, TARGETS = token_batches(1)[0]


@pytest.fixture(params=["folded", "explicit"])
def converted(request):
    torch.manual_seed(0)
    model = Decoder(32, heads=2)  # head_dim grows: softmax scales are set too
    plan = mt.parameterize(model, "mup-table9", base=16, factory=make, form=request.param)
    return model, plan


def make(width: int) -> nn.Module:
    return Decoder(width, heads=2)


def resumed(plan) -> nn.Module:
    """The same call on a fresh model, as a resumed run makes it."""
    torch.manual_seed(1)
    model = make(32)
    mt.parameterize(model, "mup-table9", base=16, factory=make, form=plan.form)
    return model


def step(model: nn.Module, plan) -> list[torch.Tensor]:
    """The model after one step of training."""
    optimizer = plan.make_optimizer(model, lr=2**-6, weight_decay=0.1)
    token_loss(model, (IDS, TARGETS)).backward()
    plan.clip_grad_norm_(model, 0.3)
    optimizer.step()
    return [p.detach().clone() for p in model.parameters()]


def assert_equal(one, other):
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


class TestCopies:
    def test_deepcopy_and_pickle_train_on_as_the_model(self, converted):
        model, plan = converted
        others = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
        expected = step(model, plan)
        for other in others:
            assert_equal(step(other, plan), expected)

    @pytest.mark.parametrize("assign", [False, True])
    def test_a_file_of_its_state_is_the_model(self, converted, assign, tmp_path):
        model, plan = converted
        save_file(model.state_dict(), tmp_path / "model.safetensors")
        other = resumed(plan)
        assert not torch.equal(other(IDS), model(IDS)), "or loading would say nothing"
        other.load_state_dict(load_file(tmp_path / "model.safetensors"), assign=assign)
        assert torch.equal(other(IDS), model(IDS))
        assert_equal(step(other, plan), step(model, plan))

    def test_an_average_computes_as_the_model(self, converted):
        model, plan = converted
        average = AveragedModel(model)
        expected = model(IDS)
        average.update_parameters(model)
        assert torch.equal(average(IDS), expected)
        assert len(plan.param_groups(average, lr=1.0)) == len(plan.param_groups(model, lr=1.0))

    def test_control_a_plain_model_of_the_same_values_computes_something_else(self, converted):
        model, _ = converted
        plain = make(32)
        plain.load_state_dict(model.state_dict())
        assert not torch.equal(plain(IDS), model(IDS)), "its softmax scale is the class's own"


@pytest.mark.parametrize("form", ["folded", "explicit"])
def test_from_meta_to_values_by_apply(form):
    """init="table" draws every tensor from its name and the seed: the same whatever held it before."""

    def drawn(model: nn.Module, plan) -> nn.Module:
        torch.manual_seed(3)
        return plan.apply(model)

    plan = mt.plan(make(32), "mup-table9", base=16, factory=make, form=form, init="table")
    with torch.device("meta"):
        empty = make(32)
    model = drawn(empty.to_empty(device="cpu"), plan)
    whole = drawn(make(32), plan)
    assert_equal(model.parameters(), whole.parameters())
    assert torch.equal(model(IDS), whole(IDS))


def graph_of(model: nn.Module) -> list[str]:
    graphs = []

    def keep(graph, _):
        graphs.append([f"{node.op} {node.target}" for node in graph.graph.nodes if node.op == "call_function"])
        return graph.forward

    torch._dynamo.reset()
    torch.compile(model, backend=keep, fullgraph=True)(IDS)
    (graph,) = graphs
    return graph


class TestCompile:
    def test_the_folded_forms_graph_is_the_plain_models_and_the_explicit_one_has_no_break(self):
        plain, graphs = graph_of(Decoder(32)), {}
        for form in ("folded", "explicit"):
            model = Decoder(32)
            mt.parameterize(model, "mup", base=16, factory=Decoder, form=form)
            graphs[form] = graph_of(model)
        assert graphs["folded"] == plain
        assert len(graphs["explicit"]) > len(plain)

    def test_torch_export_keeps_the_function(self, converted):
        model, _ = converted
        program = torch.export.export(model, (IDS,))
        torch.testing.assert_close(program.module()(IDS), model(IDS))

    def test_recomputed_activations_train_alike(self, converted):
        model, plan = converted
        other = copy.deepcopy(model)
        apply_activation_checkpointing(other, check_fn=lambda module: isinstance(module, Block))
        assert any("_checkpoint_wrapped_module" in name for name, _ in other.named_parameters())
        assert_equal(step(other, plan), step(model, plan))


@pytest.mark.parametrize(
    ("wrap", "words"),
    [
        (torch.compile, "is compiled.*_orig_mod"),
        (nn.DataParallel, "wrapped in DataParallel"),
        (AveragedModel, "Averaged"),
    ],
)
def test_what_is_wrapped_before_its_plan_is_refused(wrap, words):
    with pytest.raises(ConfigError, match=f"{words}.*afterwards"):
        mt.parameterize(wrap(Decoder(32)), "mup", base=16, factory=Decoder)
