"""A planned model trains in other people's loops as in one's own: groups, clipping in the gauge, ratios kept."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from torch import nn
from toy_models import VOCAB, Decoder, token_batches, token_loss

import mutransfer as mt
from mutransfer.errors import ConfigError
from mutransfer.integrations import (
    PlannedModule,
    join_parts,
    list_groups,
    plan_accelerator,
    plan_optimizer,
    plan_trainer,
)

LR, DECAY, CLIP = 2**-8, 0.1, 0.3


def own_loop(model, plan, batches, factor=lambda step: 1.0, clip=None, groups=None) -> list[float]:
    """The reference: a loop of one's own with the plan's verbs."""
    optimizer = plan.make_optimizer(model, lr=LR, weight_decay=DECAY, groups=groups)
    start = [group["lr"] for group in optimizer.param_groups]
    losses = []
    for step, batch in enumerate(batches):
        for group, lr in zip(optimizer.param_groups, start, strict=True):
            group["lr"] = lr * factor(step)
        loss = token_loss(model, batch)
        optimizer.zero_grad()
        loss.backward()
        norm = (clip or plan.clip_grad_norm_)(model, CLIP)
        assert norm > CLIP, "clipping must be active for this test to say anything"
        optimizer.step()
        losses.append(loss.item())
    return losses


def stock_clipping(model, max_norm):
    return nn.utils.clip_grad_norm_(model.parameters(), max_norm)


class TestOptimizer:
    def test_the_groups_of_a_made_optimizer_become_the_plans(self, plan, decoder):
        made = torch.optim.AdamW(decoder.parameters(), lr=LR, weight_decay=DECAY, eps=1e-9, betas=(0.8, 0.9))
        plan_optimizer(made, plan, decoder)
        expected = plan.make_optimizer(decoder, lr=LR, weight_decay=DECAY, eps=1e-9, betas=(0.8, 0.9), fused=None)
        assert made.param_groups == expected.param_groups
        assert len(made.param_groups) > 3

    def test_no_decay_lists_and_layerwise_rates_are_kept_and_listed(self, plan, decoder):
        own = [
            {"params": [p for n, p in decoder.named_parameters() if n.startswith("blocks.0")], "lr": LR / 2},
            {"params": [p for n, p in decoder.named_parameters() if n.startswith("blocks.1")], "lr": LR},
            {
                "params": [p for n, p in decoder.named_parameters() if not n.startswith("blocks")],
                "weight_decay": 0.0,
                "tag": "outside",
            },
        ]
        made = plan_optimizer(torch.optim.AdamW(own, lr=LR, weight_decay=DECAY), plan, decoder)
        by_name = {name: group for group in made.param_groups for name in group["param_names"]}
        low, high = (by_name[f"blocks.{i}.qkv.weight"] for i in (0, 1))
        assert low["lr"] * 2 == high["lr"] == LR * plan["blocks.0.qkv.weight"].lr == LR / 4
        assert high["weight_decay"] == pytest.approx(4 * DECAY)
        assert by_name["readout.weight"]["weight_decay"] == 0
        assert by_name["readout.weight"]["tag"] == "outside"
        listed = list_groups(made)
        assert "lr 0.0004883, weight_decay 0.4, eps" in listed
        assert "blocks.*.qkv.weight" in listed
        assert len(listed.splitlines()) == len(made.param_groups)
        mt.check_schedule(torch.optim.lr_scheduler.StepLR(made, 2))

    def test_what_is_not_fresh_or_of_another_family_is_refused(self, plan, decoder):
        made = torch.optim.AdamW(decoder.parameters(), lr=LR)
        plan_optimizer(made, plan, decoder)
        with pytest.raises(ConfigError, match="planned already"):
            plan_optimizer(made, plan, decoder)
        with pytest.raises(ConfigError, match="plan is for 'adamw' and the optimizer is SGD"):
            plan_optimizer(torch.optim.SGD(decoder.parameters(), lr=LR), plan, decoder)
        scheduled = torch.optim.AdamW(decoder.parameters(), lr=LR)
        torch.optim.lr_scheduler.StepLR(scheduled, 2)
        with pytest.raises(ConfigError, match="under a schedule"):
            plan_optimizer(scheduled, plan, decoder)


class Causal(nn.Module):
    """The decoder as transformers.Trainer wants one: a dict in, loss first out."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = Decoder(width)

    def forward(self, input_ids, labels=None):
        logits = self.net(input_ids)
        if labels is None:
            return {"logits": logits}
        return {"loss": nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()), "logits": logits}


