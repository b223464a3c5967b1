"""Textual inversions before any is loaded: where a text names them, what is found, what a receipt tells."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from mezzotint.backends.fake import FakeBackend
from mezzotint.backends.windows import read_windows
from mezzotint.core import GenerationRequest, Receipt, ServedEmbedding
from mezzotint.embeddings import names_in, parts_of
from mezzotint.emphasis import Piece, parse_emphasis
from mezzotint.errors import ModelInvalid, SettingInvalid
from mezzotint.imaging.metadata import parameters_text
from mezzotint.models.embeddings import find_embeddings
from mezzotint.models.locations import find_model
from mezzotint.resolving import resolve
from mezzotint.serve.access.caller import ANYONE
from mezzotint.serve.fleet import _draws
from mezzotint.serve.prepared import PreparedRequest, draw_the_same
from mezzotint.serve.wire import Order, Report
from tests.embeddings import write_embedding

NAMES = ("ink", "ink-wash", "negativeXL_D", "v1.1")


class TestWords:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("a ink drawing", ["a ", ("ink",), " drawing"]),
            ("Ink, INK.", [("ink",), ", ", ("ink",), "."]),
            ("pink inks ink_ _ink", ["pink inks ink_ _ink"]),
            ("ink-wash ink-washed ink", [("ink-wash",), " ink-washed ", ("ink",)]),
            ("(negativexl_d:1.2)", ["(", ("negativeXL_D",), ":1.2)"]),
            ("v1x1 v1.1", ["v1x1 ", ("v1.1",)]),
            ("", []),
            # What another alphabet's capitals would make of a name.
            ("ınk İnk ink", ["ınk İnk ", ("ink",)]),
        ],
    )
    def test_a_name_is_a_word_of_its_own_in_any_case(self, text: str, expected: list[object]) -> None:
        told = [(part,) if is_name else part for part, is_name in parts_of(text, NAMES)]
        assert told == expected

    @given(st.text("ink-wash (:)._ I", max_size=60))
    def test_no_text_is_lost(self, text: str) -> None:
        parts = list(parts_of(text, ["ink", "ink-wash"]))
        assert "".join(part for part, _ in parts).casefold() == text.casefold()
        assert list(parts_of(text, [])) == [(text, False)]

    def test_those_of_several_texts_are_told_once_and_in_order(self) -> None:
        assert names_in(NAMES, "v1.1 ink", None, "ink") == ("ink", "v1.1")


@pytest.fixture(scope="module")
def words() -> transformers.CLIPTokenizer:
    """The demo model's: a word is a token."""
    return transformers.CLIPTokenizer.from_pretrained(find_model("demo") / "tokenizer")


class TestTokens:
    def test_its_vectors_stand_where_the_name_did(self, words: transformers.CLIPTokenizer) -> None:
        vectors = torch.arange(6.0).view(3, 2)
        pieces = parse_emphasis("a fox (ink:1.5) and a strawberry")
        [windows] = read_windows([words], pieces, 4, {"ink": [vectors]})
        [(at, places)] = [(0, [place for _, place, _ in windows.vectors])]
        assert (at, places) == (0, [3, 4, 5])
        assert torch.equal(torch.stack([vector for *_, vector in windows.vectors]), vectors)
        assert windows.weights is not None
        assert windows.weights[0, 2:7, 0].tolist() == [1.0, 1.5, 1.5, 1.5, 1.0]
        [plain] = read_windows([words], [Piece("a fox"), Piece(" and a strawberry")], 4)
        assert windows.ids[0, 1:3].tolist() == plain.ids[0, 1:3].tolist()
        assert windows.ids[0, 6:9].tolist() == plain.ids[0, 3:6].tolist()
        # The mark of the end is where an encoder looks for it.
        assert windows.ids[0, 9] == words.eos_token_id

    @pytest.mark.parametrize("before", [18, 21, 29, 30])
    def test_it_is_not_parted(self, words: transformers.CLIPTokenizer, before: int) -> None:
        text = " ".join(["fox"] * before + ["ink"] + ["fox"] * 3)
        [windows] = read_windows([words], [Piece(text)], 4, {"ink": [torch.zeros(15, 2)]})
        assert [(window, place) for window, place, _ in windows.vectors] == [(1, 1 + i) for i in range(15)]
        assert windows.cut == ""

    def test_one_that_has_no_room_is_cut_whole_and_named(self, words: transformers.CLIPTokenizer) -> None:
        text = " ".join(["fox"] * 28 + ["ink"])
        [windows] = read_windows([words], [Piece(text)], 1, {"ink": [torch.zeros(8, 2)]})
        assert (windows.cut, windows.read, list(windows.vectors)) == ("ink", 28, [])

    def test_one_longer_than_a_window_goes_on_in_the_next(self, words: transformers.CLIPTokenizer) -> None:
        [windows] = read_windows([words], [Piece("ink")], 4, {"ink": [torch.zeros(40, 2)]})
        assert [window for window, *_ in windows.vectors] == [0] * 30 + [1] * 10


