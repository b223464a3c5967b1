"""Files that change weights otherwise than a LoRA does, against their formulas written out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from mezzotint.backends.loras import AdaptedModule, Change
from mezzotint.backends.parts import PipelineParts
from mezzotint.core import Lora
from mezzotint.models.loading import load_backend
from mezzotint.models.lora_names import modules_by_name
from mezzotint.models.reading import load_parts
from mezzotint.models.reading_loras import read_lora
from tests.parity.conftest import Studio, open_studio
from tests.parity.test_batching import assert_same
from tests.parity.test_single_file import original_unet

RANK = 2
ALPHA = 0.8
SCALE = 0.7
# As the model names each of them, and as kohya's and LyCORIS' files do.
LINEAR = (
    "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
    "lora_unet_input_blocks_3_1_transformer_blocks_0_attn1_to_q",
)
FOLD = ("unet.down_blocks.0.resnets.0.conv1", "lora_unet_input_blocks_1_0_in_layers_2")
NORM = ("unet.mid_block.resnets.0.norm1", "lora_unet_middle_block_0_in_layers_0")
TEXT = (
    "text_encoder_2.text_model.encoder.layers.0.mlp.fc1",
    "lora_te2_text_model_encoder_layers_0_mlp_fc1",
)

Tensors = dict[str, Tensor]
# Of a weight of this shape: the tensors of a file, and what the weight is changed by at scale 1.
Kind = Callable[["Random", Tensor], tuple[Tensors, Tensor]]


class Random:
    """Tensors of random numbers, always the same, in a file's dtype."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.generator = torch.Generator().manual_seed(5)
        self.dtype = dtype

    def __call__(self, *shape: int) -> Tensor:
        return (torch.randn(shape, generator=self.generator) * 0.5).to(self.dtype)


def lora(random: Random, weight: Tensor) -> tuple[Tensors, Tensor]:
    outputs, inputs, *kernel = weight.shape
    down, up = random(RANK, inputs, *kernel), random(outputs, RANK, *(1 for _ in kernel))
    delta = torch.einsum("or,ri...->oi...", up.float().flatten(1), down.float())
    alpha = torch.tensor(ALPHA)
    return {"lora_down.weight": down, "lora_up.weight": up, "alpha": alpha}, ALPHA / RANK * delta


def locon(random: Random, weight: Tensor) -> tuple[Tensors, Tensor]:
    outputs, inputs, *kernel = weight.shape
    down, up = random(RANK, inputs, 1, 1), random(outputs, RANK, 1, 1)
    middle = random(RANK, RANK, *kernel)
    delta = torch.einsum("orxy,rsyz,sixx->oiyz", up.float(), middle.float(), down.float())
    tensors = {"lora_down.weight": down, "lora_up.weight": up, "lora_mid.weight": middle}
    return tensors | {"alpha": torch.tensor(ALPHA)}, ALPHA / RANK * delta


def loha(random: Random, weight: Tensor) -> tuple[Tensors, Tensor]:
    outputs = len(weight)
    tensors = {}
    halves = []
    for half in ("1", "2"):
        a, b = random(outputs, RANK), random(RANK, weight[0].numel())
        tensors |= {f"hada_w{half}_a": a, f"hada_w{half}_b": b}
        halves.append((a.float() @ b.float()).view(weight.shape))
    return tensors | {"alpha": torch.tensor(ALPHA)}, ALPHA / RANK * halves[0] * halves[1]


def loha_tucker(random: Random, weight: Tensor) -> tuple[Tensors, Tensor]:
    outputs, inputs, *kernel = weight.shape
    tensors = {}
    halves = []
    for half in ("1", "2"):
        a, b, core = random(RANK, outputs), random(RANK, inputs), random(RANK, RANK, *kernel)
        tensors |= {f"hada_w{half}_a": a, f"hada_w{half}_b": b, f"hada_t{half}": core}
        halves.append(torch.einsum("ro,rsyz,si->oiyz", a.float(), core.float(), b.float()))
    return tensors | {"alpha": torch.tensor(ALPHA)}, ALPHA / RANK * halves[0] * halves[1]


def blocks(first: Tensor, second: Tensor) -> Tensor:
    """The Kronecker product: each number of the first times the second, side by side."""
    rows = [torch.cat([number * second for number in row], dim=1) for row in first]
    return torch.cat(rows, dim=0)