def rows(batches):
    return [{"input_ids": ids, "labels": labels} for batch in batches for ids, labels in zip(*batch, strict=True)]


@pytest.fixture
def make_trainer(tmp_path, batches):
    """A Trainer over the batches in their order, with the reference's hyperparameters."""
    from transformers import Trainer, TrainingArguments

    class Ordered(Trainer):
        def _get_train_sampler(self, *_):
            return torch.utils.data.SequentialSampler(self.train_dataset)

        def compute_loss(self, model, inputs, *_, **__):
            loss = model(**inputs)["loss"]
            self.seen = [*getattr(self, "seen", []), loss.item()]
            return loss

    def make(model, kind=Ordered, **options):
        defaults = {
            "learning_rate": LR, "weight_decay": DECAY, "max_grad_norm": CLIP, "lr_scheduler_type": "constant",
            "per_device_train_batch_size": 4, "num_train_epochs": 1, "report_to": [], "save_strategy": "no",
            "disable_tqdm": True, "use_cpu": True, "logging_strategy": "no",
        }  # fmt: skip
        args = TrainingArguments(output_dir=str(tmp_path), **{**defaults, **options})
        return kind(model=model, args=args, train_dataset=rows(batches))

    make.kind = Ordered
    return make


def planned(width=32):
    torch.manual_seed(0)
    model = Causal(width)
    return model, mt.parameterize(model, "mup", base=8, factory=Causal, example_inputs=(torch.zeros(1, 8).long(),))


def decayed_groups(model):
    """transformers' own rule: no decay for biases and norms."""
    no = [n for n, _ in model.named_parameters() if n.endswith("bias") or "norm" in n]
    named = dict(model.named_parameters())
    return [
        {"params": [p for n, p in named.items() if n not in no], "weight_decay": DECAY},
        {"params": [named[n] for n in no], "weight_decay": 0.0},
    ]


