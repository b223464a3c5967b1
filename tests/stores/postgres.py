"""A real PostgreSQL on the loopback address, for as long as the tests need it."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

from tests.ports import free_port

START_SECONDS = 120.0
STOP_SECONDS = 60.0
# It refuses to run as root.
USERS = ("postgres", "nobody")


def find_binary(name: str) -> str | None:
    found = shutil.which(name)
    if found is None:
        installed = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
        found = str(installed[-1]) if installed else None
    return found


class PostgresServer:
    def __init__(self, folder: Path, user: str | None) -> None:
        self.folder = folder
        self._user = user
        # None that the system gives to whoever asks for any, in the seconds that a start takes.
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    def initialise(self) -> None:
        options = ["--auth=trust", "--username=mezzotint", "--no-sync", "--encoding=UTF8", "--no-locale"]
        command = [find_binary("initdb") or "initdb", "-D", str(self.folder / "data"), *options]
        subprocess.run(command, check=True, user=self._user, stdout=subprocess.DEVNULL, cwd=self.folder)

    def start(self) -> None:
        options = {"listen_addresses": "127.0.0.1", "fsync": "off", "unix_socket_directories": ""}
        command = [find_binary("postgres") or "postgres", "-D", str(self.folder / "data")]
        command += ["-p", str(self.port), *(f"--{name}={value}" for name, value in options.items())]
        with (self.folder / "log.txt").open("ab") as log:
            self.process = subprocess.Popen(
                command, user=self._user, stdout=log, stderr=log, cwd=self.folder, start_new_session=True
            )
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                psycopg.connect(self.url("postgres", driver="postgresql")).close()
                return
            except psycopg.OperationalError:
                if time.monotonic() > deadline or self.process.poll() is not None:
                    raise AssertionError((self.folder / "log.txt").read_text()) from None
                time.sleep(0.05)

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            # "Fast": open sessions are ended.
            self.process.send_signal(signal.SIGINT)
            self.process.wait(STOP_SECONDS)

    def url(self, database: str, *, driver: str = "postgresql+psycopg") -> str:
        return f"{driver}://mezzotint@127.0.0.1:{self.port}/{database}"

    def new_database(self) -> str:
        """The URL of an empty database."""
        name = f"test_{secrets.token_hex(6)}"
        self.execute(f"CREATE DATABASE {name}")
        return self.url(name)

    def execute(self, statement: str) -> None:
        """As the superuser, who needs no password."""
        with psycopg.connect(self.url("postgres", driver="postgresql"), autocommit=True) as connection:
            connection.execute(statement)  # type: ignore[arg-type]

    def new_user(self) -> str:
        """A name that must give its password, which is "first", by SCRAM."""
        name = f"user_{secrets.token_hex(6)}"
        self.execute(f"CREATE ROLE {name} SUPERUSER LOGIN PASSWORD 'first'")
        rules = self.folder / "data/pg_hba.conf"
        # The first rule that fits is the one that holds.
        rules.write_text(f"host all {name} 127.0.0.1/32 scram-sha-256\n{rules.read_text()}")
        self.execute("SELECT pg_reload_conf()")
        return name


@contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    user = next((name for name in USERS if _exists(name)), None) if os.geteuid() == 0 else None
    # Not below the tests' own folder, which only their user may enter.
    folder = Path(tempfile.mkdtemp(prefix="mezzotint-postgres-"))
    if user is not None:
        os.chown(folder, pwd.getpwnam(user).pw_uid, -1)
    server = PostgresServer(folder, user)
    try:
        server.initialise()
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


def _exists(user: str) -> bool:
    try:
        pwd.getpwnam(user)
    except KeyError:
        return False
    return True