LIMITS = FakeBackend(embeddings=(ServedEmbedding("ink", "a" * 64, 1), ServedEmbedding("bad", "b" * 64, 2)))


class TestRequests:
    def asked(self, prompt: str, negative: str | None = None, guidance: float = 5.0) -> tuple[str, ...]:
        request = GenerationRequest(prompt, negative, guidance_scale=guidance, seed=1)
        return resolve(request, LIMITS.info.limits).embeddings

    def test_those_that_are_read_are_told(self) -> None:
        assert self.asked("a fox") == ()
        assert self.asked("a fox in INK", "bad") == ("bad", "ink")
        assert self.asked("a fox in ink", "bad", guidance=1.0) == ("ink",)

    def test_with_brackets_the_words_between_them_count(self) -> None:
        def named(prompt: str) -> tuple[str, ...]:
            request = GenerationRequest(prompt, seed=1, emphasis=True)
            return resolve(request, LIMITS.info.limits).embeddings

        assert named("(ink:1.3) fox") == ("ink",)
        assert named("(in:1.3)k") == ()
        assert named("(in:1)k (b:1)ad") == ("bad", "ink")

    def test_a_replica_without_it_is_not_asked(self) -> None:
        request = resolve(GenerationRequest("ink", seed=1), LIMITS.info.limits)
        served, plain = (
            Report("r", backend.info, True, 0, 8, 60.0, {}, {}) for backend in (LIMITS, FakeBackend())
        )
        assert _draws(served, request)
        assert not _draws(plain, request)

    def test_another_file_of_the_same_name_is_another_picture(self) -> None:
        other = FakeBackend(embeddings=(ServedEmbedding("ink", "c" * 64, 1),))
        request = resolve(GenerationRequest("ink", seed=1), other.info.limits)
        etags = {
            PreparedRequest(Order(request), ANYONE, info, 0.0).etag for info in (LIMITS.info, other.info)
        }
        assert len(etags) == 2
        assert not draw_the_same(LIMITS.info, other.info)

    def test_the_receipt_has_their_hashes_and_a1111s_text_too(self) -> None:
        request = resolve(GenerationRequest("ink", "bad", seed=1), LIMITS.info.limits)
        receipt = LIMITS.info.receipt(request)
        assert [(each.name, each.sha256) for each in receipt.embeddings] == [
            ("bad", "b" * 64),
            ("ink", "a" * 64),
        ]
        assert 'TI hashes: "bad: bbbbbbbbbbbb, ink: aaaaaaaaaaaa"' in parameters_text(receipt)
        assert Receipt.from_dict(json.loads(json.dumps(receipt.to_dict()))) == receipt
        told = {name: value for name, value in receipt.to_dict().items() if name != "embeddings"}
        assert Receipt.from_dict(told) == replace(receipt, embeddings=())


class TestFiles:
    def test_the_models_own_and_those_that_are_named_are_found(self, tmp_path: Path) -> None:
        own = write_embedding(tmp_path / "model/embeddings/own.safetensors", 2)
        other = write_embedding(tmp_path / "made by hand.safetensors")
        found = find_embeddings(tmp_path / "model", [f"hand={other}"])
        assert [(each.served.name, each.served.vectors, each.path) for each in found] == [
            ("own", 2, own),
            ("hand", 1, other),
        ]

    def test_two_that_a_prompt_cannot_tell_apart_are_refused(self, tmp_path: Path) -> None:
        one, two = (write_embedding(tmp_path / f"{name}.safetensors") for name in ("Ink", "ink"))
        with pytest.raises(SettingInvalid, match="differ in case alone"):
            find_embeddings(tmp_path, [str(one), str(two)])

    @pytest.mark.parametrize(
        "tensors",
        [
            {"emb_params": torch.zeros(1, 768)},
            {"clip_l": torch.zeros(1, 768)},
            {"clip_l": torch.zeros(1, 768), "clip_g": torch.zeros(2, 1280)},
            {"clip_l": torch.zeros(0, 768), "clip_g": torch.zeros(0, 1280)},
            {"clip_l": torch.zeros(768), "clip_g": torch.zeros(1280)},
        ],
        ids=lambda tensors: " ".join(f"{name} {tuple(each.shape)}" for name, each in tensors.items()),
    )
    def test_what_is_none_of_sdxl_is_refused(self, tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
        save_file(tensors, tmp_path / "odd.safetensors")
        with pytest.raises(ModelInvalid, match=r"odd.safetensors is no embedding for SDXL"):
            find_embeddings(tmp_path, [str(tmp_path / "odd.safetensors")])

    def test_one_that_no_window_has_room_for_is_refused(self, tmp_path: Path) -> None:
        path = write_embedding(tmp_path / "long.safetensors", 76)
        with pytest.raises(ModelInvalid, match="has 76 vectors"):
            find_embeddings(tmp_path, [str(path)])

    def test_a_file_that_is_cut_short_is_refused(self, tmp_path: Path) -> None:
        path = write_embedding(tmp_path / "good.safetensors")
        path.write_bytes(path.read_bytes()[:50])
        with pytest.raises(ModelInvalid, match="truncated"):
            find_embeddings(tmp_path, [str(path)])
