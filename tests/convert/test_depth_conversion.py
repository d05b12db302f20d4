"""Depth tables on whole models: both forms train alike, nothing changes at the base, the unproven is refused."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import residual_models as zoo
import torch
from torch import nn
from torch.nn import functional
from transformers import (
    AlbertConfig,
    AlbertModel,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

import mutransfer as mt
from mutransfer.rules.depth import Place

BASE, DEPTH, STEPS, DECAY, EPS = 2, 6, 20, 0.1, 1e-6


def stack(block, depth):
    torch.manual_seed(0)
    return zoo.Stack(block, depth).double().eval()


def converted(block, table, optimizer, form):
    model = stack(block, DEPTH)
    plan = mt.parameterize(
        model, table, base=stack(block, BASE), optimizer=optimizer, form=form, example_inputs=zoo.ids()
    )
    return model, plan


def undecayed(model, plan):
    """Offset gains apart: in the folded form they cannot be decayed."""
    offset = [p for name, p in model.named_parameters() if plan[name].offset]
    rest = [p for name, p in model.named_parameters() if not plan[name].offset]
    groups = [{"params": rest}] + [{"params": offset, "weight_decay": 0.0}] * bool(offset)
    return {"groups": groups, "weight_decay": DECAY}


def train(model, plan, optimizer, clip=None):
    options = {"momentum": 0.9} if optimizer == "sgd" else {"eps": EPS}
    stepper = plan.make_optimizer(model, lr=0.02, **undecayed(model, plan), **options)
    losses = []
    for _ in range(STEPS):
        loss = functional.cross_entropy(model(*zoo.ids()).flatten(0, 1), torch.arange(10) % 5)
        stepper.zero_grad()
        loss.backward()
        norm = (clip or plan.clip_grad_norm_)(model, 0.05)
        assert norm > 0.05, "else clipping is not tested"
        stepper.step()
        losses.append(loss.item())
    return torch.tensor(losses, dtype=torch.float64)


def difference(block, table, optimizer, **options):
    explicit = converted(block, table, optimizer, "explicit")
    folded, plan = converted(block, table, optimizer, "folded")
    change = options.pop("change", None)
    losses, others = train(*explicit, optimizer), train(folded, change(plan) if change else plan, optimizer, **options)
    assert losses[-1] != losses[0]
    return ((losses - others).abs() / losses.abs()).max().item()


def with_terminals(**changes):
    """The plan with other factors for what ends a branch."""

    def change(plan):
        lines = tuple(
            replace(line, **{k: getattr(line, k) * v for k, v in changes.items()})
            if line.place is Place.TERMINAL
            else line
            for line in plan
        )
        return replace(plan, params=lines)

    return change


@pytest.mark.parametrize("block", [zoo.PreNorm, zoo.PostNorm, zoo.Sandwich, zoo.Parallel], ids=lambda b: b.__name__)
@pytest.mark.parametrize("table", ["completep", pytest.param("depth-mup", marks=pytest.mark.slow)])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_folded_and_explicit_train_alike(block, table, optimizer):
    assert difference(block, table, optimizer) < 1e-9


@pytest.mark.parametrize("column", ["eps", "weight_decay"])
def test_control_they_do_not_where_a_terminals_column_is_not_rescaled(column):
    back = {"eps": 1e4, "weight_decay": BASE / DEPTH}[column]
    assert difference(zoo.PreNorm, "completep", "adamw", change=with_terminals(**{column: back})) > 1e-7


def test_control_they_do_not_under_torchs_own_clipping():
    def stock(model, norm):
        return nn.utils.clip_grad_norm_(model.parameters(), norm)

    assert difference(zoo.PreNorm, "completep", "sgd", clip=stock) > 1e-7


@pytest.mark.parametrize("table", ["completep", "depth-mup"])
def test_the_explicit_form_multiplies_every_branch_where_it_is_added(table):
    model, _ = converted(zoo.PreNorm, table, "adamw", "explicit")
    by_hand, c = stack(zoo.PreNorm, DEPTH), (DEPTH / BASE) ** (-1 if table == "completep" else -0.5)
    for layer in by_hand.blocks:
        for end in (layer.attention, layer.mlp):
            end.register_forward_hook(lambda _module, _args, out: out * c)
    torch.testing.assert_close(model(*zoo.ids()), by_hand(*zoo.ids()), rtol=1e-12, atol=1e-12)


def test_an_offset_gain_that_holds_a_branch_cannot_be_decayed():
    model, plan = converted(zoo.Sandwich, "completep", "adamw", "folded")
    with pytest.raises(mt.MutransferError, match=r"enters as 1 \+ w .* groups=.* form='explicit'"):
        plan.make_optimizer(model, lr=0.01, weight_decay=DECAY)
    model, plan = converted(zoo.Sandwich, "completep", "adamw", "explicit")
    plan.make_optimizer(model, lr=0.01, weight_decay=DECAY)


def gpt2(layers, width=64, heads=4, **options):
    torch.manual_seed(0)
    config = GPT2Config(n_embd=width, n_head=heads, n_layer=layers, vocab_size=64, n_positions=16, **options)
    return GPT2LMHeadModel(config)


def llama(layers, width=64, heads=4):
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=width, intermediate_size=2 * width, num_attention_heads=heads, num_key_value_heads=heads // 2,
            num_hidden_layers=layers, vocab_size=64,
        )
    )  # fmt: skip


@pytest.mark.parametrize("make", [gpt2, llama])
def test_at_the_base_nothing_changes_bitwise(make):
    model, plain = make(3), make(3)
    plan = mt.parameterize(model, "completep", base=64, base_depth=3)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))
    assert {(line.lr, line.eps, line.weight_decay, line.clip, line.init_factor) for line in plan} == {(1.0,) * 5}


def test_the_ways_to_give_a_base_agree():
    model = llama(6)
    by_width = mt.plan(model, "completep", base=32, base_depth=2)
    by_fields = mt.plan(
        model, "completep",
        base={"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1,
              "num_hidden_layers": 2},
    )  # fmt: skip
    by_model = mt.plan(model, "completep", base=llama(2, 32, 2))
    by_factory = mt.plan(
        model, "completep", base=32, base_depth=2, factory=lambda width, depth: llama(depth, width, width // 16)
    )
    assert [other.diff(by_width).replace(" ", "") for other in (by_fields, by_model, by_factory)] == [
        "",
        f"base:{by_model.base}->{by_width.base}".replace(" ", ""),
        f"base:{by_factory.base}->{by_width.base}".replace(" ", ""),
    ]


def test_width_and_depth_factors_multiply():
    """Dey et al. 2025, Table 1: hidden Adam lr 1/m_in, eps 1/(m_in m_depth) where the branch is not folded."""
    plan = mt.plan(llama(8, 128, 8), "completep", base=32, base_depth=2)
    up = plan["model.layers.5.mlp.up_proj.weight"]
    assert (up.lr, up.eps, up.weight_decay, up.m_depth) == (1 / 4, 1 / 16, 4.0, 4.0)
    down = plan["model.layers.5.mlp.down_proj.weight"]  # folded: a quarter of it all, and eps as in width alone
    assert (down.lr, down.eps, down.weight_decay, down.clip) == (1 / 16, 1 / 4, 16.0, 1 / 4)
    assert plan["model.norm.weight"].eps == 1 / 4


def test_an_init_that_depends_on_depth_keeps_the_bases_value():
    """GPT-2 draws what ends a branch with std 0.02 / sqrt(2 L): here that of the base, times 1/m."""
    plan = mt.plan(gpt2(8), "completep", base=64, base_depth=2)
    ends = plan["transformer.h.7.mlp.c_proj.weight"]
    assert ends.base_law.std == pytest.approx(0.02 / 2)
    assert ends.init_std == pytest.approx(0.02 / 2 / 4)


def test_a_shallower_model_than_the_base_is_scaled_the_other_way():
    plan = mt.plan(llama(2), "completep", base=64, base_depth=4)
    down = plan["model.layers.1.mlp.down_proj.weight"]
    assert (down.m_depth, down.init_std, down.lr) == (0.5, pytest.approx(0.04), 2.0)


def test_a_shared_layer_is_as_deep_as_it_is_used():
    """ALBERT: depth.md row 5, rho = m. Gradients of m uses add up, each 1/m as large."""

    def albert(layers):
        return AlbertConfig(
            hidden_size=64, embedding_size=32, intermediate_size=128, num_attention_heads=4, num_hidden_layers=layers,
            vocab_size=64,
        )  # fmt: skip

    plan = mt.plan(AlbertModel(albert(8)), "completep", base={"num_hidden_layers": 2, "hidden_size": 64})
    query = next(line for line in plan if "query.weight" in line.name)
    assert (query.m_depth, query.eps) == (4.0, 1.0)
    with pytest.raises(mt.MutransferError, match=r"several blocks share. Use 'completep'"):
        mt.plan(AlbertModel(albert(8)), "depth-mup", base={"num_hidden_layers": 2, "hidden_size": 64})


@pytest.mark.parametrize("depth", [3, 6])
def test_residual_mult_multiplies_every_branch_at_any_depth(depth):
    """Also at the base's own depth, where a deeper base shows which branches repeat."""
    plain, own = llama(depth), llama(depth)
    mt.parameterize(plain, "completep", base=64, base_depth=3)
    mt.parameterize(own, "completep", base=64, base_depth=3, hyperparameters={"residual_mult": 0.5})
    for name, parameter in own.named_parameters():
        ends = name.endswith(("o_proj.weight", "down_proj.weight"))
        torch.testing.assert_close(parameter, dict(plain.named_parameters())[name] * (0.5 if ends else 1.0))


