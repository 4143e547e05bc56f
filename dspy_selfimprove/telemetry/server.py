"""The Phoenix server: one per project, on loopback, in a process and an environment of its own.

Its database, its log and a note of who it is live in the project's `.selfimprove/phoenix/`. A server is *ours* if that
note says so and the process it names still is the one that was started: same start time, same program. Only such a
process is ever signalled; a process id alone may long belong to somebody else.

Two ways to live: `start` leaves a server that outlives the caller, `running` one that ends with it, however it ends.
Either gives the one that runs already if there is one, so a second start, or two at once, make one server.

Whoever sets `PHOENIX_COLLECTOR_ENDPOINT` has a Phoenix elsewhere: then that is the server, and none is started.

The port is opened here and handed to Phoenix (see launcher.py), so it cannot be lost to another program meanwhile, and
readiness is one question that is answered when Phoenix is ready. Phoenix answers unknown paths with status 200 and a
page of HTML; content, not status, says who answers.

Not covered: Windows; a `.selfimprove/` that two machines share (the note's process is looked for on this one); a
server that somebody started by other means on the same database.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from urllib.parse import quote, urlsplit, urlunsplit

import httpx

from dspy_selfimprove import files
from dspy_selfimprove.errors import (
    PhoenixTooOld,
    PhoenixUnreachable,
    SelfImproveError,
    SetupError,
    TelemetryError,
    UsageError,
)
from dspy_selfimprove.telemetry.client import (
    ENDPOINT_VARIABLE,
    NONE_RUNS,
    START_IT,
    Address,
    ask,
    given_key,
    named,
    shown,
)
from dspy_selfimprove.telemetry.installation import (
    MINIMUM,
    Progress,
    environment_of,
    one_at_a_time,
    phoenix_python,
    recent,
)

LAUNCHER = Path(__file__).with_name("launcher.py")
PORT = 6006
GRPC_PORT = 4317
PORTS_TRIED = 20
START_SECONDS = 120.0
STOP_SECONDS = 10.0
ANSWER_SECONDS = 10.0
_HOST = "127.0.0.1"

# What a user may decide about a server of ours. Any other PHOENIX_* variable is meant for another server or for a
# client, and would move this one, open it to the network or turn its address into https.
_PASSED_ON = (
    "PHOENIX_ADMINS",
    "PHOENIX_ADMIN_SECRET",
    "PHOENIX_DEFAULT_ADMIN_INITIAL_PASSWORD",
    "PHOENIX_DEFAULT_RETENTION_POLICY_DAYS",
    "PHOENIX_ENABLE_AUTH",
    "PHOENIX_LOGGING_LEVEL",
    "PHOENIX_MAX_SPANS_QUEUE_SIZE",
    "PHOENIX_SECRET",
    "PHOENIX_SQL_DATABASE_SCHEMA",
)


def _silent(doing: str) -> None:
    pass


@dataclass(frozen=True, slots=True, repr=False)
class Phoenix:
    """A Phoenix that answers. `pid`, `grpc_port` and `database` are known of a server of ours only."""

    url: str
    version: str
    api_key: str | None = None
    pid: int | None = None
    grpc_port: int | None = None
    database: str | None = None

    @property
    def ours(self) -> bool:
        return self.pid is not None

    @property
    def shown(self) -> str:
        """Its address for messages and for a browser: without a user and password."""
        return shown(self.url)

    @property
    def traces_url(self) -> str:
        """Where OTLP over HTTP goes."""
        return f"{self.url}/v1/traces"

    def project_url(self, name: str) -> str:
        """The page that shows a project, for a browser."""
        return f"{self.shown}/redirects/projects/{quote(name, safe='')}"

    def __repr__(self) -> str:
        return f"<Phoenix {self.version} at {self.shown}{f', process {self.pid}' if self.ours else ''}>"


def locate(endpoint: str | None = None, api_key: str | None = None, *, home: Path | None = None) -> Address | None:
    """The Phoenix to use: the one `endpoint` names, else the environment's, else our running one, else None.

    Nothing is asked over the network and nothing is written, so a host application can call this at its start.
    """
    if (elsewhere := named(endpoint, api_key)) is not None:
        return elsewhere
    note = _read_note(_folder(home))
    return Address(note.url, given_key(api_key)) if note is not None and _lives(note) else None


def find(endpoint: str | None = None, *, api_key: str | None = None, home: Path | None = None) -> Phoenix:
    """The Phoenix to use (see `locate`), asked: it answers, is Phoenix, is recent enough and takes our key."""
    address = named(endpoint, api_key)
    if address is not None:
        phoenix = Phoenix(address.url, _version(address), address.api_key)
    else:
        ours = status(home)
        if ours is None:
            raise PhoenixUnreachable(f"{NONE_RUNS}.", remedy=START_IT)
        phoenix = replace(ours, api_key=given_key(api_key))
        address = Address(phoenix.url, phoenix.api_key)
    if not recent(phoenix.version):
        minimum = ".".join(map(str, MINIMUM))
        raise PhoenixTooOld(
            f"The Phoenix at {phoenix.shown} is version {phoenix.version}; {minimum} or newer is needed.",
            remedy=f"Upgrade it, or unset {ENDPOINT_VARIABLE} to run one here.",
        )
    if not ask(address, "/v1/projects?limit=1", timeout=ANSWER_SECONDS).is_success:
        raise PhoenixUnreachable(
            f"The Phoenix at {phoenix.shown} does not answer its own interface.",
            remedy="If something stands between, such as a proxy, go around it.",
        )
    return phoenix


def start(
    home: Path | None = None,
    *,
    port: int | None = None,
    database_url: str | None = None,
    timeout: float = START_SECONDS,
    progress: Progress = _silent,
) -> Phoenix:
    """The Phoenix named by the environment, else this project's: found running, or started and left running.

    `home` is a `.selfimprove/` folder, by default the project's. Without `port`, 6006 or the next free one.
    """
    if (elsewhere := named()) is not None:
        if port is not None or database_url is not None:
            raise UsageError(
                f"{ENDPOINT_VARIABLE} names {elsewhere.shown} as the Phoenix to use; these options would start one.",
                remedy=f"Unset {ENDPOINT_VARIABLE}, or leave the options out.",
            )
        return find()
    phoenix, _ = _ensure(home or files.home(), port, database_url, stays=True, timeout=timeout, progress=progress)
    return phoenix


@contextmanager
def running(
    home: Path | None = None,
    *,
    port: int | None = None,
    database_url: str | None = None,
    timeout: float = START_SECONDS,
    progress: Progress = _silent,
) -> Iterator[Phoenix]:
    """A server that ends with the block, and with this process even if that is killed.

    The environment is not consulted: it is a server here. One that `home` has running already is used, and left so.
    """
    home = home or files.home()
    phoenix, fresh = _ensure(home, port, database_url, stays=False, timeout=timeout, progress=progress)
    try:
        yield phoenix
    finally:
        # Whoever stopped this one meanwhile may have started another, which is theirs.
        note = _read_note(_folder(home))
        if fresh and note is not None and note.pid == phoenix.pid:
            stop(home)


def stop(home: Path | None = None) -> bool:
    """End this project's server; False if none was running. A start that is under way is waited for, then ended.

    The environment is not consulted: a Phoenix that it names is somebody else's to stop.
    """
    folder = _folder(home)
    try:
        if not folder.is_dir():
            return False
        with _lock(folder):
            note = _read_note(folder)
            lived = note is not None and _lives(note)
            if note is not None and lived:
                _end(note)
            _note_file(folder).unlink(missing_ok=True)
        return lived
    except OSError as error:
        raise SetupError(
            f"Cannot write to {folder} ({error.strerror or error}).",
            remedy="Stop it as the user who started it, or change the folder's permissions.",
        ) from None


def status(home: Path | None = None) -> Phoenix | None:
    """This project's server; None if it was stopped or never started, an error if it died or is stuck."""
    folder = _folder(home)
    note = _read_note(folder)
    if note is None:
        return None
    if not _lives(note):
        raise PhoenixUnreachable(
            f"Phoenix (process {note.pid}) ended without being stopped.",
            remedy=f"Start it again with `dspy-selfimprove phoenix start`; its log is {_log_file(folder)}.",
        )
    return _describe(folder, note)


