"""The parameterizations themselves: nothing but tables. Cells are factors on the base model's values.

`m_in`, `m_out` are a tensor's own fan-in and fan-out over the base's; the papers print them at m_in = m_out.
A row reads: init std, forward multiplier, then per optimizer family (lr, eps, weight decay).
Weight decay keeps lr * decay at its base value wherever a table scales the lr, as the `mup` package does and
Wang & Aitchison 2024 (arXiv:2405.13698) argue; eps follows the size of the gradient in the table's own variables.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from mutransfer.rules.depth import COMPLETEP, DEPTH_MUP, DepthTable
from mutransfer.rules.scale import Scale, m_head, m_in, m_out, one
from mutransfer.rules.table import Law, Parameterization, Role, Row, Rule

Cells = tuple[Scale, Scale, Scale]


def row(
    init_std: Scale, multiplier: Scale, *, adam: Cells, sgd: tuple[Scale, Scale] | None, adam_l2: Scale = one
) -> Row:
    """`adam` is (lr, eps, decoupled decay); `sgd` is (lr, L2 decay), or None where the table has no SGD column.

    `adam_l2` is the decay where it stands inside Adam's gradient. No width law is known for it, so it is constant in
    the variables of the family's gauge. A tensor stored t = gauge / multiplier times as large has its gradient divided
    by t, and g / t + decay * t W is (g + W) / t, hence the same step, only where decay = t^-2 = (multiplier / gauge)^2.
    """
    rules = {"adam": Rule(*adam), "adam-l2": Rule(adam[0], adam[1], adam_l2)}
    if sgd is not None:
        rules["sgd"] = Rule(lr=sgd[0], weight_decay=sgd[1])
    return Row(init_std, multiplier, rules)


UNSCALED: Cells = (one, one, one)
NO_WIDTH = row(one, one, adam=UNSCALED, sgd=(one, one))


def law(*, output: float) -> Law:
    """Every contribution keeps its size at init, but the readout's, which is stated."""
    return Law({**dict.fromkeys(Role, 0.0), Role.OUTPUT: output})


# fmt: off
SP = Parameterization(
    name="sp", source="standard practice; Yang & Hu et al. 2022, arXiv:2203.03466, Table 3 (in parentheses)",
    law=law(output=0), attention=m_head**-0.5, is_control=True,
    rows={           #   init std     multiplier  adam: lr, eps, decay           sgd: lr, decay
        Role.INPUT:  row(one,         one,        adam=UNSCALED,                 sgd=(one, one)),
        Role.HIDDEN: row(m_in**-0.5,  one,        adam=UNSCALED,                 sgd=(one, one)),
        Role.OUTPUT: row(m_in**-0.5,  one,        adam=UNSCALED,                 sgd=(one, one)),
        Role.VECTOR: row(one,         one,        adam=UNSCALED,                 sgd=(one, one)),
        Role.SCALAR: NO_WIDTH,
    },
)

SP_EMBEDDING = Parameterization(
    name="sp-embedding", source="Kalra & Barkeshli 2026, arXiv:2605.21486: SP with the embedding's lr raised by the width ratio",
    law=law(output=0), attention=m_head**-0.5, is_control=True,
    rows={           #   init std     multiplier  adam: lr, eps, decay           sgd: none
        Role.INPUT:  row(one,         one,        adam=(m_out, one, 1/m_out),    sgd=None),
        Role.HIDDEN: row(m_in**-0.5,  one,        adam=UNSCALED,                 sgd=None),
        Role.OUTPUT: row(m_in**-0.5,  one,        adam=UNSCALED,                 sgd=None),
        Role.VECTOR: row(one,         one,        adam=UNSCALED,                 sgd=None),
        Role.SCALAR: row(one,         one,        adam=UNSCALED,                 sgd=None),
    },
)

NTK_GAUGE = {Role.HIDDEN: m_in**-0.5, Role.OUTPUT: m_in**-0.5}

NTK = Parameterization(
    name="ntk", source="Jacot et al. 2018, arXiv:1806.07572: the NTK parameterization with one constant lr",
    law=law(output=0), attention=m_head**-0.5, gauge=NTK_GAUGE,
    rows={           #   init std     multiplier  adam: lr, eps, decay           sgd: lr, decay
        Role.INPUT:  row(one,         one,        adam=UNSCALED,                 sgd=(one, one)),
        Role.HIDDEN: row(one,         m_in**-0.5, adam=UNSCALED,                 sgd=(one, one)),
        Role.OUTPUT: row(one,         m_in**-0.5, adam=UNSCALED,                 sgd=(one, one)),
        Role.VECTOR: row(one,         one,        adam=UNSCALED,                 sgd=(one, one)),
        Role.SCALAR: NO_WIDTH,
    },
)

NTK_STABLE = Parameterization(
    name="ntk-stable", source="Everett et al. 2024, arXiv:2407.05872, NTK with per-layer lr, full alignment (exponents derived)",
    law=law(output=0), attention=1/m_head, gauge=NTK_GAUGE,
    rows={           #   init std     multiplier  adam: lr, eps, decay                                        sgd: lr, decay
        Role.INPUT:  row(one,         one,        adam=(one,        m_out**-0.5,             one),        sgd=(m_out**0.5, m_out**-0.5)),
        Role.HIDDEN: row(one,         m_in**-0.5, adam=(m_in**-0.5, (m_in * m_out)**-0.5,    m_in**0.5),  sgd=(m_out**0.5, m_out**-0.5)),
        Role.OUTPUT: row(one,         m_in**-0.5, adam=(m_in**-0.5, m_in**-0.5,              m_in**0.5),  sgd=(one, one)),
        Role.VECTOR: row(one,         one,        adam=(one,        m_out**-0.5,             one),        sgd=(m_out**0.5, m_out**-0.5)),
        Role.SCALAR: NO_WIDTH,
    },
)