class TestTrainer:
    def reference(self, batches, factor, clip=None):
        model, plan = planned()
        loss = [(ids, labels) for ids, labels in batches]
        wrapped = nn.Sequential()  # token_loss calls the model on ids
        wrapped.forward = lambda ids: model(ids)["logits"]
        groups = decayed_groups(model)
        verbs = _Verbs(plan, model)
        return own_loop(wrapped, verbs, loss, factor, clip and (lambda _, norm: clip(model, norm)), groups)

    def test_a_real_trainer_trains_as_ones_own_loop(self, make_trainer, batches, caplog):
        model, plan = planned()
        trainer = make_trainer(model, lr_scheduler_type="linear")
        plan_trainer(trainer, plan)
        with caplog.at_level(logging.INFO, "mutransfer"):
            trainer.train()
        seen = trainer.seen

        def factor(step):
            return 1 - step / len(batches)

        assert seen == pytest.approx(self.reference(batches, factor), abs=1e-6)
        stock = self.reference(batches, factor, clip=stock_clipping)
        assert max(abs(a - b) for a, b in zip(seen, stock, strict=True)) > 1e-5, "stock clipping is another run"
        assert "net.blocks.*.qkv.weight" in caplog.text

    def test_the_ratios_live_through_the_schedule_and_no_decay_lists_are_kept(self, make_trainer):
        model, plan = planned()
        trainer = make_trainer(model, lr_scheduler_type="cosine", warmup_steps=2)
        plan_trainer(trainer, plan)
        trainer.train()
        by_name = {name: group for group in trainer.optimizer.param_groups for name in group["param_names"]}
        hidden = by_name["net.blocks.0.out.weight"]
        assert hidden["weight_decay"] == pytest.approx(4 * DECAY)
        assert by_name["net.norm.weight"]["weight_decay"] == 0
        assert hidden["planned_lr"] * 4 == by_name["net.embed.weight"]["planned_lr"] == LR
        mt.check_schedule(trainer.lr_scheduler)

    def test_a_schedule_that_erases_the_ratios_stops_before_the_first_step(self, make_trainer):
        class Erasing(make_trainer.kind):
            def create_scheduler(self, num_training_steps, optimizer=None):
                self.lr_scheduler = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, LR, total_steps=10)
                return self.lr_scheduler

        model, plan = planned()
        trainer = make_trainer(model, kind=Erasing)
        plan_trainer(trainer, plan)
        with pytest.raises(ConfigError, match="OneCycleLR does not keep the ratios"):
            trainer.train()
        assert not hasattr(trainer, "seen")

    def test_another_optimizer_than_the_plans_is_refused(self, make_trainer):
        model, plan = planned()
        trainer = make_trainer(model, optim="adafactor")
        plan_trainer(trainer, plan)
        with pytest.raises(ConfigError, match="plan is for 'adamw' and the optimizer is Adafactor"):
            trainer.train()
        with pytest.raises(ConfigError, match=r"Causal is no transformers\.Trainer"):
            plan_trainer(model, plan)


class _Verbs:
    """A plan's verbs on another model than the one that the loop calls."""

    def __init__(self, plan, model) -> None:
        self.plan, self.model = plan, model

    def make_optimizer(self, _, **options):
        return self.plan.make_optimizer(self.model, **options)

    def clip_grad_norm_(self, _, norm):
        return self.plan.clip_grad_norm_(self.model, norm)


class TestAccelerate:
    def losses(self, batches, *, install: bool):
        from accelerate import Accelerator

        torch.manual_seed(0)
        decoder = Decoder(32)
        plan = mt.parameterize(decoder, "mup", base=8, factory=Decoder)
        optimizer = plan.make_optimizer(decoder, lr=LR, weight_decay=DECAY)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
        accelerator = Accelerator(cpu=True)
        model, optimizer, schedule = accelerator.prepare(decoder, optimizer, schedule)
        mt.check_schedule(schedule)
        if install:
            plan_accelerator(accelerator, plan, model)
        losses = []
        for batch in batches:
            loss = token_loss(model, batch)
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        return losses, accelerator

    def test_it_trains_as_ones_own_loop(self, plan, decoder, batches):
        expected = own_loop(decoder, plan, batches, lambda step: 1 / (1 + step))
        seen, accelerator = self.losses(batches, install=True)
        assert seen == pytest.approx(expected, abs=1e-6)
        with pytest.raises(ConfigError, match=r"1 parameters that are not all.*model\.parameters\(\)"):
            accelerator.clip_grad_norm_([torch.zeros(3)], 1.0)
        with pytest.raises(ConfigError, match="2-norm"):
            accelerator.clip_grad_norm_([torch.zeros(3)], 1.0, norm_type=1)

    def test_control_the_stock_norm_is_another_run(self, plan, decoder, batches):
        expected = own_loop(decoder, plan, batches, lambda step: 1 / (1 + step))
        seen, _ = self.losses(batches, install=False)
        assert max(abs(a - b) for a, b in zip(seen, expected, strict=True)) > 1e-5

    def test_a_backend_that_clips_by_itself_is_refused(self, plan, decoder):
        class Stub:
            class distributed_type:  # noqa: N801
                name = "DEEPSPEED"

        with pytest.raises(ConfigError, match="DEEPSPEED clips gradients by itself"):
            plan_accelerator(Stub(), plan, decoder)