def test_a_table_of_widths_refuses_a_base_of_another_depth_and_names_the_two():
    with pytest.raises(mt.MutransferError, match=r"The base has 2 blocks 'blocks.\*' and the model 6.*'completep'"):
        mt.plan(stack(zoo.PreNorm, 6), "mup", base=stack(zoo.PreNorm, 2), example_inputs=zoo.ids())


def test_a_depth_table_asks_for_the_bases_depth():
    with pytest.raises(mt.MutransferError, match=r"base=32 is a width alone. Give base_depth="):
        mt.plan(llama(4), "completep", base=32)
    with pytest.raises(mt.MutransferError, match="base_depth= is for tables with depth rules"):
        mt.plan(llama(4), "mup", base=32, base_depth=2)
    with pytest.raises(mt.MutransferError, match="residual_mult scales residual branches, and 'mup'"):
        mt.plan(llama(4), "mup", base=32, hyperparameters={"residual_mult": 2.0})


@pytest.mark.parametrize("block", [zoo.TanhEnd, zoo.NormedEnd, zoo.FusedGatedEnd], ids=lambda b: b.__name__)
def test_a_branch_that_no_parameter_can_hold_is_refused_and_the_users_word_settles_it(block):
    model, base = stack(block, 4), stack(block, 2)
    plain = copy.deepcopy(model)
    with pytest.raises(mt.MutransferError, match=r"repeats with depth, and is not proven .* roles="):
        mt.parameterize(model, "completep", base=base, example_inputs=zoo.ids())
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))
    unused = {f"blocks.*.{part}.*": "inner" for part in ("attention", "norm2", "mlp", "both")}
    names = [name for name, _ in model.named_parameters()]
    roles = {pattern: role for pattern, role in unused.items() if pattern.split(".")[2] in "".join(names)}
    roles["blocks.*.both.*" if block is zoo.FusedGatedEnd else "blocks.*.mlp.down.*"] = "terminal"
    plan = mt.plan(model, "completep", base=base, example_inputs=zoo.ids(), roles=roles)
    ends = {name.split(".")[2] for name in names if plan[name].place is Place.TERMINAL}
    assert ends == {"both" if block is zoo.FusedGatedEnd else "mlp"}