# One server of ours: the note, the start, the end.


@dataclass(frozen=True, slots=True)
class _Note:
    """Which process is ours. `began` tells it from a later one with the same number."""

    pid: int
    began: str
    url: str
    database: str


def _folder(home: Path | None) -> Path:
    """Where this project's server would live. Asking leaves no trace."""
    return (home or files.nearest_home()).absolute() / "phoenix"


def _note_file(folder: Path) -> Path:
    return folder / "server.json"


def _log_file(folder: Path) -> Path:
    return folder / "phoenix.log"


def _read_note(folder: Path) -> _Note | None:
    try:
        return _Note(**json.loads(_note_file(folder).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


@contextmanager
def _lock(folder: Path, progress: Progress = _silent) -> Iterator[None]:
    with one_at_a_time(folder / "lock", progress, "waiting for another start of Phoenix"):
        yield


def _ensure(
    home: Path, port: int | None, database_url: str | None, *, stays: bool, timeout: float, progress: Progress
) -> tuple[Phoenix, bool]:
    """The home's server, and whether it was started for this call."""
    if not 1 <= timeout <= 3600:  # NaN compares false
        raise UsageError(f"A timeout of {timeout:g} seconds cannot be meant.", remedy="Allow 1 to 3600 seconds.")
    folder = files.writable(_folder(home))
    folder.chmod(0o700)  # production traces are nobody else's business
    database = database_url or f"sqlite:///{folder / 'phoenix.db'}"
    _check_database(database)
    with _lock(folder, progress):
        note = _read_note(folder)
        if note is not None and _lives(note):
            _refuse_other(note, port, _without_password(database) if database_url else note.database)
            return _describe(folder, note), False
        _note_file(folder).unlink(missing_ok=True)
        if port is not None:
            _listen(port).close()  # refused now rather than after an installation
        _check_openable(database)
        python = phoenix_python(progress)
        progress("starting Phoenix")
        return _launch(folder, python, port, database, stays=stays, timeout=timeout), True


def _refuse_other(note: _Note, port: int | None, database: str) -> None:
    if (port is not None and urlsplit(note.url).port != port) or database != note.database:
        raise UsageError(
            f"Phoenix already runs here at {note.url} on {note.database}.",
            remedy="Stop it first with `dspy-selfimprove phoenix stop`, or leave the options out.",
        )


def _launch(folder: Path, python: Path, port: int | None, database: str, *, stays: bool, timeout: float) -> Phoenix:
    log = _log_file(folder)
    if log.exists():
        log.replace(log.with_suffix(".previous.log"))
    grpc_note = _grpc_file(folder)
    grpc_note.unlink(missing_ok=True)
    command = [str(python), "-P", str(LAUNCHER), "--grpc-note", str(grpc_note), "--parent", str(os.getpid())]
    if stays:
        command += ["--unless", str(_note_file(folder))]
    with _listen(port) as listener, log.open("wb") as output:
        url = f"http://{_HOST}:{listener.getsockname()[1]}"
        child = subprocess.Popen(
            [*command, "--listener", str(listener.fileno())],
            env=_environment(python, folder, url, database),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=[listener.fileno()],
            start_new_session=True,
        )
    # Reaped whenever it ends, or a long-lived caller would keep a zombie.
    threading.Thread(target=child.wait, daemon=True).start()
    try:
        _await(url, log, database, timeout)
        began = _began(child.pid)
        if began is None:
            raise _why_it_ended(log, database)
        note = _Note(child.pid, began, url, _without_password(database))
        phoenix = _describe(folder, note)
        files.write_text(_note_file(folder), json.dumps(asdict(note), indent=2) + "\n")
    except BaseException:
        child.kill()
        child.wait()
        raise
    return phoenix


def _environment(python: Path, folder: Path, url: str, database: str) -> dict[str, str]:
    """What Phoenix is told. The database's address goes this way because arguments show in `ps`."""
    scratch = folder / "tmp"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    inherited = environment_of(python).items()
    return {
        # At "info", one line per request.
        "PHOENIX_LOGGING_LEVEL": "warning",
        **{name: value for name, value in inherited if not name.startswith("PHOENIX_") or name in _PASSED_ON},
        "PHOENIX_HOST": _HOST,
        "PHOENIX_PORT": str(urlsplit(url).port),
        "PHOENIX_GRPC_PORT": str(GRPC_PORT),
        "PHOENIX_WORKING_DIR": str(folder),
        "PHOENIX_SQL_DATABASE_URL": database,
        # No step onto the internet: pixels, fonts, the sandbox's runtime, the assistant's documentation.
        "PHOENIX_ALLOW_EXTERNAL_RESOURCES": "false",
        "PHOENIX_TELEMETRY_ENABLED": "false",
        "PHOENIX_DISABLE_AGENT_ASSISTANT": "true",
        "PHOENIX_ENABLE_MCP_SERVER": "false",
        # Otherwise thousands of lines of SQL.
        "PHOENIX_LOG_MIGRATIONS": "false",
        # A `.env.phoenix` of the project is for clients.
        "PHOENIX_DISCOVER_CONFIG": "false",
        # A Phoenix in a notebook kills whatever is listed in the common temporary folder.
        "TMPDIR": str(scratch),
    }


def _listen(port: int | None) -> socket.socket:
    """A listening socket on loopback: `port`, or without one the first free of the usual ones, else any."""
    if port is None:
        for usual in range(PORT, PORT + PORTS_TRIED):
            with suppress(OSError):
                return _open(usual)
    try:
        return _open(port or 0)
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        problem = "is taken by another program" if taken else f"cannot be opened ({error.strerror})"
    except OverflowError:
        problem = "does not exist"
    raise SetupError(f"Port {port} {problem}.", remedy="Choose another, or none to have a free one chosen.")


def _open(port: int) -> socket.socket:
    return socket.create_server((_HOST, port), backlog=2048)


def _await(url: str, log: Path, database: str, timeout: float) -> None:
    """Ask once: the socket is open already, so the answer comes when Phoenix does, and an error when it dies."""
    try:
        httpx.get(f"{url}/healthz", timeout=timeout, trust_env=False)
    except httpx.TimeoutException:
        raise TelemetryError(
            f"Phoenix did not come up within {timeout:.0f} s.",
            remedy=f"If this machine is that slow, allow more with --timeout; Phoenix's log is {log}.",
        ) from None
    except httpx.TransportError:
        raise _why_it_ended(log, database) from None


def _why_it_ended(log: Path, database: str) -> SelfImproveError:
    text = log.read_text(encoding="utf-8", errors="replace")[-50_000:]
    if "Can't locate revision" in text:
        return SetupError(
            f"The database {_without_password(database)} was written by a newer Phoenix.",
            remedy="Move it away to begin an empty one, or use the Phoenix that wrote it.",
        )
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"(\w+\.)*\w*(Error|Exception|Refused|Fatal)\b.*: \S", line)]
    last = (errors or lines or ["it wrote nothing"])[-1]
    return TelemetryError(
        f"Phoenix ended while it was starting: {last[:300].rstrip('.')}.", remedy=f"Its log is {log}."
    )


