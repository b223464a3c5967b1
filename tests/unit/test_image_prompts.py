"""Image prompts before anything is loaded: what is asked for, what is found."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from mezzotint.backends.fake import FakeBackend
from mezzotint.core import GenerationRequest, Hires, ImagePrompt, Receipt, ServedIpAdapter
from mezzotint.engine.rows import batch_key
from mezzotint.errors import InvalidRequest, ModelInvalid, SettingInvalid
from mezzotint.models.added import Added, find_added
from mezzotint.models.ip_adapters import find_ip_adapters
from mezzotint.models.manifest import files_hash, fingerprint
from mezzotint.resolving import resolve
from mezzotint.serve.fleet import _draws
from mezzotint.serve.wire import Report
from tests.controlnets import photo

STYLE, FACE = (ServedIpAdapter(*each, 32, "e" * 64) for each in (("style", "a" * 64), ("face", "b" * 64)))
INFO = FakeBackend(ip_adapters=(STYLE, FACE)).info
READ = ImagePrompt("style", photo())
ENCODER = {"image_size": 224, "projection_dim": 1024, "hidden_size": 1280}


def asked(*prompts: Any, **fields: Any) -> GenerationRequest:
    return GenerationRequest("a fox", **{"seed": 1, "image_prompts": prompts, **fields})


class TestRequests:
    def test_they_are_put_in_one_order_and_at_their_encoders_size(self) -> None:
        other = ImagePrompt("face", photo(1, 32, 96), scale=0.5)
        drawn = resolve(asked(READ, other, width=96, height=64), INFO.limits)
        assert [each.name for each in drawn.image_prompts] == ["face", "style"]
        assert all(each.image.shape == (32, 32, 3) for each in drawn.image_prompts)
        assert not any(each.image.flags.writeable for each in drawn.image_prompts)

    def test_they_share_passes_with_those_without_and_count_as_no_work(self) -> None:
        plain, read = (resolve(each, INFO.limits) for each in (asked(), asked(READ, hires=Hires(2.0))))
        assert batch_key(read.stages[0]) == batch_key(plain)

    def test_one_of_no_scale_is_left_out(self) -> None:
        assert resolve(asked(replace(READ, scale=0)), INFO.limits) == resolve(asked(), INFO.limits)

    @pytest.mark.parametrize(
        ("prompts", "param", "told"),
        [
            ((ImagePrompt("ink", photo()),), "image_prompts", "no IP-Adapter 'ink'; served are style, face"),
            ((READ, READ), "image_prompts", "names style twice"),
            ((READ,) * 5, "image_prompts", "at most 4"),
            (("style",), "image_prompts", "a tuple of mezzotint.core.ImagePrompt"),
            ((replace(READ, image="fox"),), "image_prompts.image", "height × width × 3, not str"),
            ((replace(READ, scale=2.1),), "image_prompts.scale", "0…2 for style, not 2.1"),
            ((replace(READ, scale=None),), "image_prompts.scale", "0…2 for style, not None"),
        ],
    )
    def test_what_is_not_accepted_is_named(self, prompts: tuple[Any, ...], param: str, told: str) -> None:
        with pytest.raises(InvalidRequest, match=told) as refused:
            resolve(asked(*prompts), INFO.limits)
        assert refused.value.param == param

    def test_a_receipt_of_before_there_were_any_is_read(self) -> None:
        receipt = INFO.receipt(resolve(asked(replace(READ, scale=0.5)), INFO.limits))
        assert Receipt.from_dict(json.loads(json.dumps(receipt.to_dict()))) == receipt
        told = {name: value for name, value in receipt.to_dict().items() if name != "image_prompts"}
        assert Receipt.from_dict(told) == replace(receipt, image_prompts=())

    def test_a_replica_without_the_adapter_is_not_asked(self) -> None:
        request = resolve(asked(READ), INFO.limits)

        def report(backend: FakeBackend) -> Report:
            return Report("r", backend.info, True, 0, 8, 60.0, {}, {}, 0.0)

        assert _draws(report(FakeBackend(ip_adapters=(STYLE, FACE))), request)
        assert not _draws(report(FakeBackend(ip_adapters=(FACE,))), request)


class TestFiles:
    def encoder(self, folder: Path, **changes: Any) -> str:
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({**ENCODER, **changes}))
        return str(folder)

    def written(self, file: Path, *names: str, width: int = 1024) -> Path:
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: np.zeros((4, width), np.float16) for name in names}, file)
        return file

    def test_plain_ones_and_plus_are_found_with_what_they_read(self, tmp_path: Path) -> None:
        model = tmp_path / "model"
        encoder = self.encoder(model / "image_encoder")
        own = self.written(model / "ip_adapters/plain.safetensors", "image_proj.proj.weight")
        named = self.written(tmp_path / "x.safetensors", "image_proj.proj_in.weight", width=1280)
        found = find_added(model, ip_adapters=[f"plus={named}"])
        assert [(each.served.name, each.path, each.is_plus) for each in found.ip_adapters] == [
            ("plain", own, False),
            ("plus", named, True),
        ]
        assert {each.served.side for each in found.ip_adapters} == {224}
        assert str(found.image_encoder) == encoder
        assert {each.served.encoder_sha256 for each in found.ip_adapters} == {files_hash(Path(encoder))}

    def test_where_there_are_none_no_encoder_is_asked_for(self, tmp_path: Path) -> None:
        assert find_added(tmp_path) == Added()
        assert find_added(tmp_path, image_encoder=self.encoder(tmp_path / "encoder")) == Added()

    def test_an_encoder_that_is_not_there_stops_the_start(self, tmp_path: Path) -> None:
        file = self.written(tmp_path / "a.safetensors", "image_proj.proj.weight")
        for adapters, given in (([str(file)], ""), ([str(file)], str(tmp_path)), ([], str(tmp_path))):
            with pytest.raises(SettingInvalid, match="image_encoder must be a folder") as refused:
                find_ip_adapters(tmp_path, adapters, given)
            assert refused.value.param == "image_encoder"

    def test_a_models_own_without_an_encoder_are_in_nobodys_way(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """`mezzotint models show` and a plain `draw` know of no other folder."""
        self.written(tmp_path / "model/ip_adapters/plain.safetensors", "image_proj.proj.weight")
        assert find_added(tmp_path / "model") == Added()
        assert "IP-Adapters plain are not served: they need an image_encoder" in caplog.text
        encoder = self.encoder(tmp_path / "encoder")
        (found,) = find_added(tmp_path / "model", image_encoder=encoder).ip_adapters
        assert found.served.name == "plain"
        (tmp_path / "model/image_encoder").mkdir()
        with pytest.raises(SettingInvalid, match="image_encoder must be a folder"):
            find_added(tmp_path / "model")

    def test_neither_they_nor_their_encoder_make_the_model_another(self, tmp_path: Path) -> None:
        (tmp_path / "model_index.json").write_text("{}")
        before = fingerprint(tmp_path)
        self.written(tmp_path / "ip_adapters/plain.safetensors", "image_proj.proj.weight")
        self.encoder(tmp_path / "image_encoder")
        assert fingerprint(tmp_path) == before

    @pytest.mark.parametrize(
        ("names", "width", "told"),
        [
            (
                ("image_proj.proj.weight",),
                1280,
                "reads 1280 numbers, and the projection_dim of this one is 1024",
            ),
            (
                ("image_proj.proj_in.weight",),
                1664,
                "reads 1664 numbers, and the hidden_size of this one is 1280",
            ),
            (("image_proj.proj.0.weight", "image_proj.proj.2.weight"), 512, "is an IP-Adapter FaceID"),
            (
                ("image_proj.proj.2.weight", "image_proj.perceiver_resampler.proj_in.weight"),
                512,
                "is an IP-Adapter FaceID",
            ),
            (("image_proj.proj.2.weight", "image_proj.proj.3.weight"), 1280, "is a full IP-Adapter"),
            (("lora_unet.weight",), 4, "is no IP-Adapter: it holds neither"),
        ],
    )
    def test_what_is_for_another_encoder_or_of_another_kind_is_refused(
        self, tmp_path: Path, names: tuple[str, ...], width: int, told: str
    ) -> None:
        encoder = self.encoder(tmp_path / "encoder")
        file = self.written(tmp_path / "odd.safetensors", *names, width=width)
        with pytest.raises(ModelInvalid, match=rf"odd\.safetensors .*{told}"):
            find_ip_adapters(tmp_path, [str(file)], encoder)

    def test_a_number_in_the_place_of_a_weight_is_refused(self, tmp_path: Path) -> None:
        encoder = self.encoder(tmp_path / "encoder")
        save_file({"image_proj.proj.weight": np.zeros((), np.float16)}, tmp_path / "odd.safetensors")
        with pytest.raises(ModelInvalid, match=r"odd\.safetensors is for another image encoder"):
            find_ip_adapters(tmp_path, [str(tmp_path / "odd.safetensors")], encoder)

    def test_a_truncated_file_is_refused(self, tmp_path: Path) -> None:
        encoder = self.encoder(tmp_path / "encoder")
        file = self.written(tmp_path / "cut.safetensors", "image_proj.proj.weight")
        file.write_bytes(file.read_bytes()[:-8])
        with pytest.raises(ModelInvalid, match=r"cut\.safetensors is truncated"):
            find_ip_adapters(tmp_path, [str(file)], encoder)