MUP_GAUGE = {Role.OUTPUT: 1/m_in}

MEAN_FIELD = Parameterization(
    name="mean-field", source="Everett et al. 2024, arXiv:2407.05872, mean-field, full alignment (exponents derived)",
    law=law(output=-0.5), attention=1/m_head, gauge=MUP_GAUGE,
    rows={           #   init std     multiplier  adam: lr, eps, decay                                        sgd: lr, decay
        Role.INPUT:  row(one,         one,        adam=(one,        1/m_out,                 one),        sgd=(m_out, 1/m_out)),
        Role.HIDDEN: row(one,         m_in**-0.5, adam=(m_in**-0.5, m_in**-0.5 / m_out,      m_in**0.5),  sgd=(m_out, 1/m_out), adam_l2=1/m_in),
        Role.OUTPUT: row(one,         1/m_in,     adam=(one,        1/m_in,                  one),        sgd=(m_in,  1/m_in)),
        Role.VECTOR: row(one,         one,        adam=(one,        1/m_out,                 one),        sgd=(m_out, 1/m_out)),
        Role.SCALAR: NO_WIDTH,
    },
)

MUP_VECTOR = row(one, one, adam=(one, 1/m_out, one), sgd=(m_out, 1/m_out))

MUP = Parameterization(
    name="mup", source="Yang & Hu et al. 2022, arXiv:2203.03466, Table 8",
    law=law(output=-0.5), attention=1/m_head, gauge=MUP_GAUGE,
    rows={           #   init std     multiplier  adam: lr, eps, decay           sgd: lr, decay
        Role.INPUT:  row(one,         one,        adam=(one,    1/m_out, one),   sgd=(m_out,      1/m_out)),
        Role.HIDDEN: row(m_in**-0.5,  one,        adam=(1/m_in, 1/m_out, m_in),  sgd=(m_out/m_in, m_in/m_out)),
        Role.OUTPUT: row(one,         1/m_in,     adam=(one,    1/m_in,  one),   sgd=(m_in,       1/m_in)),
        Role.VECTOR: MUP_VECTOR,
        Role.SCALAR: NO_WIDTH,
    },
)

MUP_TABLE3 = Parameterization(
    name="mup-table3", source="Yang & Hu et al. 2022, arXiv:2203.03466, Table 3",
    law=law(output=-0.5), attention=1/m_head, gauge=MUP_GAUGE, ties=False,
    rows={           #   init std     multiplier  adam: lr, eps, decay           sgd: lr, decay
        Role.INPUT:  row(one,         one,        adam=(one,    1/m_out, one),   sgd=(m_out,      1/m_out)),
        Role.HIDDEN: row(m_in**-0.5,  one,        adam=(1/m_in, 1/m_out, m_in),  sgd=(m_out/m_in, m_in/m_out)),
        Role.OUTPUT: row(1/m_in,      one,        adam=(1/m_in, one,     m_in),  sgd=(1/m_in,     m_in), adam_l2=m_in**2),
        Role.VECTOR: MUP_VECTOR,
        Role.SCALAR: NO_WIDTH,
    },
)

MUP_TABLE9 = Parameterization(
    name="mup-table9", source="Yang & Hu et al. 2022, arXiv:2203.03466, Table 9",
    law=law(output=-0.5), attention=1/m_head, gauge=MUP_GAUGE, ties=False, constant_vector=MUP_VECTOR,
    rows={           #   init std     multiplier  adam: lr, eps, decay                          sgd: lr, decay
        Role.INPUT:  row(m_out**-0.5, m_out**0.5, adam=(m_out**-0.5, m_out**-0.5, m_out**0.5),  sgd=(one,        one), adam_l2=m_out),
        Role.HIDDEN: row(m_in**-0.5,  one,        adam=(1/m_in,      1/m_out,     m_in),        sgd=(m_out/m_in, m_in/m_out)),
        Role.OUTPUT: row(m_in**-0.5,  m_in**-0.5, adam=(m_in**-0.5,  m_in**-0.5,  m_in**0.5),   sgd=(one,        one), adam_l2=m_in),
        Role.VECTOR: row(m_out**-0.5, m_out**0.5, adam=(m_out**-0.5, m_out**-0.5, m_out**0.5),  sgd=(one,        one), adam_l2=m_out),
        Role.SCALAR: NO_WIDTH,
    },
)
# fmt: on


def with_depth(depth: DepthTable) -> Parameterization:
    """Depth rules multiply the width cells of Table 8."""
    return replace(MUP, name=depth.name, source=f"{depth.source}; width: {MUP.source}", depth=depth)


WIDTH_TABLES = (SP, SP_EMBEDDING, NTK, NTK_STABLE, MEAN_FIELD, MUP, MUP_TABLE3, MUP_TABLE9)

PARAMETERIZATIONS: Mapping[str, Parameterization] = {
    table.name: table for table in (*WIDTH_TABLES, with_depth(DEPTH_MUP), with_depth(COMPLETEP))
}
