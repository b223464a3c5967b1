"""Fixtures for every folder of tests: a tiny SDXL with random weights, built once a session in a second."""

from __future__ import annotations

import gc
import json
import os
import secrets
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

from mezzotint.backends.base import Backend
from mezzotint.threads import prepare_libraries
from tests.lanes import LANES, lane_of
from tests.servers import STOP_SECONDS

if TYPE_CHECKING:
    from tests.stores.postgres import PostgresServer

# Before a test's module imports torch: threads that wait for a core that another process has wait long.
prepare_libraries()
if "PYTEST_XDIST_WORKER" in os.environ:
    # With several processes that use all cores, two threads are slower than one.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# How long an example takes says how busy the machine is, not whether the claim holds.
settings.register_profile("mezzotint", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("mezzotint")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Hand out lanes and files, in the order of the collection."""
    from xdist.scheduler import LoadScopeScheduling
    from xdist.workermanage import NodeManager

    class Lanes(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return lane_of(nodeid)

    config.option.loadscopereorder = False
    # After Ctrl-C: as long as a server may take to end (tests/servers.py). Ten seconds would leave it behind.
    NodeManager.EXIT_TIMEOUT = 2 * STOP_SECONDS
    return Lanes(config, log)


def pytest_collection_finish() -> None:
    """What collecting the tests has made stays to the end: no collection of garbage looks through it again.

    Each took most of a second, and tests that ask whether something is gone want one.
    """
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """In a process of several, lanes come first."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: lane_of(item.nodeid) not in LANES)


START, END = "<|startoftext|>", "<|endoftext|>"
TEXT_WINDOW = 16


def build_tiny_sdxl(folder: Path, **unet_changes: Any) -> Path:
    """Write a diffusers folder of a small random SDXL: 4×8 latents for 32×64 pixels, two text encoders.

    `unet_changes` are laid over the UNet's configuration.
    """
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = UNet2DConditionModel(**{**unet_configuration(), **unet_changes})
        vae = AutoencoderKL(
            block_out_channels=(16, 16, 32, 32),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=8,
            scaling_factor=0.13025,
            sample_size=64,
        )
        words = write_tokenizer(folder / "tokenizer")
        write_tokenizer(folder / "tokenizer_2")
        CLIPTextModel(text_configuration(words, width=32)).save_pretrained(folder / "text_encoder")
        CLIPTextModelWithProjection(text_configuration(words, width=64)).save_pretrained(
            folder / "text_encoder_2"
        )
    unet.save_pretrained(folder / "unet")
    vae.save_pretrained(folder / "vae")
    (folder / "scheduler").mkdir()
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps(scheduler_configuration()))
    (folder / "model_index.json").write_text(json.dumps(model_index()))
    return folder


def text_configuration(words: int, width: int) -> Any:
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        hidden_size=width,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=words,
        max_position_embeddings=TEXT_WINDOW,
        projection_dim=width,
        bos_token_id=words - 2,
        eos_token_id=words - 1,
        pad_token_id=words - 1,
    )


def unet_configuration() -> dict[str, Any]:
    return {
        "sample_size": 8,
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": (2, 4),
        "use_linear_projection": True,
        "norm_num_groups": 8,
        "cross_attention_dim": 32 + 64,
        "transformer_layers_per_block": (1, 1),
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 64 + 6 * 8,
    }


def scheduler_configuration() -> dict[str, Any]:
    return {
        "_class_name": "EulerDiscreteScheduler",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "num_train_timesteps": 1000,
        "prediction_type": "epsilon",
        "steps_offset": 1,
        "timestep_spacing": "leading",
    }


