"""Which Python runs the Phoenix server, building an environment for it if there is none.

Phoenix has some 140 dependencies, and beside them every `import phoenix.client` would cost seconds and hundreds of
megabytes. So the server gets an environment of its own in the user's cache, built once and shared by all projects.
One process builds at a time; a marker is written last, so an interrupted build is recognised and begun again, and an
environment that no longer runs (its base Python was upgraded or removed) is rebuilt.

Two ways around it: `DSPY_SELFIMPROVE_PHOENIX_PYTHON` names a Python that already has arize-phoenix, and the extra
`dspy-selfimprove[server]` puts it into our own environment, where it is found.

Not covered: damage inside a finished environment that leaves its metadata readable, and a build by another program
that outlives a builder killed with SIGKILL.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dspy_selfimprove import files
from dspy_selfimprove.errors import SetupError

VERSION = "20.26.1"
MINIMUM = (20, 26)
PYTHON_VARIABLE = "DSPY_SELFIMPROVE_PHOENIX_PYTHON"
CONSTRAINTS = Path(__file__).with_name("phoenix-constraints.txt")
DISK_BYTES = 1_500_000_000

Progress = Callable[[str], None]
"""Told, in a few words, what is being done now; may be told the same thing again with another number in it."""

_PROBE = """
import sys
del sys.path[0]  # the folder this runs in may hold a json.py
import importlib.metadata, json
try:
    version = importlib.metadata.version("arize-phoenix")
except importlib.metadata.PackageNotFoundError:
    version = None
print(json.dumps([list(sys.version_info[:2]), version]))
"""
_OFFLINE = re.compile(r"NewConnectionError|NameResolutionError|ConnectTimeoutError|ProxyError|\(from versions: none\)")
_DISK_FULL = re.compile(r"No space left on device|Errno 28|Disk quota exceeded")
_ELSEWHERE = (
    f"or name a Python that has arize-phoenix in {PYTHON_VARIABLE}, or a running Phoenix in PHOENIX_COLLECTOR_ENDPOINT."
)


def phoenix_python(progress: Progress) -> Path:
    """The Python that has a fitting arize-phoenix: the one named, else our own, else the cached environment's."""
    if named := os.environ.get(PYTHON_VARIABLE):
        return _fitting(Path(named))
    if recent(_own_version()):
        return Path(sys.executable)
    return _cached(progress)


def recent(version: str | None) -> bool:
    """Whether this release of Phoenix has what we rely on. No version counts as too old."""
    found = re.match(r"(\d+)\.(\d+)", version or "")
    return found is not None and (int(found[1]), int(found[2])) >= MINIMUM


@contextmanager
def one_at_a_time(lock: Path, progress: Progress, waiting_for: str) -> Iterator[None]:
    """Hold `lock` across processes, saying what is waited for if another one has it."""
    from filelock import FileLock, Timeout

    held = FileLock(lock)
    try:
        held.acquire(blocking=False)
    except Timeout:
        progress(waiting_for)
        held.acquire()
    try:
        yield
    finally:
        held.release()


def environment_of(python: Path) -> dict[str, str]:
    """The environment variables to run `python` with: another one than ours must not be led to our packages."""
    ours = python == Path(sys.executable)
    return {name: value for name, value in os.environ.items() if ours or name not in ("PYTHONPATH", "PYTHONHOME")}


def _own_version() -> str | None:
    try:
        return importlib.metadata.version("arize-phoenix")
    except importlib.metadata.PackageNotFoundError:
        return None


def _probe(python: Path) -> tuple[tuple[int, int], str | None] | None:
    """The version of `python` and of the arize-phoenix it has; None if it does not run."""
    command = [str(python), "-c", _PROBE]
    try:
        done = subprocess.run(
            command, env=environment_of(python), capture_output=True, text=True, timeout=60, check=True
        )
        (major, minor), version = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    return (major, minor), version


def _fitting(python: Path) -> Path:
    named = f"{python}, named by {PYTHON_VARIABLE},"
    probed = _probe(python)
    if probed is None:
        raise SetupError(f"{named} is not a Python that runs.", remedy="Correct the variable or unset it.")
    (major, minor), version = probed
    if (major, minor) < (3, 11):
        raise SetupError(
            f"{named} is Python {major}.{minor}; Phoenix needs 3.11 or newer.",
            remedy="Name a newer one or unset the variable.",
        )
    if not recent(version):
        raise SetupError(
            f"{named} has {f'arize-phoenix {version}' if version else 'no arize-phoenix'}.",
            remedy=f"Install arize-phoenix>={'.'.join(map(str, MINIMUM))} there or unset the variable.",
        )
    return python


