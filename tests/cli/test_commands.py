"""The commands around drawing: help, version, models, doctor, and a start without heavy imports."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import threading
import tomllib
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

import mezzotint
from mezzotint.cli.main import run
from mezzotint.doctor import FLOORS, SERVE_FLOORS

ROOT = Path(__file__).parents[2]


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"mezzotint {mezzotint.__version__}\n"


@pytest.mark.parametrize("command", [[], ["--help"], ["draw", "-h"], ["serve", "--help"]])
def test_help_names_what_there_is(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command) == 0
    assert "Usage: mezzotint" in capsys.readouterr().out


def test_help_tells_the_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["serve", "--help"]) == 0
    # A sentence may go on in the box's next line.
    told = capsys.readouterr().out.replace("│", "")
    assert {"demo", "127.0.0.1", "8000", "auto"} <= set(re.findall(r"\[default:\s+(\S+)\]", told))


@pytest.mark.parametrize("group", ["models", "keys", "config", "deploy", "bench"])
def test_a_group_of_commands_without_one_is_refused_with_its_help(
    group: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([group]) == 2
    assert f"Usage: mezzotint {group}" in "".join(capsys.readouterr())


def test_the_command_line_starts_without_torch_ray_or_the_web_stack() -> None:
    code = (
        "import sys, mezzotint.cli; "
        "print({'torch', 'ray', 'diffusers', 'transformers', 'fastapi'} & set(sys.modules))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert ran.stdout.strip() == "set()"


def test_an_interruption_before_the_command_line_is_there_ends_it_without_a_word() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    module, _, function = project["project"]["scripts"]["mezzotint"].partition(":")
    code = (
        "import os, signal, sys\n"
        # As Python has it in a terminal; where the tests were started in the background it is ignored.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "class Interrupting:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name in ('numpy', 'typer'):\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupting())\n"
        f"from {module} import {function}\n"
        f"sys.exit({function}())\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert (ran.returncode, ran.stderr) == (-signal.SIGINT, "")


def test_models_list_has_the_embedded_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["models", "list", "--json"]) == 0
    models = {model["name"]: model for model in json.loads(capsys.readouterr().out)}
    assert models["demo"]["installed"]


def test_models_show_and_path_tell_of_one_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["models", "show", "demo", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["limits"]["default_width"] >= 64
    assert run(["models", "path", "demo"]) == 0
    assert (Path(capsys.readouterr().out.strip()) / "model_index.json").is_file()


def test_models_check_holds_the_embedded_model_to_its_manifest(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["models", "check", "demo"]) == 0
    assert "demo is whole" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["show", "path", "pull", "check"])
def test_an_unknown_model_is_one_line_and_code_2(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["models", command, "no-such-model"]) == 2
    assert re.fullmatch(r"error: no model 'no-such-model'[^\n]+\n", capsys.readouterr().err)


def test_a_damaged_model_is_one_line_and_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model_index.json").write_text("{}")
    (tmp_path / "weights.safetensors").symlink_to("nowhere")
    entry = {"sha256": "0" * 64, "size": 1}
    files = {"model_index.json": entry, "weights.safetensors": entry}
    (tmp_path / "manifest.json").write_text(json.dumps({"files": files}))
    assert run(["models", "check", str(tmp_path)]) == 2
    assert re.fullmatch(r"error: [^\n]+\n", capsys.readouterr().err)


@pytest.mark.parametrize("home", ["~nosuchuser", "a" * 300])
@pytest.mark.parametrize("command", [["list"], ["show", "sdxl"], ["pull", "sdxl"], ["check", "sdxl"]])
def test_a_models_home_that_cannot_be_is_one_line_and_code_2(
    home: str, command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MEZZOTINT_HOME", home)
    assert run(["models", *command]) == 2
    assert re.fullmatch(r"error: [^\n]*MEZZOTINT_HOME[^\n]*\n", capsys.readouterr().err)


def test_the_doctors_oldest_versions_are_the_packages_own() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extra = project["optional-dependencies"]["serve"]
    for floors, requirements in ((FLOORS, project["dependencies"]), (SERVE_FLOORS, extra)):
        stated = dict(re.match(r"([\w-]+)(?:\[\w+\])?>=([\d.]+)", each).groups() for each in requirements)
        for name, floor in floors.items():
            assert stated[name] == ".".join(map(str, floor)), name


def test_the_doctor_finds_each_part_and_says_how_to_mend_what_is_wrong(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code = run(["doctor", "--json"])
    findings = {finding["part"]: finding for finding in json.loads(capsys.readouterr().out)}
    assert {*FLOORS, *SERVE_FLOORS, "Python", "torch build", "CPU", "memory", "disk", "demo model"} <= set(
        findings
    )
    assert code == int(any(finding["state"] == "wrong" for finding in findings.values()))
    assert all(finding["fix"] for finding in findings.values() if finding["state"] != "ok")


def test_the_doctor_says_when_the_port_is_taken(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setattr("mezzotint.doctor.DEFAULT_PORT", taken.getsockname()[1])
        run(["doctor", "--json"])
    findings = json.loads(capsys.readouterr().out)
    assert any(finding["state"] == "note" and finding["part"].startswith("port") for finding in findings)


def test_the_doctor_exits_1_when_something_essential_is_wrong(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(FLOORS, "torch", (99, 0))
    assert run(["doctor"]) == 1
    assert "at least 99.0" in capsys.readouterr().out


def test_the_doctor_names_the_extra_that_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setitem(SERVE_FLOORS, "no-such-package", (1, 0))
    run(["doctor"])
    assert "pip install -U 'mezzotint[serve]'" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--port", "70000"], "--port takes a TCP port"),
        (["--model", "no-such-model"], "no model 'no-such-model'"),
        (["--replicas", "0"], "--replicas takes"),
        (["--dtype", "int8"], "--dtype takes"),
        (["--host", "192.0.2.1", "--model", "fake"], "cannot listen on 192.0.2.1"),
        (["--host", "127.0.0..1", "--model", "fake"], "--host takes an address"),
        (["--lora", "ink.bin", "--model", "fake"], "--lora takes LoRAs"),
    ],
)
def test_serve_refuses_a_bad_setting_before_anything_starts(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["serve", *arguments]) == 2
    captured = capsys.readouterr()
    assert re.fullmatch(r"error: [^\n]+\n", captured.err)
    assert told in captured.err
    assert captured.out == ""


def test_serve_refuses_a_taken_port(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert run(["serve", "--model", "fake", "--port", str(port)]) == 2
    assert f"cannot listen on 127.0.0.1 port {port}: address already in use" in capsys.readouterr().err


def test_top_goes_on_past_a_look_that_a_server_does_not_answer() -> None:
    looks = iter((200, 503, 200, 401))
    answered = []

    class Restarting(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answered.append(next(looks))
            self.send_response(answered[-1])
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Restarting) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            assert run(["top", "--api", f"http://127.0.0.1:{server.server_port}", "--every", "0.1"]) == 2
        finally:
            server.shutdown()
            thread.join()
    assert answered == [200, 503, 200, 401]


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b'{"error": {"message": "the database does not answer"}}', ": the database does not answer"),
        (b"upstream connect error", ""),
        (b"[]", ""),
    ],
)
def test_top_tells_why_a_server_refuses_its_metrics(
    body: bytes, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    class Refusing(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(503)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Refusing) as server:
        answering = threading.Thread(target=server.handle_request)
        answering.start()
        api = f"http://127.0.0.1:{server.server_port}"
        assert run(["top", "--api", api, "--once"]) == 2
        answering.join(10)
    assert capsys.readouterr().err == f"error: --api {api}: answers /metrics with status 503{why}\n"


@pytest.mark.parametrize(
    "answer", [b"SSH-2.0-OpenSSH_9.2\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nmezz", b""]
)
def test_top_tells_of_a_server_that_breaks_off_or_speaks_no_http(
    answer: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def reply() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65_536)
                connection.sendall(answer)

        replying = threading.Thread(target=reply, daemon=True)
        replying.start()
        api = f"http://127.0.0.1:{listener.getsockname()[1]}"
        assert run(["top", "--api", api, "--once"]) == 2
        replying.join(10)
    assert re.fullmatch(rf"error: --api {api}: no server answers: [^\n]+\n", capsys.readouterr().err)