def model_index() -> dict[str, Any]:
    return {
        "_class_name": "StableDiffusionXLPipeline",
        "force_zeros_for_empty_prompt": True,
        "scheduler": ["diffusers", "EulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }


def write_tokenizer(folder: Path) -> int:
    """A tokenizer that knows letters alone; returns the size of its vocabulary."""
    letters = [chr(code) for code in range(33, 127)]
    tokens = [*letters, *(letter + "</w>" for letter in letters), START, END]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    configuration = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": TEXT_WINDOW,
        "bos_token": START,
        "eos_token": END,
        "pad_token": END,
        "unk_token": END,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(configuration))
    return len(tokens)


@pytest.fixture(scope="session", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What a server keeps goes to a folder of these tests, in this process and those it starts."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEZZOTINT_HOME", str(folder))
        yield folder


@pytest.fixture(scope="session", autouse=True)
def patience() -> Iterator[None]:
    """What a server allows a database and its own processes, times what a busy machine adds to it.

    Of this process alone: a server that a test starts as a process keeps its own.
    """
    if find_spec("fastapi") is None:
        # tests/gpu run with what drawing needs and no more.
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "stores.database.ANSWER_SECONDS": 60.0,
            "stores.database_url.STATEMENT_MILLISECONDS": 60_000,
            "stores.database_url.CONNECT_SECONDS": 60,
            "jobs.runner.LEASE_SECONDS": 60.0,
            "peers.GATHER_SECONDS": 60.0,
            "gateway.INFO_SECONDS": 60.0,
        }.items():
            patch.setattr(f"mezzotint.serve.{name}", value)
        yield


@pytest.fixture(scope="session")
def tiny_sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to read only; a test that changes files copies it first."""
    return build_tiny_sdxl(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def inpainting_sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a UNet as they are trained for inpainting: it reads a mask and a masked picture too."""
    return build_tiny_sdxl(tmp_path_factory.mktemp("models") / "inpainting", in_channels=9)


@pytest.fixture(scope="session")
def tiny_modules_backend(tiny_sdxl: Path) -> Backend:
    """The tiny SDXL by diffusers' modules, shared; a test leaves no request in it."""
    from mezzotint.models.loading import load_backend

    return load_backend(str(tiny_sdxl), device="cpu", threads=1)


@pytest.fixture(scope="session")
def tiny_graphs_backend(tiny_graphs: Path) -> Backend:
    """The same by compiled graphs on the stand-in for Neuron."""
    from mezzotint.models.loading import load_backend

    return load_backend(str(tiny_graphs), device="neuron", stand_in=True, threads=1)


# Every size that a test of pictures asks for; a graph takes no other.
GRAPH_SIZES = ((64, 64), (64, 32), (32, 64), (56, 72), (128, 64), (96, 64))
GRAPH_BATCH = 4


@pytest.fixture(scope="session")
def tiny_graphs(tiny_sdxl: Path, tmp_path_factory: pytest.TempPathFactory, home: Path) -> Path:
    """`tiny_sdxl` compiled for the stand-in: a folder to read only; a test that changes files copies it
    first.
    """
    from mezzotint.models.compiling import Order, compile_model

    folder = tmp_path_factory.mktemp("graphs") / "tiny"
    compile_model(Order(str(tiny_sdxl), "cpu", GRAPH_SIZES, GRAPH_BATCH, cores=2), str(folder))
    return folder


@pytest.fixture(scope="session")
def small_graphs(tiny_graphs: Path, tiny_sdxl: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of `tiny_graphs` the first size alone, from what was kept: quick to load, for those who load many."""
    from mezzotint.models.compiling import Order, compile_model

    folder = tmp_path_factory.mktemp("graphs") / "tiny"
    compile_model(Order(str(tiny_sdxl), "cpu", GRAPH_SIZES[:1], GRAPH_BATCH, cores=2), str(folder))
    return folder


@pytest.fixture
def build_tiny() -> Callable[..., Path]:
    """`build_tiny_sdxl`, for models that differ from `tiny_sdxl`."""
    return build_tiny_sdxl


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server of this session's own."""
    from tests.stores.postgres import find_binary, postgres_server

    if find_binary("initdb") is None:
        pytest.skip("PostgreSQL's server is not installed")
    with postgres_server() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database, once of each kind."""
    if request.param == "sqlite":
        return f"sqlite+aiosqlite:///{tmp_path}/test.db"
    server: PostgresServer = request.getfixturevalue("postgres")
    return server.new_database()


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """The address of an S3 server of this session's own."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3_url(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty place in a bucket, which the AWS_* variables of the environment lead to."""
    import boto3

    variables = {
        "AWS_ENDPOINT_URL": s3_endpoint,
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    bucket = f"test-{secrets.token_hex(6)}"
    boto3.client("s3", endpoint_url=s3_endpoint).create_bucket(Bucket=bucket)
    return f"s3://{bucket}/some/prefix"