class TestLightning:
    def fit(self, batches, schedule, planned=True, **options):
        import lightning

        bases = (PlannedModule, lightning.LightningModule)[not planned :]

        class Lit(*bases):
            def __init__(self) -> None:
                super().__init__()
                torch.manual_seed(0)
                self.net = Decoder(32)
                self.plan = mt.parameterize(self.net, "mup", base=8, factory=Decoder)
                self.seen = []

            def training_step(self, batch, _):
                loss = token_loss(self.net, batch)
                self.seen.append(loss.item())
                return loss

            def configure_optimizers(self):
                optimizer = self.plan.make_optimizer(self.net, lr=LR, weight_decay=DECAY)
                return [optimizer], [{"scheduler": schedule(optimizer), "interval": "step"}]

        trainer = lightning.Trainer(
            max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, gradient_clip_val=CLIP, **options,
        )  # fmt: skip
        model = Lit()
        loader = torch.utils.data.DataLoader(list(batches), batch_size=None)
        trainer.fit(model, loader)
        return model.seen

    @staticmethod
    def halving(optimizer):
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))

    @pytest.mark.filterwarnings("ignore")
    def test_it_trains_as_ones_own_loop(self, plan, decoder, batches):
        expected = own_loop(decoder, plan, batches, lambda step: 1 / (1 + step))
        assert self.fit(batches, self.halving) == pytest.approx(expected, abs=1e-6)
        control = self.fit(batches, self.halving, planned=False)
        assert max(abs(a - b) for a, b in zip(control, expected, strict=True)) > 1e-5, "stock clipping is another run"

    @pytest.mark.filterwarnings("ignore")
    def test_a_schedule_that_erases_the_ratios_and_clipping_by_value_are_refused(self, batches):
        def cosine(optimizer):
            return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100, eta_min=1e-4)

        with pytest.raises(ConfigError, match="CosineAnnealingLR does not keep the ratios"):
            self.fit(batches, cosine)
        with pytest.raises(ConfigError, match="clips every entry alike"):
            self.fit(batches, self.halving, gradient_clip_algorithm="value")


class TestParts:
    """As torchtitan holds a model: a list of parts, each with the names of the whole."""

    def parts(self, model):
        first, second = copy.copy(model), copy.copy(model)
        first._modules = {k: m for k, m in model._modules.items() if k in ("embed",)}
        second._modules = {k: m for k, m in model._modules.items() if k not in first._modules}
        second._parameters = {}
        return [first, second]

    def test_all_parts_together_are_the_whole(self, plan, decoder):
        whole = plan.make_optimizer(decoder, lr=LR, weight_decay=DECAY)
        joined, model = join_parts(plan, self.parts(decoder))
        optimizer = joined.make_optimizer(model, lr=LR, weight_decay=DECAY)
        assert _by_name(optimizer) == _by_name(whole)
        token_loss(decoder, token_batches(1)[0]).backward()
        assert joined.clip_grad_norm_(model, 1e9) == pytest.approx(float(plan.clip_grad_norm_(decoder, 1e9)))

    def test_a_rank_may_hold_some(self, plan, decoder):
        joined, model = join_parts(plan, self.parts(decoder)[1:])
        assert "embed.weight" not in joined.names()
        groups = joined.param_groups(model, lr=LR)
        assert {n for g in groups for n in g["param_names"]} == set(joined.names())

    def test_names_of_another_model_are_refused(self, plan, decoder):
        with pytest.raises(ConfigError, match=r"'weight' of the model parts is not in the plan"):
            join_parts(plan, [nn.Linear(3, VOCAB, bias=False)])


def _by_name(optimizer):
    return {n: (g["lr"], g["weight_decay"], g["eps"]) for g in optimizer.param_groups for n in g["param_names"]}
