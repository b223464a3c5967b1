"""ControlNets before any is loaded: what is asked for, what is found, what a pass costs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from mezzotint.backends.fake import FakeBackend
from mezzotint.core import Control, GenerationRequest, Hires, Receipt, ServedControlNet
from mezzotint.engine.rows import batch_key
from mezzotint.errors import InvalidRequest, ModelInvalid, SettingInvalid
from mezzotint.imaging.inputs import cropped_to, resize_image
from mezzotint.models.controlnets import KIND, find_controlnets
from mezzotint.models.manifest import fingerprint
from mezzotint.resolving import resolve
from mezzotint.serve.fleet import _draws
from mezzotint.serve.wire import Report
from tests.controlnets import lines

CANNY, DEPTH = ServedControlNet("canny", "a" * 64), ServedControlNet("depth", "b" * 64)
INFO = FakeBackend(controlnets=(CANNY, DEPTH)).info
HELD = Control("canny", lines())


def asked(*controls: Any, **fields: Any) -> GenerationRequest:
    return GenerationRequest("a fox", **{"seed": 1, "controls": controls, **fields})


class TestRequests:
    def test_they_are_put_in_one_order_and_at_the_pictures_size(self) -> None:
        other = Control("depth", lines(1, 32, 96), scale=0.5)
        drawn = resolve(asked(other, HELD, width=96, height=64), INFO.limits)
        assert [each.name for each in drawn.controls] == ["canny", "depth"]
        assert all(each.image.shape == (64, 96, 3) for each in drawn.controls)

    def test_of_a_larger_picture_they_have_its_size_in_the_end(self) -> None:
        drawn = resolve(asked(HELD, width=128, height=128, hires=Hires(2.0)), INFO.limits)
        assert drawn.controls[0].image.shape == (256, 256, 3)
        assert [batch_key(stage).controls for stage in drawn.stages] == [(1.0,), (1.0,)]

    def test_one_that_is_of_the_first_stage_alone_is_accepted(self) -> None:
        early = replace(HELD, end=0.1)
        drawn = resolve(asked(early, width=128, height=128, hires=Hires(2.0)), INFO.limits)
        assert [
            any(early.holds(i, stage.evaluations) for i in range(stage.evaluations)) for stage in drawn.stages
        ] == [
            True,
            False,
        ]

    def test_without_a_size_the_picture_has_the_first_ones_unless_there_is_an_image(self) -> None:
        wide = Control("canny", lines(0, 192, 96))
        assert (lambda drawn: (drawn.width, drawn.height))(resolve(asked(wide), INFO.limits)) == (192, 96)
        image = np.zeros((96, 96, 3), np.uint8)
        assert (lambda drawn: (drawn.width, drawn.height))(
            resolve(asked(wide, image=image), INFO.limits)
        ) == (96, 96)
        assert resolve(asked(wide, width=64), INFO.limits).height == INFO.limits.default_height

    def test_one_of_no_strength_is_left_out(self) -> None:
        plain = resolve(asked(), INFO.limits)
        assert resolve(asked(replace(HELD, scale=0), width=128, height=128), INFO.limits) == plain

    def test_lines_alone_can_be_followed_without_words(self) -> None:
        assert resolve(replace(asked(HELD), prompt=""), INFO.limits).prompt == ""
        with pytest.raises(InvalidRequest, match="prompt is empty"):
            resolve(replace(asked(), prompt=""), INFO.limits)

    @pytest.mark.parametrize(
        ("controls", "param", "told"),
        [
            ((Control("pose", lines()),), "controls", "no ControlNet 'pose'; served are canny, depth"),
            ((HELD, HELD), "controls", "names canny twice"),
            ((HELD,) * 5, "controls", "at most 4"),
            (("canny",), "controls", "a tuple of mezzotint.core.Control"),
            ((Control(3, lines()),), "controls", "a tuple of"),  # type: ignore[arg-type]
            ((replace(HELD, image="lines"),), "controls.image", "height × width × 3, not str"),
            ((replace(HELD, image=np.zeros((8, 8))),), "controls.image", "not 8 × 8 of float64"),
            ((replace(HELD, preprocessor="hed"),), "controls.preprocessor", "none or canny, not 'hed'"),
            ((replace(HELD, scale=2.1),), "controls.scale", "0…2"),
            ((replace(HELD, scale=float("nan")),), "controls.scale", "0…2"),
            ((replace(HELD, scale=True),), "controls.scale", "0…2 for canny, not True"),
            ((replace(HELD, scale=None),), "controls.scale", "0…2 for canny, not None"),
            ((replace(HELD, end=None),), "controls.end", "0…1 for canny, not None"),
            ((replace(HELD, end=1.5),), "controls.end", "0…1"),
            ((replace(HELD, start=0.2, end=0.21),), "controls.start", "no whole step of 20"),
            (
                (replace(HELD, start=0.5, end=0.5),),
                "controls.start",
                "must be below the end of canny, 0.5, not 0.5",
            ),
        ],
    )
    def test_what_is_not_accepted_is_named(self, controls: tuple[Any, ...], param: str, told: str) -> None:
        with pytest.raises(InvalidRequest, match=told) as refused:
            resolve(asked(*controls), INFO.limits)
        assert refused.value.param == param

    @pytest.mark.parametrize("controls", [None, HELD, 5, np.zeros((3, 3))], ids=repr)
    def test_what_is_no_tuple_of_them_is_refused(self, controls: Any) -> None:
        with pytest.raises(InvalidRequest, match="takes a tuple of"):
            resolve(replace(asked(), controls=controls), INFO.limits)

    def test_a_model_without_any_says_so(self) -> None:
        with pytest.raises(InvalidRequest, match="served without any"):
            resolve(asked(HELD), FakeBackend().info.limits)

    def test_a_receipt_of_before_there_were_any_is_read(self) -> None:
        receipt = INFO.receipt(resolve(asked(replace(HELD, scale=0.5)), INFO.limits))
        assert Receipt.from_dict(json.loads(json.dumps(receipt.to_dict()))) == receipt
        told = {name: value for name, value in receipt.to_dict().items() if name != "controls"}
        assert Receipt.from_dict(told) == replace(receipt, controls=())


class TestCosts:
    def test_one_that_holds_for_a_part_counts_for_that_part(self) -> None:
        late = resolve(asked(replace(HELD, start=0.75), Control("depth", lines())), INFO.limits)
        assert batch_key(late).controls == pytest.approx((0.25, 1.0))

    def test_a_replica_without_it_is_not_asked(self) -> None:
        request = resolve(asked(HELD), INFO.limits)

        def report(backend: FakeBackend) -> Report:
            return Report("r", backend.info, True, 0, 8, 60.0, {}, {}, 0.0)

        assert _draws(report(FakeBackend(controlnets=(CANNY, DEPTH))), request)
        assert not _draws(report(FakeBackend(controlnets=(DEPTH,))), request)


class TestFiles:
    def written(self, folder: Path) -> Path:
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        return folder

    def test_the_models_own_and_those_that_are_named_are_found(self, tmp_path: Path) -> None:
        own = self.written(tmp_path / "model/controlnets/canny")
        file = tmp_path / "model/controlnets/depth.safetensors"
        save_file({"weight": np.zeros(1)}, file)
        other = self.written(tmp_path / "made by hand")
        found = find_controlnets(tmp_path / "model", [f"hand={other}"])
        assert [(each.served.name, each.path) for each in found] == [
            ("canny", own),
            ("depth", file),
            ("hand", other),
        ]

    def test_a_folder_that_was_pulled_whole_is_told_by_what_is_read_of_it(self, tmp_path: Path) -> None:
        own = self.written(tmp_path / "controlnets/canny")
        (before,) = find_controlnets(tmp_path)
        (own / "README.md").write_text("changed")
        assert find_controlnets(tmp_path) == (before,)
        (own / "config.json").write_text('{"changed": true}')
        assert find_controlnets(tmp_path) != (before,)

    def test_what_lies_beside_a_model_does_not_make_it_another(self, tmp_path: Path) -> None:
        (tmp_path / "model_index.json").write_text("{}")
        before = fingerprint(tmp_path)
        self.written(tmp_path / "controlnets/canny")
        assert fingerprint(tmp_path) == before

    @pytest.mark.parametrize(
        ("given", "told"),
        [
            ("nowhere", "'nowhere' is none"),
            ("{folder}", "is none"),
            ("a b={folder}/good", "is no name"),
            ("own={folder}/good", "two of the name own"),
        ],
    )
    def test_what_cannot_be_served_stops_the_start(self, tmp_path: Path, given: str, told: str) -> None:
        self.written(tmp_path / "controlnets/own")
        self.written(tmp_path / "good")
        with pytest.raises(SettingInvalid, match=told) as refused:
            find_controlnets(tmp_path, [given.format(folder=tmp_path)])
        assert refused.value.param == "controlnets"

    def union(self, file: Path, *shape: int) -> Path:
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({"task_embedding": np.zeros(shape), "weight": np.zeros(1)}, file)
        return file

    def test_a_union_is_found_once_for_each_kind_that_it_has_learnt(self, tmp_path: Path) -> None:
        folder = self.written(tmp_path / "controlnets/union")
        self.union(folder / "diffusion_pytorch_model-00001-of-00001.safetensors", 6, 32)
        # Of the same folder, as its author publishes it, and not what is read of it.
        self.union(folder / "diffusion_pytorch_model_promax.safetensors", 8, 32)
        file = self.union(tmp_path / "pro.safetensors", 8, 32)
        found = find_controlnets(tmp_path, [str(file), f"lines={file}", f"my-canny={file}"])
        six = ["openpose", "depth", "softedge", "canny", "normal", "segment"]
        eight = [*six, "tile", "repaint"]
        assert [(each.served.name, each.path, each.kind) for each in found] == [
            *((f"union-{kind}", folder, number) for number, kind in enumerate(six)),
            *((f"pro-{kind}", file, number) for number, kind in enumerate(eight)),
            *((f"lines-{kind}", file, number) for number, kind in enumerate(eight)),
            ("my-canny", file, 3),
        ]
        assert len({each.served.sha256 for each in found}) == 2

    def test_a_union_whose_kinds_are_not_known_is_refused(self, tmp_path: Path) -> None:
        self.union(tmp_path / "controlnets/odd.safetensors", 7, 32)
        with pytest.raises(ModelInvalid, match=r"odd\.safetensors is a ControlNet-Union of 7 kinds"):
            find_controlnets(tmp_path)

    def test_a_kind_and_a_plain_one_of_the_same_name_are_refused(self, tmp_path: Path) -> None:
        self.union(tmp_path / "controlnets/union.safetensors", 6, 32)
        plain = self.written(tmp_path / "union-canny")
        with pytest.raises(SettingInvalid, match="two of the name union-canny") as refused:
            find_controlnets(tmp_path, [str(plain)])
        assert refused.value.param == "controlnets"

    @pytest.mark.parametrize("name", ["cut.safetensors", "folder/diffusion_pytorch_model.fp16.safetensors"])
    def test_a_truncated_file_is_refused_at_once(self, tmp_path: Path, name: str) -> None:
        self.written(tmp_path / "controlnets/folder")
        file = self.union(tmp_path / "controlnets" / name, 6, 32)
        file.write_bytes(file.read_bytes()[:-8])
        with pytest.raises(ModelInvalid, match=f"{file.name} is truncated"):
            find_controlnets(tmp_path)

    def test_the_command_line_names_one_by_name_or_by_path(self, tmp_path: Path) -> None:
        folder = self.written(tmp_path / "scribble")
        for given, name, place, scale in (
            ("canny", "canny", None, 1.0),
            ("canny:0.5", "canny", None, 0.5),
            (str(folder), "scribble", str(folder), 1.0),
            ("scribble", "scribble", None, 1.0),
            (f"mine={folder}:1.5", "mine", f"mine={folder}", 1.5),
            ("x/net.safetensors", "net", "x/net.safetensors", 1.0),
        ):
            choice = KIND.read_choice(given, "--controlnet")
            assert (choice.name, choice.place, choice.scale) == (name, place, scale)


@pytest.mark.parametrize(("width", "height"), [(64, 64), (96, 32), (32, 96), (1, 1000), (1000, 1)])
def test_what_is_cropped_keeps_its_middle_and_has_the_proportions(width: int, height: int) -> None:
    image = np.arange(60 * 100 * 3, dtype=np.uint32).astype(np.uint8).reshape(60, 100, 3)
    kept = cropped_to(image, width, height)
    rows, columns = kept.shape[:2]
    assert rows == 60 or columns == 100
    assert abs(columns * height - rows * width) <= max(width, height)
    top, left = (60 - rows) // 2, (100 - columns) // 2
    assert np.array_equal(kept, image[top : top + rows, left : left + columns])
    assert resize_image(kept, width, height).shape == (height, width, 3)