def test_what_depends_on_the_blocks_index_is_refused():
    with pytest.raises(mt.MutransferError, match=r"softmax scale of .* depends on the index of the block"):
        mt.plan(gpt2(4, scale_attn_by_inverse_layer_idx=True), "completep", base=64, base_depth=2)


class Tempered(zoo.Attention):
    """Cosine attention with a learned temperature for every head, times a number."""

    def __init__(self, number):
        super().__init__()
        self.temperature, self.number = nn.Parameter(torch.full((2, 1, 1), 2.0)), number

    def forward(self, x):
        q, k, v = (each(x).unflatten(-1, (2, -1)).transpose(1, 2) for each in (self.q, self.k, self.v))
        logits = functional.normalize(q, dim=-1) @ functional.normalize(k, dim=-1).mT
        attended = (logits * self.temperature * self.number).softmax(-1) @ v
        return self.o(attended.transpose(1, 2).flatten(-2))


def tempered(depth, number):
    """Blocks whose attention has `number` of their index."""
    indices = iter(range(depth))

    def block():
        made = zoo.PreNorm()
        made.attention = Tempered(number(next(indices)))
        return made

    return stack(block, depth)


def test_a_learned_temperature_does_not_depend_on_the_blocks_index():
    model, base = (tempered(depth, lambda _: 0.5) for depth in (6, 2))
    plan = mt.plan(model, "completep", base=base, example_inputs=zoo.ids())
    assert plan["blocks.5.attention.temperature"].place is Place.INNER
    assert plan["blocks.5.attention.o.weight"].init_factor == pytest.approx(2 / 6)


