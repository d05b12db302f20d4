"""`mutransfer.export` gives back the plain class with the same function, in the model's own code and file format."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional
from toy_models import Attending, Convolutional, Decoder, Experts, Recurrent, SharedWeight

import mutransfer as mt
from mutransfer.apply.multipliers import Scaled
from mutransfer.errors import ConfigError, RoleError

IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
FORMS = ("auto", "explicit")


def close(one: torch.Tensor, other: torch.Tensor) -> bool:
    return bool((one - other).norm() <= 1e-6 * one.norm())


def is_plain(module: nn.Module) -> bool:
    return not any(
        isinstance(m, Scaled) or any("mutransfer" in key for key in vars(m)) or "mutransfer" in type(m).__module__
        for m in module.modules()
    )


def converted(make, width=32, base=16, **options) -> nn.Module:
    torch.manual_seed(0)
    model = make(width)
    mt.parameterize(model, options.pop("table", "mup"), base=base, factory=options.pop("factory", make), **options)
    with torch.no_grad():  # as training leaves it
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model.eval()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("table", ["mup", "mup-table9"])
@pytest.mark.parametrize("kind", [Decoder, Convolutional, Recurrent, Attending, Experts, SharedWeight])
def test_the_copy_is_plain_and_computes_the_same(kind, table, form):
    sizes = {"Decoder": None, "Convolutional": (4, 3, 8, 8)}.get(kind.__name__, (4, 6, 5))
    inputs = IDS if sizes is None else torch.randn(sizes, generator=torch.Generator().manual_seed(0))
    model = converted(kind, table=table, form=form, example_inputs=inputs)
    plain = mt.export(model, example_inputs=inputs)
    assert is_plain(plain)
    assert close(model(inputs), plain(inputs))
    fresh = kind(32).eval()
    fresh.load_state_dict(plain.state_dict())
    assert close(model(inputs), fresh(inputs))


def test_control_the_plain_class_computes_something_else_from_the_explicit_forms_weights():
    model = converted(Decoder, form="explicit")
    fresh = Decoder(32)
    fresh.load_state_dict(model.state_dict())
    assert not close(model(IDS), fresh(IDS))
    assert not is_plain(model)


def test_the_given_model_is_left_as_it_was():
    model = converted(Decoder, form="explicit", hyperparameters={"output_mult": 3.0})
    before, logits = copy.deepcopy(model.state_dict()), model(IDS)
    mt.export(model.train())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(model.eval()(IDS), logits)
    assert isinstance(model.readout, Scaled)


def test_an_exported_model_can_be_parameterized_again_and_is_pickled_without_the_package():
    plain = mt.export(converted(nn_mlp, form="explicit"))
    check = "import pickle, sys; pickle.load(sys.stdin.buffer); assert not any('mutransfer' in m for m in sys.modules)"
    subprocess.run([sys.executable, "-c", check], input=pickle.dumps(plain), check=True, capture_output=True)
    mt.parameterize(plain, "mup", base=16, factory=nn_mlp, init="keep")


def nn_mlp(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 3))


def grown_heads(kind, config, **options) -> nn.Module:
    """A transformers model of which head_dim grows with the width."""
    torch.manual_seed(0)
    model = kind(config)
    mt.parameterize(model, "mup", base=16, scale="head_dim", **options)
    return model.eval()


def llama(width: int = 32):
    from transformers import LlamaConfig

    return LlamaConfig(
        hidden_size=width, intermediate_size=2 * width, num_attention_heads=2, num_key_value_heads=1, vocab_size=31,
        num_hidden_layers=2, tie_word_embeddings=False,
    )  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_transformers_models_are_saved_and_loaded_as_they_are_written(form, tmp_path):
    """The softmax scale that was set is recomputed by the class: the queries carry the difference."""
    from transformers import LlamaForCausalLM

    model = grown_heads(LlamaForCausalLM, llama(), form=form, hyperparameters={"attn_mult": 2.0})
    plain = mt.export(model)
    assert plain.model.layers[0].self_attn.scaling == 16**-0.5 != model.model.layers[0].self_attn.scaling
    plain.save_pretrained(tmp_path)
    again = LlamaForCausalLM.from_pretrained(tmp_path).eval()
    assert close(model(IDS).logits, again(IDS).logits)
    model.save_pretrained(tmp_path / "unexported")
    control = LlamaForCausalLM.from_pretrained(tmp_path / "unexported").eval()
    assert not close(model(IDS).logits, control(IDS).logits)


def test_a_gain_that_enters_as_one_plus_w_carries_its_branch(tmp_path):
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    config = Gemma2Config(
        hidden_size=32, intermediate_size=64, num_attention_heads=4, num_key_value_heads=2, head_dim=8, vocab_size=31,
        num_hidden_layers=4, tie_word_embeddings=False, query_pre_attn_scalar=8,
    )  # fmt: skip
    model = Gemma2ForCausalLM(config)
    mt.parameterize(model, "completep", base=16, base_depth=2, form="explicit")
    assert any(vars(m).get("_mutransfer_output", 1.0) != 1.0 for m in model.modules()), "or this test says nothing"
    plain = mt.export(model.eval())
    assert is_plain(plain)
    plain.save_pretrained(tmp_path)
    again = Gemma2ForCausalLM.from_pretrained(tmp_path).eval()
    assert close(model(IDS).logits, again(IDS).logits)


TIMM = """
import torch, mutransfer as mt
from zoo.from_timm import load_timm
timm = load_timm()
torch.manual_seed(0)
image = torch.randn(2, 3, 32, 32)
def make(width):
    return timm.create_model("vit_tiny_patch16_224", img_size=32, embed_dim=width, depth=2, num_heads=width // 8,
                             num_classes=10)
