"""A branch's terminal holds its multiplier: shown numerically, for outputs and gradients, or it is not believed."""

from __future__ import annotations

import dataclasses

import pytest
import residual_models as zoo
import torch
from torch import nn
from torch.nn import functional
from transformers import (
    BertConfig,
    BertForMaskedLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

from mutransfer.errors import RoleError
from mutransfer.planning.branches import find_branches
from mutransfer.planning.trace import trace
from mutransfer.planning.verify import TOLERANCE, verify

BLOCKS = [
    zoo.PreNorm,
    zoo.PostNorm,
    zoo.DeepNorm,
    zoo.Sandwich,
    zoo.Parallel,
    zoo.ParallelInARow,
    zoo.LayerScale,
    zoo.TanhGated,
    zoo.GatedEnd,
    zoo.TokenShift,
    zoo.ScaledSkip,
    zoo.CentredPostNorm,
    zoo.Pooled,
    zoo.Experts,
]
DECODER = {
    "vocab_size": 31,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


def stack(block, depth=2, **options):
    torch.manual_seed(0)
    return zoo.Stack(block, depth, **options), zoo.ids()


def in_blocks(model, inputs):
    return [b for b in find_branches(trace(model, inputs)) if b.module.startswith("blocks.") and b.inside is None]


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.__name__)
def test_every_branch_found_is_verified(block):
    model, inputs = stack(block)
    verdicts = verify(model, inputs, in_blocks(model, inputs))
    assert verdicts
    assert all(verdict.verified for verdict in verdicts), verdicts
    assert max(verdict.error for verdict in verdicts) < TOLERANCE


def test_branches_in_place_that_end_in_a_gain_of_zero_are_verified():
    torch.manual_seed(0)
    model = zoo.ResNet(2)
    branches = find_branches(trace(model, zoo.images()))
    assert len(branches) == 5
    assert all(verdict.verified for verdict in verify(model, zoo.images(), branches))


WRONG = {
    "the bias left out": (zoo.PreNorm, lambda names: [n for n in names if not n.endswith("bias")]),
    "the layer in front": (zoo.PreNorm, lambda names: [n.replace(".o.", ".q.").replace("down", "up") for n in names]),
    "one of two summands left out": (zoo.Parallel, lambda names: [n for n in names if "mlp" not in n]),
    "the norm in front of the branch": (zoo.PreNorm, lambda names: [names[0].partition(".att")[0] + ".norm1.weight"]),
    "another layer too": (zoo.PreNorm, lambda names: [*names, "embed.weight"]),
    "the norm on the stream": (zoo.PostNorm, lambda names: [*names, ".".join(names[0].split(".")[:2]) + ".norm1.bias"]),
    "one expert left out": (zoo.Experts, lambda names: [n for n in names if "shared" not in n]),
    "the number that a gate is tanh of": (zoo.TanhGated, lambda names: ["blocks.0.gate1"]),
    "the layer below a layer scale too": (zoo.LayerScale, lambda names: [*names, "blocks.0.mlp.down.weight"]),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_control_a_wrong_set_of_terminals_is_rejected(mistake):
    block, change = WRONG[mistake]
    model, inputs = stack(block)
    right = in_blocks(model, inputs)
    wrong = dataclasses.replace(right[0], terminals=tuple(change(right[0].terminals)))
    assert wrong.terminals != right[0].terminals
    first, *others = verify(model, inputs, [wrong, *right[1:]])
    assert not first.verified
    assert first.error > 1e-4
    assert first.why
    rest = [verdict for verdict in others if not set(verdict.branch.terminals) & set(wrong.terminals)]
    assert rest or len(right) < 3, "only branches that hold the same tensor fail with it"
    assert all(verdict.verified for verdict in rest)


def test_control_an_offset_gain_taken_for_a_plain_one_is_rejected():
    model, inputs = stack(zoo.Sandwich)
    wrong = [dataclasses.replace(b, offset=frozenset()) for b in in_blocks(model, inputs)]
    assert not any(verdict.verified for verdict in verify(model, inputs, wrong))


def test_an_end_that_no_factor_passes_through_is_not_verified_and_says_why():
    model, inputs = stack(zoo.TanhEnd)
    for verdict in verify(model, inputs, in_blocks(model, inputs)):
        assert not verdict.verified
        assert "'tanh'" in verdict.why


def test_shared_blocks_are_verified_together_and_not_one_without_the_others():
    model, inputs = stack(zoo.PostNorm, 3, shared=True)
    branches = in_blocks(model, inputs)
    assert len(branches) == 6
    assert all(verdict.verified for verdict in verify(model, inputs, branches))
    assert not any(verdict.verified for verdict in verify(model, inputs, branches[:2]))


class Unread(nn.Module):
    """Computes a residual sum and returns something else."""

    def __init__(self, times=1.0):
        super().__init__()
        self.block, self.readout, self.times = zoo.PreNorm(), nn.Linear(zoo.WIDTH, 3), times

    def forward(self, x):
        x = x + self.block.attention(self.block.norm1(x)) * self.times
        x + self.block.mlp(self.block.norm2(x)) * self.times
        return self.readout(x.detach())


def test_a_branch_that_the_output_leaves_out_is_seen_on_the_stream():
    inputs = (torch.randn(2, 3, zoo.WIDTH),)
    branches = find_branches(trace(Unread(), inputs))
    assert len(branches) == 2
    assert all(verdict.verified for verdict in verify(Unread(), inputs, branches))
    wrong = [dataclasses.replace(b, terminals=b.terminals[:1]) for b in branches]
    assert not any(verdict.verified for verdict in verify(Unread(), inputs, wrong))


class Biased(nn.Module):
    """Scores with a learned bias, in a fused kernel that passes no gradient on to it."""

    def __init__(self):
        super().__init__()
        self.bias, self.o = nn.Parameter(torch.randn(1, 1, 3, 3)), nn.Linear(zoo.WIDTH, zoo.WIDTH)

    def forward(self, x):
        heads = x.unflatten(-1, (2, -1)).transpose(1, 2)
        read = functional.scaled_dot_product_attention(heads, heads, heads, self.bias)
        return self.o(read.transpose(1, 2).flatten(2))


class NeverTrained(nn.Module):
    """A tower that runs without gradients, in front of one that is trained."""

    def __init__(self):
        super().__init__()
        self.tower, self.block = zoo.PreNorm(), zoo.PreNorm()
        self.tower.attention = Biased()

    def forward(self, x):
        with torch.no_grad():
            x = self.tower(x)
        return self.block(x)


def test_branches_that_run_without_gradients_are_verified():
    torch.manual_seed(0)
    model, inputs = NeverTrained(), (torch.randn(2, 3, zoo.WIDTH),)
    branches = find_branches(trace(model, inputs))
    assert [branch.module for branch in branches] == ["tower", "tower", "block", "block"]
    assert all(verdict.verified for verdict in verify(model, inputs, branches))
    wrong = [dataclasses.replace(b, terminals=b.terminals[:1]) for b in branches[:2]]
    assert not any(verdict.verified for verdict in verify(model, inputs, wrong)), "a bias is missing"


def test_a_branch_that_moves_nothing_is_not_verified():
    inputs = (torch.randn(2, 3, zoo.WIDTH),)
    branches = find_branches(trace(Unread(times=0.0), inputs))
    verdicts = verify(Unread(times=0.0), inputs, branches)
    assert verdicts
    assert not any(verdict.verified for verdict in verdicts)
    assert {verdict.why for verdict in verdicts} == {"nothing that the model computes moves with it"}


class Faint(zoo.PreNorm):
    """Draws its weights so small that next to nothing passes."""

    def __init__(self):
        super().__init__()
        with torch.no_grad():
            for parameter in (*self.attention.parameters(), *self.mlp.parameters()):
                parameter.mul_(1e-4)


def test_weights_that_pass_next_to_nothing_on_are_made_larger():
    model, inputs = stack(Faint)
    assert all(verdict.verified for verdict in verify(model, inputs, in_blocks(model, inputs)))


def test_the_model_and_the_random_state_stay_as_they_are():
    model, inputs = stack(zoo.LayerScale)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    verify(model, inputs, in_blocks(model, inputs))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_default_dtype() == torch.float32
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_model_without_values_is_refused():
    model, inputs = stack(zoo.PreNorm)
    branches = in_blocks(model, inputs)
    with pytest.raises(RoleError, match="no values to verify"):
        verify(model.to("meta"), inputs, branches)


class Masked(zoo.PreNorm):
    """Asks for a number that float32 does not have, and for float32."""

    def forward(self, x):
        mask = torch.full(x.shape[:2], torch.finfo(x.dtype).min).to(torch.float32)
        return x + self.mlp(self.norm2(x)) * mask.exp().add(1.0)[..., None]


def test_precision_is_float64_whatever_is_asked_for():
    model, inputs = stack(Masked)
    verdicts = verify(model, inputs, in_blocks(model, inputs))
    assert [verdict.verified for verdict in verdicts] == [True, True]
    assert max(verdict.error for verdict in verdicts) < 1e-12


class Scores(nn.Module):
    """Blocks, the scores of which are masked, and the best positions chosen by them, as a detector's queries are: the
    first two positions see the same and score alike."""

    def __init__(self, blocks):
        super().__init__()
        self.blocks, self.score = blocks, nn.Linear(5, 1)

    def forward(self, ids):
        x = self.blocks(ids)
        x = torch.cat([x[:, :1], x], dim=1)
        best = self.score(x).squeeze(-1).topk(1).indices
        later = torch.arange(x.shape[1]) > 2
        return x.gather(1, best[..., None].expand(-1, -1, x.shape[-1])), x.masked_fill(later[:, None], -torch.inf)


def test_masked_scores_and_a_choice_among_equals_do_not_stand_in_the_way():
    blocks, inputs = stack(zoo.PreNorm)
    model = Scores(blocks)
    verdicts = verify(model, inputs, in_blocks(model, inputs))
    assert len(verdicts) > 1
    assert all(verdict.verified for verdict in verdicts), [verdict.why for verdict in verdicts]


def test_control_a_wrong_terminal_is_rejected_behind_masked_scores_too():
    blocks, inputs = stack(zoo.PreNorm)
    model = Scores(blocks)
    first, *_ = in_blocks(model, inputs)
    norm = next(name for name, _ in model.named_parameters() if "norm" in name)
    (verdict,) = verify(model, inputs, [dataclasses.replace(first, terminals=(norm,))])
    assert not verdict.verified


class Overwrites(zoo.PreNorm):
    """Writes over what the backward pass needs."""

    def forward(self, x):
        h = self.norm1(x).exp()
        out = x + self.mlp(h)
        h.zero_()
        return out


def test_a_model_that_does_not_run_backwards_is_refused():
    model, inputs = stack(Overwrites)
    with pytest.raises(RoleError, match=r"cannot be verified, since its forward and backward pass in float64 fail"):
        verify(model, inputs, in_blocks(model, inputs))


def text(model):
    ids = torch.arange(3, 9)[None]
    encoder_decoder = isinstance(model, T5ForConditionalGeneration)
    return {"input_ids": ids, "decoder_input_ids": ids} if encoder_decoder else {"input_ids": ids}


# The number of branches in two blocks (an encoder's and a decoder's, for T5), and the kinds of their ends.
TRANSFORMERS = {
    "llama": (LlamaForCausalLM, LlamaConfig(**DECODER, num_key_value_heads=1), 4, {"plain"}),
    "gpt2": (GPT2LMHeadModel, GPT2Config(vocab_size=31, n_embd=16, n_layer=2, n_head=2), 4, {"plain"}),
    "bert": (BertForMaskedLM, BertConfig(**DECODER), 4, {"post-norm"}),
    "gemma2": (Gemma2ForCausalLM, Gemma2Config(**DECODER, num_key_value_heads=1, head_dim=8), 4, {"norm-ended"}),
    "gpt_neox": (GPTNeoXForCausalLM, GPTNeoXConfig(**DECODER), 2, {"parallel"}),
    "mixtral": (
        MixtralForCausalLM,
        MixtralConfig(**DECODER, num_key_value_heads=1, num_local_experts=3),
        4,
        {"plain", "experts"},
    ),
    "vit": (
        ViTForImageClassification,
        ViTConfig(**{k: v for k, v in DECODER.items() if k != "vocab_size"}, image_size=16, patch_size=8),
        4,
        {"plain"},
    ),
    "t5": (
        T5ForConditionalGeneration,
        T5Config(vocab_size=31, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, decoder_start_token_id=0),
        10,
        {"plain"},
    ),
}


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_unmodified_transformers_models(name):
    build, config, count, kinds = TRANSFORMERS[name]
    torch.manual_seed(0)
    model = build(config)
    inputs = {"pixel_values": torch.randn(1, 3, 16, 16)} if name == "vit" else text(model)
    branches = find_branches(trace(model, inputs))
    assert len(branches) == count
    assert {branch.kind for branch in branches} == kinds
    assert all(verdict.verified for verdict in verify(model, inputs, branches))