def test_control_a_number_of_the_index_beside_a_learned_temperature_is_refused():
    model, base = (tempered(depth, lambda index: 1 / (1 + index)) for depth in (6, 2))
    with pytest.raises(mt.MutransferError, match=r"softmax scale of 'blocks\.\*\.attention' depends on the index"):
        mt.plan(model, "completep", base=base, example_inputs=zoo.ids())


def test_what_does_not_depend_on_depth_is_not_a_residual_stack():
    def chain(depth):
        torch.manual_seed(0)
        return nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(depth)))

    with pytest.raises(mt.MutransferError, match="no residual branch was found"):
        mt.plan(chain(4), "completep", base=chain(2), example_inputs=torch.zeros(2, 8))


def test_a_saved_plan_keeps_the_places(tmp_path):
    plan = mt.plan(llama(4), "completep", base=32, base_depth=2)
    assert mt.Plan.load(plan.save(tmp_path / "plan.json")) == plan
    with pytest.raises(mt.MutransferError, match="does not tell which residual branches repeat"):
        mt.plan(llama(8), "completep", base=tmp_path / "plan.json")


def flat(depth, *, block=lambda: [zoo.PreNorm()]):
    torch.manual_seed(0)
    blocks = [layer for _ in range(depth) for layer in block()]
    return nn.Sequential(nn.Embedding(9, 8), *blocks, nn.Linear(8, 9))


def test_stem_and_readout_in_one_list_with_the_blocks_are_outside():
    """Each stands before the first branch or behind the last one, and there is one at any depth."""
    plan = mt.plan(flat(6), "completep", base=flat(2), example_inputs=torch.arange(5)[None])
    outside = {line.name for line in plan if line.place is Place.OUTSIDE}
    assert outside == {"0.weight", "7.weight", "7.bias"}
    assert {line.m_depth for line in plan if line.place is not Place.OUTSIDE} == {3.0}