model = make(32).eval()
mt.parameterize(model, "mup", base=16, factory=make, form="explicit", example_inputs=image)
plain, fresh = mt.export(model, example_inputs=image), make(32).eval()
control = (fresh.load_state_dict(model.state_dict()), fresh(image))[1]
fresh.load_state_dict(plain.state_dict())
expected = model(image)
assert (fresh(image) - expected).norm() <= 1e-6 * expected.norm() < (control - expected).norm()
"""


@pytest.mark.slow
def test_timm_models_load_the_exported_weights():
    """In a process of its own, where torchvision, which timm imports, may be a stand-in."""
    scripts = Path(__file__).parents[2] / "scripts"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", TIMM], cwd=scripts, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_tied_tensor_with_two_multipliers_has_no_plain_form():
    def make(width: int) -> nn.Module:
        return Decoder(width, tied=True)

    with pytest.raises(
        RoleError, match=r"'embed.weight' is one tensor that is multiplied by .*'readout.weight'.*Untie"
    ):
        mt.export(converted(make, form="explicit"))
    folded = converted(make, form="folded")
    assert close(folded(IDS), mt.export(folded)(IDS))


class ReadByFunction(nn.Module):
    """The embedding's tensor is the readout too, but no module owns that use."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed, self.norm = nn.Embedding(31, width), nn.LayerNorm(width)
        self.hidden = nn.Linear(width, width)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return functional.linear(self.norm(self.hidden(self.embed(ids))), self.embed.weight)


def test_a_use_that_no_module_owns_is_found_by_comparing_the_outputs():
    model = converted(ReadByFunction, hyperparameters={"embedding_mult": 4.0})
    with pytest.raises(RoleError, match=r"multiplier of 'embed' change the outputs by .* used elsewhere too"):
        mt.export(model)


def test_the_rows_of_fused_queries_carry_a_softmax_scale_that_was_set():
    def make(width: int) -> nn.Module:
        return Decoder(width, heads=2)

    model = converted(make)
    plain = mt.export(model)
    assert plain.blocks[0].softmax_scale == 16**-0.5 != model.blocks[0].softmax_scale
    fresh = make(32).eval()
    fresh.load_state_dict(plain.state_dict())
    assert close(fresh(IDS), model(IDS))


def test_rows_kept_below_a_norm_are_refused():
    def make(width: int) -> nn.Module:
        return nn.Sequential(nn.Embedding(31, width, max_norm=1.0), nn.Linear(width, 3))

    own = {"embedding_mult": 2.0}
    model = converted(make, hyperparameters=own, form="explicit", roles={"0.weight": "input"})
    with pytest.raises(RoleError, match=r"'0' is multiplied and keeps its rows below max_norm.*max_norm=None"):
        mt.export(model)


def test_what_is_no_plain_parameterized_model_gets_one_sentence():
    model = converted(nn_mlp)
    for wrong, words in (
        (nn_mlp(32), "carries no plan"),
        (torch.compile(model), r"is compiled.*_orig_mod"),
        (nn.DataParallel(model), r"wrapped in DataParallel.*model\.module"),
        (copy.deepcopy(model).to("meta"), "on the meta device"),
        (list(model.parameters()), "no nn.Module"),
    ):
        with pytest.raises(ConfigError, match=words):
            mt.export(wrong)


def test_inputs_that_do_not_fit_are_called_that():
    model = converted(nn_mlp, form="explicit")
    with pytest.raises(ConfigError, match=r"forward pass failed on the example inputs.*example_inputs="):
        mt.export(model, example_inputs=torch.zeros(2, 5))