def lokr_whole(random: Random, weight: Tensor) -> tuple[Tensors, Tensor]:
    outputs, inputs, *kernel = weight.shape
    first, second = random(4, 8), random(outputs // 4, inputs // 8, *kernel)
    tensors = {"lokr_w1": first, "lokr_w2": second, "alpha": torch.tensor(ALPHA)}
    # Of two that are whole, alpha says nothing.
    return tensors, blocks(first.float(), second.float())


def lokr_pair(random: Random, weight: Tensor) -> tuple[Tensors, Tensor]:
    outputs, inputs, *kernel = weight.shape
    size = torch.Size(kernel).numel()
    first, a, b = random(4, 8), random(outputs // 4, RANK), random(RANK, inputs // 8 * size)
    second = (a.float() @ b.float()).view(outputs // 4, inputs // 8, *kernel)
    tensors = {"lokr_w1": first, "lokr_w2_a": a, "lokr_w2_b": b, "alpha": torch.tensor(ALPHA)}
    return tensors, ALPHA / RANK * blocks(first.float(), second)


def lokr_pairs(random: Random, weight: Tensor) -> tuple[Tensors, Tensor]:
    tensors, _ = lokr_pair(random, weight)
    del tensors["lokr_w1"]
    a, b = random(4, RANK), random(RANK, 8)
    outputs, inputs, *kernel = weight.shape
    second = (tensors["lokr_w2_a"].float() @ tensors["lokr_w2_b"].float()).view(
        outputs // 4, inputs // 8, *kernel
    )
    first = a.float() @ b.float()
    return tensors | {"lokr_w1_a": a, "lokr_w1_b": b}, ALPHA / RANK * blocks(first, second)


def lokr_tucker(random: Random, weight: Tensor) -> tuple[Tensors, Tensor]:
    outputs, inputs, *kernel = weight.shape
    first, a, b = random(4, 8), random(RANK, outputs // 4), random(RANK, inputs // 8)
    core = random(RANK, RANK, *kernel)
    second = torch.einsum("ro,rsyz,si->oiyz", a.float(), core.float(), b.float())
    tensors = {"lokr_w1": first, "lokr_w2_a": a, "lokr_w2_b": b, "lokr_t2": core}
    return tensors | {"alpha": torch.tensor(ALPHA)}, ALPHA / RANK * blocks(first.float(), second)


def full(random: Random, weight: Tensor) -> tuple[Tensors, Tensor]:
    diff = random(*weight.shape)
    return {"diff": diff}, diff.float()


def dora(of: Kind, name: str = "dora_scale", *, inputs: bool = False, peft: bool = False) -> Kind:
    """What another kind makes of a weight, each output's or input's share at the length that a file holds."""

    def kind(random: Random, weight: Tensor) -> tuple[Tensors, Tensor]:
        tensors, delta = of(random, weight)
        changed = (weight.float() + delta).transpose(0, int(inputs))
        lengths = random(len(changed)).abs() + 1
        parts = [length * part / part.norm() for length, part in zip(lengths.float(), changed, strict=True)]
        result = torch.stack(parts).transpose(0, int(inputs))
        shape = [1] * weight.ndim
        shape[int(inputs or (peft and weight.ndim > 2))] = -1
        magnitude = lengths if peft and weight.ndim == 2 else lengths.view(shape)
        return tensors | {name: magnitude}, result - weight

    return kind


KINDS: dict[str, tuple[Kind, Kind]] = {
    # Of a linear module, and of a convolution.
    "lora": (lora, lora),
    "locon": (lora, locon),
    "loha": (loha, loha),
    "loha-tucker": (loha, loha_tucker),
    "lokr-whole": (lokr_whole, lokr_whole),
    "lokr-pair": (lokr_pair, lokr_pair),
    "lokr-pairs": (lokr_pairs, lokr_pairs),
    "lokr-tucker": (lokr_pair, lokr_tucker),
    "full": (full, full),
    "dora": (dora(lora), dora(locon)),
    "dora-of-inputs": (dora(lora, inputs=True), dora(lora, inputs=True)),
    "dora-of-peft": (
        dora(lora, "lora_magnitude_vector", peft=True),
        dora(lora, "lora_magnitude_vector.weight", peft=True),
    ),
    "dora-of-loha": (dora(loha), dora(loha_tucker)),
    "dora-of-lokr": (dora(lokr_pair), dora(lokr_tucker)),
}


def parameter(modules: dict[str, Any], path: str) -> Tensor:
    component, _, place = path.partition(".")
    owner = modules[component]
    if component != "unet" and not hasattr(owner, "text_model"):
        place = place.removeprefix("text_model.")
    found: Tensor = owner.get_parameter(place)
    return found


def made(kind: str, modules: dict[str, Any], dtype: torch.dtype = torch.float32) -> tuple[Tensors, Tensors]:
    """The tensors of a file, and what it adds to each parameter at scale 1: biases and a norm too."""
    random = Random(dtype)
    tensors: Tensors = {}
    deltas: Tensors = {}
    linear, convolution = KINDS[kind]
    for (path, name), make in ((LINEAR, linear), (FOLD, convolution), (TEXT, linear)):
        parts, delta = make(random, parameter(modules, f"{path}.weight").detach())
        tensors |= {f"{name}.{part}": tensor for part, tensor in parts.items()}
        deltas[f"{path}.weight"] = delta
    for path, name, ending in (
        (f"{FOLD[0]}.bias", FOLD[1], "diff_b"),
        (f"{TEXT[0]}.bias", TEXT[1], "diff_b"),
        (f"{NORM[0]}.weight", NORM[1], "w_norm"),
        (f"{NORM[0]}.bias", NORM[1], "b_norm"),
    ):
        diff = random(len(parameter(modules, path)))
        tensors[f"{name}.{ending}"], deltas[path] = diff, diff.float()
    return {name: tensor.contiguous() for name, tensor in tensors.items()}, deltas


@pytest.fixture(scope="module")
def parts(tiny_sdxl: Path) -> PipelineParts:
    return load_parts(tiny_sdxl, dtype=torch.float32, device=torch.device("cpu"))


def modules_of(parts: PipelineParts) -> dict[str, Any]:
    first, second = parts.text_encoders
    return {"unet": parts.unet, "text_encoder": first, "text_encoder_2": second}


@pytest.fixture(scope="module")
def studio(tiny_sdxl: Path, parts: PipelineParts, tmp_path_factory: pytest.TempPathFactory) -> Studio:
    """With one file of each kind."""
    folder = tmp_path_factory.mktemp("kinds")
    for kind in KINDS:
        save_file(made(kind, modules_of(parts))[0], folder / f"{kind}.safetensors")
    files = [str(path) for path in sorted(folder.iterdir())]
    backend = load_backend(str(tiny_sdxl), device="cpu", threads=1, loras=files)
    return open_studio(str(tiny_sdxl), backend)


@pytest.mark.parametrize("kind", KINDS)
def test_it_draws_what_diffusers_does_with_the_merged_weights(
    studio: Studio, tiny_sdxl: Path, kind: str
) -> None:
    request = studio.request(steps=2, loras=(Lora(kind, SCALE),), width=64, height=64)
    merged = open_studio(str(tiny_sdxl), studio.backend)
    modules = merged.pipeline.components
    with torch.no_grad():
        for path, delta in made(kind, modules)[1].items():
            parameter(modules, path).add_(delta, alpha=SCALE)
    assert_same(studio.draw((0, request))[0], merged.reference(request))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_the_weights_are_those_of_its_formula_and_come_back_to_the_byte(
    parts: PipelineParts, tmp_path: Path, kind: str, dtype: torch.dtype
) -> None:
    modules = modules_of(parts)
    tensors, deltas = made(kind, modules, dtype)
    save_file(tensors, tmp_path / "a.safetensors")
    read = read_lora(tmp_path / "a.safetensors", parts)
    adapted = [
        AdaptedModule(module, {"a": changes})
        for module, changes in zip(modules.values(), (read.unet, *read.text_encoders), strict=True)
    ]
    former = [
        {name: each.clone() for name, each in module.state_dict().items()} for module in modules.values()
    ]
    expected = {path: parameter(modules, path) + SCALE * delta for path, delta in deltas.items()}
    for each in adapted:
        each.activate((Lora("a", SCALE),))
    for path, weight in expected.items():
        torch.testing.assert_close(parameter(modules, path), weight, rtol=1e-5, atol=1e-5)
    for each in adapted:
        each.activate(())
    for module, before in zip(modules.values(), former, strict=True):
        assert all(torch.equal(each, before[name]) for name, each in module.state_dict().items())


def tensors_in(change: Change) -> Iterator[Tensor]:
    for held in vars(change).values():
        if isinstance(held, Change):
            yield from tensors_in(held)
        elif isinstance(held, Tensor):
            yield held


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_kept_of_a_file_is_what_was_in_it(parts: PipelineParts, tmp_path: Path, kind: str) -> None:
    tensors, _ = made(kind, modules_of(parts), torch.float16)
    save_file(tensors, tmp_path / "a.safetensors")
    read = read_lora(tmp_path / "a.safetensors", parts)
    changes = [change for each in (read.unet, *read.text_encoders) for change in each.values()]
    kept = sum(tensor.nbytes for change in changes for tensor in tensors_in(change))
    assert kept == sum(tensor.nbytes for name, tensor in tensors.items() if not name.endswith("alpha"))


def test_each_module_is_found_by_the_names_of_stabilitys_code_and_by_its_own(parts: PipelineParts) -> None:
    names = modules_by_name(parts)
    paths = [name.removesuffix(".weight") for name in parts.unet.state_dict() if name.endswith(".weight")]
    for path in paths:
        (original,) = original_unet({f"{path}.weight": torch.empty(0)})
        original = original.removeprefix("model.").removesuffix(".weight")
        underlined = original.removeprefix("diffusion_model.").replace(".", "_")
        for name in (
            original,
            f"lora_unet_{underlined}",
            f"unet.{path}",
            f"lycoris_{path.replace('.', '_')}",
        ):
            assert names[name] == ("unet", path)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        (
            "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.processor.to_out_lora",
            "attn1.to_out.0",
        ),
        ("text_encoder.text_model.encoder.layers.1.self_attn.to_k_lora", "self_attn.k_proj"),
        ("text_encoder.encoder.layers.1.self_attn.k_proj", "self_attn.k_proj"),
        ("lora_te1_encoder_layers_0_mlp_fc1", "layers.0.mlp.fc1"),
        ("text_encoder_2.encoder.layers.1.mlp.fc2", "layers.1.mlp.fc2"),
        ("text_encoders.clip_g.transformer.text_model.encoder.layers.1.mlp.fc2", "layers.1.mlp.fc2"),
        ("lora_te_text_model_encoder_layers_0_self_attn_out_proj", "self_attn.out_proj"),
        ("lora_te2_text_projection", "text_projection"),
        ("lora_unet_add_embedding_linear_1", "add_embedding.linear_1"),
    ],
)
def test_it_is_found_by_older_and_other_names(
    parts: PipelineParts, tmp_path: Path, name: str, path: str
) -> None:
    ending = "" if name.endswith("_lora") else "lora_"
    modules = modules_by_name(parts)
    component, own = modules[name.replace(".processor.", ".")]
    assert own.endswith(path)
    weight = modules_of(parts)[component].get_parameter(f"{own}.weight")
    down, up = torch.ones(1, weight.shape[1]), torch.ones(weight.shape[0], 1)
    tensors = {f"{name}.{ending}down.weight": down, f"{name}.{ending}up.weight": up}
    save_file(tensors, tmp_path / "a.safetensors")
    read = read_lora(tmp_path / "a.safetensors", parts)
    (changed,) = [list(each) for each in (read.unet, *read.text_encoders) if each]
    assert changed == [f"{own}.weight"]


def test_a_file_with_names_of_both_codes_is_read_whole(parts: PipelineParts, tmp_path: Path) -> None:
    tensors = {
        "lora_unet_middle_block_0_in_layers_2.diff": torch.ones(64, 64, 3, 3),
        "lora_unet_mid_block_resnets_1_conv1.diff": torch.ones(64, 64, 3, 3),
    }
    save_file(tensors, tmp_path / "a.safetensors")
    changed = read_lora(tmp_path / "a.safetensors", parts).unet.keys()
    assert changed == {"mid_block.resnets.0.conv1.weight", "mid_block.resnets.1.conv1.weight"}