def _check_database(database: str) -> None:
    try:
        urlsplit(database)
    except ValueError:
        database = ""
    if not re.match(r"(sqlite:///|postgres(ql)?(\+\w+)?://)\S", database):
        raise UsageError(
            "The database's address must begin with postgresql:// or sqlite:///.",
            remedy="For example postgresql://user:password@host:5432/phoenix.",
        )


def _check_openable(database: str) -> None:
    """Refuse an SQLite file that Phoenix would stumble over only after seconds of loading."""
    file = Path(database.removeprefix("sqlite:///"))
    if not database.startswith("sqlite:///") or not file.exists():
        return
    try:
        with closing(sqlite3.connect(file, timeout=2, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("SELECT count(*) FROM sqlite_master")
            connection.execute("ROLLBACK")
    except sqlite3.DatabaseError as error:
        if "locked" in str(error):
            raise SetupError(
                f"The database {file} is in use by another program.", remedy="Close that program and try again."
            ) from None
        raise SetupError(
            f"The database {file} cannot be used ({error}).",
            remedy="Restore it, make it writable, or move it away to begin an empty one.",
        ) from None


def _without_password(database: str) -> str:
    parts = urlsplit(database)
    if parts.password is None:
        return database
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{parts.username}@{host}"))


def _grpc_file(folder: Path) -> Path:
    return folder / "grpc-port"


def _describe(folder: Path, note: _Note) -> Phoenix:
    key = given_key()
    try:
        grpc_port = int(_grpc_file(folder).read_text(encoding="ascii"))
    except (OSError, ValueError):
        grpc_port = None
    try:
        version = _version(Address(note.url, key))
    except PhoenixUnreachable as error:
        raise PhoenixUnreachable(
            error.problem,
            remedy="Wait if it is busy; otherwise end it with `dspy-selfimprove phoenix stop` and start it again.",
        ) from None
    return Phoenix(note.url, version, key, note.pid, grpc_port, note.database)


def _end(note: _Note) -> None:
    """End this very process: asked first, then forced."""
    for number, patience in ((signal.SIGTERM, STOP_SECONDS), (signal.SIGKILL, STOP_SECONDS)):
        if not _lives(note):
            return
        try:
            os.kill(note.pid, number)
        except ProcessLookupError:
            return
        except PermissionError:
            raise SetupError(
                f"Phoenix (process {note.pid}) was started by another user.", remedy="Have that user stop it."
            ) from None
        deadline = time.monotonic() + patience
        while _lives(note) and time.monotonic() < deadline:
            time.sleep(0.05)


def _lives(note: _Note) -> bool:
    return _began(note.pid) == note.began


def _began(pid: int) -> str | None:
    """When our launcher began as process `pid`; None if it has ended or is another program."""
    if sys.platform == "linux":
        try:
            stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
            command = Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8", errors="replace")
            boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        except OSError:
            return None
        # The second field is the program's name in parentheses, which may hold spaces and parentheses.
        values = stat.rpartition(")")[2].split()
        state, began = values[0], f"{boot} {values[19]}"
    else:
        listed = subprocess.run(
            ["ps", "-ww", "-o", "state=,lstart=,command=", "-p", str(pid)],  # noqa: S607 - wherever the system has it
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "LC_ALL": "C"},
        )
        values = listed.stdout.split(None, 6)
        if len(values) < 7:
            return None
        state, began, command = values[0], " ".join(values[1:6]), values[6]
    return began if not state.startswith("Z") and LAUNCHER.name in command else None


# Any Phoenix: asking who answers.


def _version(address: Address) -> str:
    answer = ask(address, "/arize_phoenix_version", timeout=ANSWER_SECONDS)
    plain = answer.headers.get("content-type", "").startswith("text/plain")
    version = answer.headers.get("x-phoenix-server-version") or (answer.text.strip() if plain else "")
    if not answer.is_success or not re.fullmatch(r"\d+\.\d+[\w.+-]*", version):
        raise PhoenixUnreachable(
            f"What answers at {address.shown} is not Phoenix.", remedy=f"Correct or unset {ENDPOINT_VARIABLE}."
        )
    return version
