"""LoRAs in requests, as files, and in a module's weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mezzotint.backends.fake import FAKE_LIMITS, FakeBackend
from mezzotint.backends.loras import AdaptedModule, Change, Decomposed, Full, Hadamard, Kronecker, LowRank
from mezzotint.core import GenerationRequest, Lora, Receipt, ServedLora, UsedLora
from mezzotint.engine.rows import batch_key
from mezzotint.errors import InvalidRequest, ModelInvalid, SettingInvalid
from mezzotint.imaging.metadata import parameters_text
from mezzotint.models.loras import find_loras, read_choices
from mezzotint.resolving import resolve
from tests.loras import write_lora

FEW = ServedLora("few", "Few steps", "f" * 64, steps=4, guidance_scale=1.0, scheduler="LCM")
INK = ServedLora("ink", "Ink", "a" * 64)
LIMITS = replace(FAKE_LIMITS, loras=(FEW, INK))


def asked(*loras: Lora, **fields: Any) -> GenerationRequest:
    return GenerationRequest("a fox", seed=1, loras=loras, **fields)


class TestRequests:
    def test_they_are_put_in_one_order_and_what_changes_nothing_is_left_out(self) -> None:
        one = resolve(asked(Lora("ink", 0.5), Lora("few")), LIMITS)
        other = resolve(asked(Lora("few"), Lora("ink", 0.5)), LIMITS)
        assert batch_key(one) == batch_key(other)
        assert resolve(asked(Lora("ink", 0)), LIMITS) == resolve(asked(), LIMITS)

    def test_one_of_few_steps_brings_its_defaults_and_no_more_than_defaults(self) -> None:
        drawn = resolve(asked(Lora("few")), LIMITS)
        assert (drawn.steps, drawn.guidance_scale, drawn.scheduler) == (4, 1.0, "LCM")
        assert resolve(asked(Lora("few"), steps=6), LIMITS).steps == 6
        assert resolve(asked(Lora("ink")), LIMITS).steps == FAKE_LIMITS.default_steps

    @pytest.mark.parametrize(
        ("loras", "told"),
        [
            ((Lora("oil"),), "there is no 'oil'; served are few, ink"),
            ((Lora("ink"), Lora("ink", 0.5)), "names ink twice"),
            ((Lora("ink", 4.5),), "-4…4"),
            ((Lora("ink", float("nan")),), "-4…4"),
            (tuple(Lora("ink") for _ in range(9)), "at most 8"),
            ((Lora("ink", None),), "must be a number"),  # type: ignore[arg-type]
            (("ink",), "takes a tuple of mezzotint.core.Lora"),
        ],
    )
    def test_what_is_not_accepted_is_named(self, loras: tuple[Lora, ...], told: str) -> None:
        with pytest.raises(InvalidRequest, match=told) as refused:
            resolve(asked(*loras), LIMITS)
        assert refused.value.param == "loras"

    def test_a_receipt_of_before_there_were_any_is_read(self) -> None:
        info = FakeBackend(loras=(INK,)).info
        receipt = info.receipt(resolve(asked(Lora("ink", 0.5)), info.limits))
        assert Receipt.from_dict(receipt.to_dict()) == receipt
        told = {name: value for name, value in receipt.to_dict().items() if name != "loras"}
        assert Receipt.from_dict({**told, "of_a_later_version": 1}) == replace(receipt, loras=())

    @pytest.mark.parametrize("loras", [None, "ink", {"ink": 1.0}])
    def test_what_is_no_tuple_of_them_is_refused(self, loras: Any) -> None:
        with pytest.raises(InvalidRequest, match="takes a tuple of"):
            resolve(replace(asked(), loras=loras), LIMITS)

    def test_a_model_without_any_says_so(self) -> None:
        with pytest.raises(InvalidRequest, match="served without any"):
            resolve(asked(Lora("ink")), FAKE_LIMITS)

    def test_requests_with_other_loras_never_share_a_pass_and_cost_the_same(self) -> None:
        plain, inked = (batch_key(resolve(request, LIMITS)) for request in (asked(), asked(Lora("ink"))))
        assert plain.shape != inked.shape
        assert inked.cost_key == plain

    def test_the_receipt_names_them_with_their_hashes_and_a1111s_text_as_it_does(self) -> None:
        info = FakeBackend(loras=(FEW, INK)).info
        receipt = info.receipt(resolve(asked(Lora("ink", 0.5)), info.limits))
        assert receipt.loras == (UsedLora("ink", 0.5, INK.sha256),)
        assert receipt.to_dict()["loras"] == [{"name": "ink", "scale": 0.5, "sha256": INK.sha256}]
        text = parameters_text(receipt)
        assert text.startswith("a fox <lora:ink:0.5>\n")
        assert text.endswith(f'Lora hashes: "ink: {INK.sha256[:12]}"')


class TestFiles:
    def test_the_models_own_and_those_that_are_named_are_found(self, tmp_path: Path) -> None:
        own = write_lora(tmp_path / "model/loras/own.safetensors", metadata={"title": "Our own"})
        other = write_lora(tmp_path / "made by hand.safetensors")
        found = find_loras(tmp_path / "model", [f"hand={other}"])
        assert [(each.served.name, each.served.title, each.path) for each in found] == [
            ("own", "Our own", own),
            ("hand", "hand", other),
        ]
        assert len({each.served.sha256 for each in found}) == 2

    def test_its_defaults_are_read_and_nonsense_is_not(self, tmp_path: Path) -> None:
        told = {"mezzotint_steps": "4", "mezzotint_guidance_scale": "1.0", "mezzotint_scheduler": "lcm"}
        write_lora(tmp_path / "loras/few.safetensors", metadata=told)
        odd = {"mezzotint_steps": "-1", "mezzotint_guidance_scale": "nan", "mezzotint_scheduler": "magic"}
        write_lora(tmp_path / "loras/odd.safetensors", metadata=odd)
        few, odd_one = (each.served for each in find_loras(tmp_path))
        assert (few.steps, few.guidance_scale, few.scheduler) == (4, 1.0, "LCM")
        assert (odd_one.steps, odd_one.guidance_scale, odd_one.scheduler) == (None, None, None)

    @pytest.mark.parametrize(
        ("given", "told"),
        [
            ("nowhere.safetensors", "is none"),
            ("{folder}/model.bin", "is none"),
            ("with space={folder}/good.safetensors", "is no name"),
            ("own={folder}/good.safetensors", "two of the name own"),
        ],
    )
    def test_what_cannot_be_served_stops_the_start(self, tmp_path: Path, given: str, told: str) -> None:
        write_lora(tmp_path / "loras/own.safetensors")
        write_lora(tmp_path / "good.safetensors")
        (tmp_path / "model.bin").write_bytes(b"x")
        with pytest.raises(SettingInvalid, match=told):
            find_loras(tmp_path, [given.format(folder=tmp_path)])

    def test_a_file_that_is_cut_short_is_refused(self, tmp_path: Path) -> None:
        path = write_lora(tmp_path / "good.safetensors")
        path.write_bytes(path.read_bytes()[:100])
        with pytest.raises(ModelInvalid, match="truncated"):
            find_loras(tmp_path, [str(path)])


def test_the_command_line_names_them_by_name_or_by_file() -> None:
    given = ["ink", "few-step:0.5", "/a/oil.safetensors", "b/c.safetensors:-1", "d=b/e.safetensors:2"]
    loras, files = read_choices(given)
    assert loras == (Lora("ink"), Lora("few-step", 0.5), Lora("oil"), Lora("c", -1.0), Lora("d", 2.0))
    assert files == ["/a/oil.safetensors", "b/c.safetensors", "d=b/e.safetensors"]
    with pytest.raises(InvalidRequest, match="--lora takes NAME"):
        read_choices(["ink:much"])


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(6, 4, bias=False)
        self.fold = nn.Conv2d(3, 5, 3)
        self.half()


RANDOM = torch.Generator().manual_seed(0)


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=RANDOM)


LINE = LowRank(random(2, 6), random(4, 2), scaling=0.5)
FOLD = LowRank(random(2, 3, 3, 3), random(5, 2, 1, 1))


class TestWeights:
    def test_it_is_the_products_scaled_and_summed_and_comes_off_without_a_trace(self) -> None:
        module = Two()
        before = {name: weight.clone() for name, weight in module.state_dict().items()}
        adapted = AdaptedModule(
            module, {"a": {"line.weight": LINE, "fold.weight": FOLD}, "b": {"line.weight": LINE}}
        )
        adapted.activate((Lora("a", 0.5), Lora("b", -2.0)))
        line = before["line.weight"].float() + (0.5 - 2.0) * 0.5 * LINE.up @ LINE.down
        torch.testing.assert_close(module.line.weight.float(), line, atol=2e-3, rtol=1e-3)
        fold = (0.5 * FOLD.up.flatten(1) @ FOLD.down.flatten(1)).view(5, 3, 3, 3)
        fold = before["fold.weight"].float() + fold
        torch.testing.assert_close(module.fold.weight.float(), fold, atol=2e-3, rtol=1e-3)
        adapted.activate((Lora("b"),))
        assert torch.equal(module.fold.weight, before["fold.weight"])
        adapted.activate(())
        assert all(torch.equal(weight, before[name]) for name, weight in module.state_dict().items())

    def test_what_broke_off_in_the_middle_is_put_right_by_the_next(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        module = Two()
        before = module.line.weight.clone()
        adapted = AdaptedModule(module, {"a": {"line.weight": LINE, "fold.weight": FOLD}})

        def fail(self: LowRank, total: torch.Tensor, weight: torch.Tensor, scale: float) -> None:
            if self.down.ndim == 4:
                raise MemoryError
            add_to(self, total, weight, scale)

        add_to = LowRank.add_to
        with monkeypatch.context() as patch:
            patch.setattr(LowRank, "add_to", fail)
            with pytest.raises(MemoryError):
                adapted.activate((Lora("a"),))
        adapted.activate(())
        assert torch.equal(module.line.weight, before)

    @pytest.mark.parametrize(
        ("changes", "told"),
        [
            ({"fold.weight": LINE}, "another shape"),
            ({"line.bias": Full(random(4))}, "has no line.bias"),
            ({"nowhere.weight": LINE}, "has no nowhere"),
        ],
    )
    def test_one_for_another_model_is_refused(self, changes: dict[str, Change], told: str) -> None:
        with pytest.raises(ModelInvalid, match=told):
            AdaptedModule(Two(), {"a": changes})

    @pytest.mark.parametrize(
        "odd",
        [
            LowRank(random(2, 6), random(4, 3)),
            LowRank(random(2, 3), random(5, 2), core=random(2, 2, 3)),
            Hadamard(LINE, FOLD),
            Hadamard(LowRank(random(2, 6), random(3, 2)), LowRank(random(2, 6), random(3, 2))),
            Kronecker(Full(random(2, 2)), Full(random(2, 2))),
            Full(random(6, 4)),
            Decomposed(LINE, random(6, 1, 1)),
            Decomposed(LINE, random(1, 4, 1)),
        ],
        ids=lambda odd: type(odd).__name__,
    )
    def test_what_does_not_make_up_a_weight_is_refused_before_it_is_drawn_with(self, odd: Change) -> None:
        with pytest.raises(ModelInvalid, match=r"line\.weight has another shape"):
            AdaptedModule(Two(), {"a": {"line.weight": odd}})

    def test_several_decomposed_change_the_models_own_weight_each_in_whatever_order(self) -> None:
        module = Two()
        before = module.line.weight.float()
        one = Decomposed(LINE, random(4, 1, 1).abs())
        other = Decomposed(Full(random(4, 6)), random(1, 6, 1).abs())
        adapted = AdaptedModule(module, {"a": {"line.weight": one}, "b": {"line.weight": other}})
        adapted.activate((Lora("a", 0.5), Lora("b", 0.25)))
        worn = module.line.weight.clone()
        adapted.activate((Lora("b", 0.25), Lora("a", 0.5)))
        assert torch.equal(module.line.weight, worn)
        expected = before + 0.5 * one.delta(before) + 0.25 * other.delta(before)
        torch.testing.assert_close(worn.float(), expected, atol=2e-3, rtol=1e-3)
