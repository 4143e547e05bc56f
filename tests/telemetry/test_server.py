"""The server's life, with the real Phoenix wherever Phoenix has a part in it; each of its starts costs seconds."""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import httpx
import pytest

import dspy_selfimprove
from dspy_selfimprove.errors import (
    PhoenixTooOld,
    PhoenixUnauthorized,
    PhoenixUnreachable,
    SetupError,
    TelemetryError,
    UsageError,
)
from dspy_selfimprove.telemetry import server
from dspy_selfimprove.telemetry.client import Address

SOURCE = str(Path(dspy_selfimprove.__file__).parents[1])
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

# As /proc writes 127.0.0.1, and the same address on a socket that could speak IPv6.
LOOPBACK = "0100007F"
LOOPBACK_IN_IPV6 = "0000000000000000FFFF0000" + LOOPBACK

Answer = tuple[int, str, str]  # status, content type, body


@contextmanager
def answering(answer: Callable[[str], Answer]) -> Iterator[str]:
    """A small HTTP server that is not Phoenix; gives its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, kind, body = answer(self.path)
            self.send_response(status)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        do_CONNECT = do_POST = do_HEAD = do_GET  # noqa: N815 - the names http.server calls

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name http.server gives it
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = Thread(target=http.serve_forever, args=[0.01], daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()
        thread.join()


def eventually(true: Callable[[], bool]) -> bool:
    """Whether it comes true; the deadline only bounds a failing test."""
    deadline = time.monotonic() + 30
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def launched(home: Path) -> list[int]:
    """The processes that were launched as `home`'s server and still exist."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_text()
        except OSError:
            continue
        if server.LAUNCHER.name in command and str(home) in command:
            found.append(int(process.name))
    return found


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / ".selfimprove"


@pytest.fixture(scope="module")
def attempts() -> list[str]:
    return []


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, attempts: list[str]) -> Iterator[Path]:
    """A home whose server runs, was started with 6006 taken, and would reach the internet through a proxy of ours."""
    home = tmp_path_factory.mktemp("served") / ".selfimprove"

    def refuse(path: str) -> Answer:
        attempts.append(path)
        return 502, "text/plain", ""

    with pytest.MonkeyPatch.context() as patch, answering(refuse) as proxy, ExitStack() as others:
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            patch.setenv(name, proxy)
            patch.setenv(name.upper(), proxy)
        patch.setenv("no_proxy", "127.0.0.1")
        patch.setenv("NO_PROXY", "127.0.0.1")
        patch.setenv("PHOENIX_HOST", "0.0.0.0")
        patch.setenv("PHOENIX_HOST_ROOT_PATH", "/elsewhere")
        with suppress(OSError):  # taken already is just as well
            others.enter_context(socket.create_server(("127.0.0.1", server.PORT)))
        server.start(home)
        yield home
        server.stop(home)


def running(home: Path) -> server.Phoenix:
    phoenix = server.status(home)
    assert phoenix is not None
    return phoenix