def _cached(progress: Progress) -> Path:
    name = f"phoenix-{VERSION}-py{sys.version_info.major}.{sys.version_info.minor}"
    folder = files.cache() / name
    python = folder / "bin" / "python"
    marker = folder / "complete"
    with one_at_a_time(folder.with_name(f"{name}.lock"), progress, "waiting for another process to install Phoenix"):
        if not (marker.is_file() and _holds_phoenix(python)):
            try:
                _build(folder, python, progress)
                files.write_text(marker, f"arize-phoenix {VERSION}\n")
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
    return python


def _holds_phoenix(python: Path) -> bool:
    probed = _probe(python)
    return probed is not None and probed[1] == VERSION


def _build(folder: Path, python: Path, progress: Progress) -> None:
    progress("making an environment for Phoenix")
    shutil.rmtree(folder, ignore_errors=True)
    if shutil.disk_usage(folder.parent).free < DISK_BYTES:
        raise _disk_full(folder)
    log = folder.with_name(f"{folder.name}.log")
    log.unlink(missing_ok=True)
    if _run([sys.executable, "-I", "-m", "venv", str(folder)], log, lambda line: None):
        if _DISK_FULL.search(log.read_text(encoding="utf-8", errors="replace")):
            raise _disk_full(folder)
        raise SetupError(
            f"This Python cannot make a virtual environment (see {log}).",
            remedy=f"Install its venv and ensurepip modules (on Debian and Ubuntu: python3-venv), {_ELSEWHERE}",
        )

    packages = 0

    def count(line: str) -> None:
        nonlocal packages
        if line.startswith("Collecting "):
            packages += 1
            progress(f"installing arize-phoenix, once for all projects ({packages} packages so far)")
        elif line.startswith("Installing collected packages"):
            progress(f"unpacking arize-phoenix and what it needs ({packages} packages)")

    pip = [str(python), "-I", "-m", "pip", "--disable-pip-version-check", "--no-input", "install", "--progress-bar=off"]
    progress("installing arize-phoenix, once for all projects")
    failed = _run([*pip, "--constraint", str(CONSTRAINTS), f"arize-phoenix[pg]=={VERSION}"], log, count)
    if failed or not _holds_phoenix(python):
        raise _why_not_installed(folder, log)


def _run(command: list[str], log: Path, on_line: Callable[[str], None]) -> bool:
    """Run `command`, its lines going to `log` and to `on_line`; True if it failed. Nothing of it outlives this call."""
    with (
        log.open("a", encoding="utf-8") as copy,
        subprocess.Popen(
            command,
            env=environment_of(Path(command[0])),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        ) as process,
    ):
        assert process.stdout is not None
        try:
            for line in process.stdout:
                copy.write(line)
                on_line(line)
        except BaseException:
            # Its own session keeps a terminal's ctrl-C from pip, which would print a traceback of its own.
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return process.returncode != 0


def _why_not_installed(folder: Path, log: Path) -> SetupError:
    text = log.read_text(encoding="utf-8", errors="replace")
    if _DISK_FULL.search(text):
        return _disk_full(folder)
    if _OFFLINE.search(text):
        return SetupError(
            "Phoenix cannot be downloaded: the package index does not answer.",
            remedy=f"Connect to the network and try again, {_ELSEWHERE}",
        )
    errors = [line.removeprefix("ERROR: ").strip() for line in text.splitlines() if line.startswith("ERROR: ")]
    reason = errors[-1].rstrip(".") if errors else "pip failed"
    return SetupError(f"Phoenix could not be installed: {reason}.", remedy=f"pip's full answer is in {log}.")


def _disk_full(folder: Path) -> SetupError:
    return SetupError(
        f"There is no room for Phoenix's environment in {folder.parent} (it takes about {DISK_BYTES / 1e9:.1f} GB).",
        remedy=f"Free space, move the cache with DSPY_SELFIMPROVE_CACHE, {_ELSEWHERE}",
    )