class Heads(nn.Module):
    """A readout behind every block."""

    def __init__(self, depth):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.blocks = nn.Embedding(9, 8), nn.ModuleList(zoo.PreNorm() for _ in range(depth))
        self.heads = nn.ModuleList(nn.Linear(8, 8) for _ in range(depth))

    def forward(self, ids):
        states = [self.embed(ids)]
        for block in self.blocks:
            states.append(block(states[-1]))
        return self.read(states[1:])

    def read(self, states):
        return torch.stack([head(x) for head, x in zip(self.heads, states, strict=True)])


class LastHead(Heads):
    def read(self, states):
        return self.heads[-1](states[-1])


class SummedHeads(Heads):
    def read(self, states):
        return super().read(states).sum(0)


class HeadsInARow(Heads):
    def read(self, states):
        return nn.Sequential(*self.heads)(states[-1])


@pytest.mark.parametrize("model", [Heads, LastHead])
def test_a_readout_behind_every_block_is_outside_reached_or_not(model):
    plan = mt.plan(model(4), "completep", base=model(2), example_inputs=torch.arange(5)[None])
    assert {line.place for line in plan if line.name.startswith("heads.")} == {Place.OUTSIDE}
    assert {line.place for line in plan if line.name.startswith("blocks.")} == {Place.INNER, Place.TERMINAL}


@pytest.mark.parametrize("model", [SummedHeads, HeadsInARow])
def test_control_readouts_that_are_summed_or_in_a_row_are_refused(model):
    with pytest.raises(mt.MutransferError, match="in no residual branch"):
        mt.plan(model(4), "completep", base=model(2), example_inputs=torch.arange(5)[None])


def in_a_row(depth, *, between=1):
    """Blocks, layers without a sum that all of the stream passes through, and as many blocks behind each."""
    torch.manual_seed(0)
    row = [zoo.PreNorm() for _ in range(depth)]
    for _ in range(between):
        row += [nn.Sequential(nn.Linear(8, 8), nn.GELU()), *(zoo.PreNorm() for _ in range(depth))]
    return nn.Sequential(nn.Embedding(9, 8), nn.Sequential(*row), nn.Linear(8, 9))


def test_a_layer_between_the_blocks_of_a_list_is_outside_where_there_is_one_at_any_depth():
    plan = mt.plan(in_a_row(4), "completep", base=in_a_row(2), example_inputs=torch.arange(5)[None])
    outside = {line.name for line in plan if line.place is Place.OUTSIDE}
    assert outside == {"0.weight", "1.4.0.weight", "1.4.0.bias", "2.weight", "2.bias"}


def test_control_layers_between_the_blocks_that_grow_in_number_are_refused():
    deeper, base = in_a_row(2, between=4), in_a_row(2, between=2)
    with pytest.raises(mt.MutransferError, match="in no residual branch"):
        mt.plan(deeper, "completep", base=base, example_inputs=torch.arange(5)[None])


def test_the_advice_for_a_flat_list_of_layers_names_one_parameter_alone():
    """`*.weight` would be every weight of the model."""
    chained = {"block": lambda: [zoo.PreNorm(), nn.PReLU()]}
    with pytest.raises(mt.MutransferError, match=r"roles=\{'0\.weight': 'inner'\}"):
        mt.plan(flat(4, **chained), "completep", base=flat(2, **chained), example_inputs=torch.arange(5)[None])


def test_a_base_may_say_the_kind_of_each_of_its_layers():
    config = Gemma2Config(
        hidden_size=64, intermediate_size=128, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
        num_hidden_layers=4, vocab_size=64,
    )  # fmt: skip
    base = {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"], "hidden_size": 64}
    plan = mt.plan(Gemma2ForCausalLM(config), "completep", base=base)
    assert {line.m_depth for line in plan if line.name.startswith("model.layers")} == {2.0}