class TestARunningServer:
    def test_is_phoenix_on_a_free_port(self, served: Path) -> None:
        phoenix = running(served)
        assert phoenix.ours
        assert phoenix.url != f"http://127.0.0.1:{server.PORT}"
        assert phoenix.version == httpx.get(f"{phoenix.url}/arize_phoenix_version", trust_env=False).text

    def test_is_found_by_a_second_start(self, served: Path) -> None:
        assert server.start(served) == running(served)
        with server.running(served) as phoenix:
            assert phoenix == running(served)
        assert running(served) == phoenix

    def test_is_found_by_whoever_looks_for_one(self, served: Path) -> None:
        assert server.locate(home=served) == Address(running(served).url)
        assert server.find(home=served).pid == running(served).pid

    def test_is_not_moved_by_options(self, served: Path) -> None:
        with pytest.raises(UsageError, match="already runs"):
            server.start(served, port=1)
        with pytest.raises(UsageError, match="already runs") as refused:
            server.start(served, database_url="postgresql://me:hush@db/phoenix")
        assert "hush" not in str(refused.value)

    @linux
    def test_listens_on_loopback_only(self, served: Path) -> None:
        phoenix = running(served)
        process = Path(f"/proc/{phoenix.pid}")
        sockets = {str(link.readlink()) for link in (process / "fd").iterdir() if link.is_symlink()}
        rows = [row.split() for table in ("tcp", "tcp6") for row in (process / "net" / table).read_text().splitlines()]
        listening = [row[1].split(":") for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in sockets]
        ports = {int(phoenix.url.rpartition(":")[2]), phoenix.grpc_port}
        assert {int(port, 16) for _, port in listening} == ports
        assert {address for address, _ in listening} <= {LOOPBACK, LOOPBACK_IN_IPV6}

    def test_attempts_nothing_on_the_internet(self, served: Path, attempts: list[str]) -> None:
        running(served)
        assert attempts == []

    def test_keeps_its_data_to_the_user(self, served: Path) -> None:
        assert (served / "phoenix" / "phoenix.db").is_file()
        assert (served / "phoenix").stat().st_mode & 0o077 == 0

    def test_if_stuck_is_said_to_be(self, served: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        pid = running(served).pid
        assert pid is not None
        monkeypatch.setattr(server, "ANSWER_SECONDS", 0.2)
        os.kill(pid, signal.SIGSTOP)
        try:
            with pytest.raises(PhoenixUnreachable, match=r"did not answer in time.*phoenix stop"):
                server.start(served)
        finally:
            os.kill(pid, signal.SIGCONT)

    def test_if_killed_is_noticed_and_started_again(self, served: Path) -> None:
        before = running(served)
        assert before.pid is not None
        httpx.post(f"{before.url}/v1/projects", json={"name": "kept"}, trust_env=False).raise_for_status()
        os.kill(before.pid, signal.SIGKILL)
        assert eventually(lambda: server.locate(home=served) is None)
        for ask in (server.status, lambda home: server.find(home=home)):
            with pytest.raises(PhoenixUnreachable, match="without being stopped"):
                ask(served)

        after = server.start(served)

        assert after.pid != before.pid
        assert after == running(served)
        assert httpx.get(f"{after.url}/v1/projects/kept", trust_env=False).is_success


class TestAServerWithAKey:
    @linux
    def test_wants_it_and_ends_with_its_parent(self, home: Path) -> None:
        script = (
            "import sys, time; from pathlib import Path; from dspy_selfimprove.telemetry.server import running\n"
            "with running(Path(sys.argv[1])) as phoenix: print(phoenix.url, flush=True); time.sleep(600)"
        )
        secrets = {"PHOENIX_SECRET": "0123456789abcdefghijABCDEFGHIJ012345", "PHOENIX_ADMIN_SECRET": "admin" * 8 + "01"}
        parent = subprocess.Popen(
            [sys.executable, "-c", script, str(home)],
            env={**os.environ, **secrets, "PHOENIX_ENABLE_AUTH": "true", "PYTHONPATH": SOURCE},
            stdout=subprocess.PIPE,
            text=True,
        )
        with parent:
            assert parent.stdout is not None
            url = parent.stdout.readline().strip()
            with pytest.raises(PhoenixUnauthorized, match=r"wants a key.*PHOENIX_API_KEY"):
                server.find(url)
            with pytest.raises(PhoenixUnauthorized, match="does not accept"):
                server.find(url, api_key="wrong")
            found = server.find(url, api_key=secrets["PHOENIX_ADMIN_SECRET"])
            assert not found.ours
            assert secrets["PHOENIX_ADMIN_SECRET"] not in repr(found)

            assert len(launched(home)) == 1
            parent.kill()

        assert eventually(lambda: not launched(home))


class TestAStartThatCannotSucceed:
    def test_home_cannot_be_made(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(SetupError, match="cannot be made: a file is in its place"):
            server.start(tmp_path / "file" / ".selfimprove")

    def test_port_is_taken(self, home: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as other:
            port = other.getsockname()[1]
            with pytest.raises(SetupError, match=f"Port {port} is taken"):
                server.start(home, port=port)

    def test_database_is_something_else(self, home: Path) -> None:
        file = home / "phoenix" / "phoenix.db"
        file.parent.mkdir(parents=True)
        file.write_text("not a database, but long enough to be taken for one: " * 20)
        with pytest.raises(SetupError, match="cannot be used"):
            server.start(home)

    def test_database_is_in_use(self, home: Path) -> None:
        file = home / "phoenix" / "phoenix.db"
        file.parent.mkdir(parents=True)
        with closing(sqlite3.connect(file, isolation_level=None)) as other:
            other.execute("CREATE TABLE something (x)")
            other.execute("BEGIN EXCLUSIVE")
            with pytest.raises(SetupError, match="in use by another program"):
                server.start(home)

    def test_database_is_of_a_newer_phoenix(self, home: Path) -> None:
        file = home / "phoenix" / "phoenix.db"
        file.parent.mkdir(parents=True)
        with closing(sqlite3.connect(file)) as database, database:
            database.execute("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)")
            database.execute("INSERT INTO alembic_version VALUES ('ffffffffffff')")
        with pytest.raises(SetupError, match="written by a newer Phoenix"):
            server.start(home)
        assert server.status(home) is None

    @pytest.mark.parametrize("url", ["mysql://host/db", "phoenix.db", "postgresql://", "postgresql://me:hush@[::1/db"])
    def test_database_is_of_an_unknown_kind(self, home: Path, url: str) -> None:
        with pytest.raises(UsageError, match="must begin with postgresql://"):
            server.start(home, database_url=url)

    def test_phoenix_ends(self, home: Path, broken_python: Callable[[str], None]) -> None:
        broken_python("echo 'Traceback (most recent call last):'; echo 'ValueError: no such thing'; echo; exit 3")
        with pytest.raises(TelemetryError, match=r"ValueError: no such thing\. Its log is .*phoenix\.log"):
            server.start(home)
        assert server.status(home) is None

    def test_phoenix_never_answers(self, home: Path, broken_python: Callable[[str], None]) -> None:
        broken_python("exec sleep 600")
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        with pytest.raises(TelemetryError, match="did not come up within 1 s"):
            server.start(home, port=port, timeout=1)
        socket.create_server(("127.0.0.1", port)).close()  # nobody holds what the process was born with

    @linux
    def test_who_starts_it_is_killed(self, home: Path) -> None:
        script = (
            "import sys; from pathlib import Path; from dspy_selfimprove.telemetry.server import start\n"
            "start(Path(sys.argv[1]))"
        )
        with subprocess.Popen(
            [sys.executable, "-c", script, str(home)], env={**os.environ, "PYTHONPATH": SOURCE}
        ) as it:
            assert eventually(lambda: len(launched(home)) == 1)
            it.kill()
        assert eventually(lambda: not launched(home))
        assert server.status(home) is None


@pytest.fixture
def broken_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes a Python that claims to have Phoenix and runs a line of shell in its place."""

    def make(line: str) -> None:
        python = tmp_path / "python"
        python.write_text(f"""#!/bin/sh\nif [ "$1" = -c ]; then echo '[[3, 12], "20.26.1"]'; exit; fi\n{line}\n""")
        python.chmod(0o755)
        monkeypatch.setenv("DSPY_SELFIMPROVE_PHOENIX_PYTHON", str(python))

    return make


class TestANoteThatOutlivedItsServer:
    """Its process number belongs to somebody else now, who must not notice anything."""

    @pytest.mark.parametrize("imposter", [[], [server.LAUNCHER.name]])
    def test_nobody_else_is_stopped(self, home: Path, imposter: list[str]) -> None:
        with subprocess.Popen([sys.executable, "-c", "input()", *imposter], stdin=subprocess.PIPE) as stranger:
            write_note(home, stranger.pid, "some other time")
            assert server.locate(home=home) is None
            assert not server.stop(home)
            assert stranger.poll() is None
            stranger.communicate(b"\n")
        assert stranger.returncode == 0
        assert server.status(home) is None

    @linux
    def test_nobody_else_is_stopped_who_began_at_the_same_time(self, home: Path) -> None:
        with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as stranger:
            ticks = Path(f"/proc/{stranger.pid}/stat").read_text().rpartition(")")[2].split()[19]
            boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
            write_note(home, stranger.pid, f"{boot} {ticks}")
            assert not server.stop(home)
            stranger.communicate(b"\n")
        assert stranger.returncode == 0

    def test_a_folder_that_cannot_be_written_to_is_said(self, home: Path) -> None:
        (home / "phoenix" / "lock").mkdir(parents=True)  # not even root can write it
        with pytest.raises(SetupError, match=f"Cannot write to {home / 'phoenix'}"):
            server.stop(home)

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
    @pytest.mark.parametrize("closed", ["", "phoenix"])
    def test_a_folder_of_somebody_else_is_said(self, home: Path, closed: str) -> None:
        write_note(home, 1, "some other time")
        (home / closed).chmod(0o500 if closed else 0o000)
        try:
            with pytest.raises(SetupError, match=f"Cannot write to {home / 'phoenix'}"):
                server.stop(home)
        finally:
            (home / closed).chmod(0o700)

    def test_a_damaged_note_is_no_note(self, home: Path) -> None:
        write_note(home, 1, "")
        (home / "phoenix" / "server.json").write_text("{")
        assert server.status(home) is None
        assert not server.stop(home)


def write_note(home: Path, pid: int, began: str) -> None:
    (home / "phoenix").mkdir(parents=True)
    note = {"pid": pid, "began": began, "url": "http://127.0.0.1:1", "database": "sqlite:///x"}
    (home / "phoenix" / "server.json").write_text(json.dumps(note))


class TestNoServer:
    def test_asking_leaves_no_trace(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        assert server.locate() is None
        assert server.status() is None
        assert not server.stop()
        assert list(tmp_path.iterdir()) == []

    def test_finding_says_how_to_get_one(self, home: Path) -> None:
        with pytest.raises(PhoenixUnreachable, match="phoenix start"):
            server.find(home=home)


class TestAPhoenixElsewhere:
    @pytest.mark.parametrize(
        "written", ["http://phoenix:6006", "http://phoenix:6006/", "http://phoenix:6006/v1/traces"]
    )
    def test_its_address_is_read_as_people_write_it(self, written: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PHOENIX_COLLECTOR_ENDPOINT", written)
        assert server.locate() == Address("http://phoenix:6006")
        assert server.locate("https://other/s/space/") == Address("https://other/s/space")

    @pytest.mark.parametrize(
        "written",
        [
            "localhost:6006", "phoenix", "ftp://host", "http://", "http://[::1", "http://me:hush@host:port",
            "http://host:99999", "http://ho\nst", "http://host?token=hush", "http://host#hush",
        ],
    )  # fmt: skip
    def test_its_address_is_an_address(self, written: str) -> None:
        with pytest.raises(UsageError, match="not the address") as refused:
            server.locate(written)
        assert "hush" not in str(refused.value)

    def test_is_used_instead_of_starting_one(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with answering(phoenix_of("20.26.0")) as url:
            monkeypatch.setenv("PHOENIX_COLLECTOR_ENDPOINT", url)
            monkeypatch.setenv("PHOENIX_API_KEY", "hush")
            found = server.start(home)
        assert (found.url, found.version, found.api_key, found.ours) == (url, "20.26.0", "hush", False)
        assert not home.exists()

    def test_takes_no_options_for_starting_one(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PHOENIX_COLLECTOR_ENDPOINT", "http://bob:hunter2@phoenix:6006")
        with pytest.raises(UsageError, match="PHOENIX_COLLECTOR_ENDPOINT names http://phoenix:6006 as") as refused:
            server.start(home, port=7000)
        assert "hunter2" not in str(refused.value)

    def test_with_a_password_in_its_address_is_spoken_to_and_shown_without(self) -> None:
        with answering(phoenix_of("20.26.1")) as url:
            address = url.replace("//", "//bob:hunter2@")
            found = server.find(address)
        assert (found.url, found.shown) == (address, url)
        assert found.project_url("support") == f"{url}/redirects/projects/support"
        assert "hunter2" not in repr(found) + repr(server.locate(address))

    @pytest.mark.parametrize(
        "answer",
        [
            (200, "text/html", "<title>Welcome</title>"),
            (200, "text/plain", "Welcome"),
            (200, "text/plain", "4.0.0"),
            (302, "text/plain", ""),
            (401, "text/plain", ""),
            (503, "text/plain", ""),
            None,
        ],
    )
    def test_with_a_password_in_its_address_fails_without_showing_it(
        self, answer: Answer | None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with answering(lambda path: answer or (200, "text/plain", "")) as url:
            address = "http://bob:hunter2@127.0.0.1:9" if answer is None else url.replace("//", "//bob:hunter2@")
            monkeypatch.setenv("PHOENIX_COLLECTOR_ENDPOINT", address)
            for ask in (server.find, server.start):
                with pytest.raises(TelemetryError) as failed:
                    ask()
                assert "hunter2" not in f"{failed.value} {failed.value!r}"
                assert "http://127.0.0.1:" in failed.value.problem

    def test_that_sends_us_elsewhere_is_not_followed(self) -> None:
        with (
            answering(lambda path: (307, "text/plain", "")) as url,
            pytest.raises(PhoenixUnreachable, match="elsewhere"),
        ):
            server.find(url)

    @pytest.mark.parametrize("version", ["20.25.9", "4.0.0", "19.100.1"])
    def test_is_too_old(self, version: str) -> None:
        with answering(phoenix_of(version)) as url, pytest.raises(PhoenixTooOld, match=f"is version {version}; 20.26"):
            server.find(url)

    @pytest.mark.parametrize(
        "answer",
        [
            (200, "text/html", "<title>Welcome</title>"),
            (200, "text/plain", "Welcome"),
            (200, "application/json", '{"version": "99.0.0"}'),
            (404, "text/plain", "99.0.0"),
        ],
    )
    def test_is_another_program(self, answer: Answer) -> None:
        with answering(lambda path: answer) as url, pytest.raises(PhoenixUnreachable, match=r"What answers at .* not"):
            server.find(url)

    def test_answers_its_interface_with_a_page(self) -> None:
        def half(path: str) -> Answer:
            return phoenix_of("20.26.1")(path) if "version" in path else (200, "text/html", "<title>Log in</title>")

        with answering(half) as url, pytest.raises(PhoenixUnreachable, match="is a web page, not the Phoenix"):
            server.find(url)

    def test_lacks_its_interface(self) -> None:
        def half(path: str) -> Answer:
            return phoenix_of("20.26.1")(path) if "version" in path else (404, "text/plain", "Not Found")

        with answering(half) as url, pytest.raises(PhoenixUnreachable, match="does not answer its own interface"):
            server.find(url)

    def test_is_in_trouble(self) -> None:
        with (
            answering(lambda path: (503, "text/plain", "")) as url,
            pytest.raises(PhoenixUnreachable, match="status 503"),
        ):
            server.find(url)

    def test_is_not_there(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as gone:
            port = gone.getsockname()[1]
        with pytest.raises(PhoenixUnreachable, match=r"cannot be reached.*PHOENIX_COLLECTOR_ENDPOINT"):
            server.find(f"http://127.0.0.1:{port}")


def phoenix_of(version: str) -> Callable[[str], Answer]:
    """What a Phoenix of that version answers to the questions asked here."""

    def answer(path: str) -> Answer:
        if path == "/arize_phoenix_version":
            return 200, "text/plain; charset=utf-8", version
        return 200, "application/json", '{"data": [], "next_cursor": null}'

    return answer


def test_a_project_is_addressed_by_name() -> None:
    assert server.Phoenix("http://x", "20.26.1").project_url("a b/c") == "http://x/redirects/projects/a%20b%2Fc"
