"""The commands as a user types them: each one a process, in a project folder of its own."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import dspy_selfimprove
from dspy_selfimprove.telemetry.installation import PYTHON_VARIABLE

SOURCE = str(Path(dspy_selfimprove.__file__).parents[1])
NO_DISPLAY = {"DISPLAY": "", "WAYLAND_DISPLAY": ""}
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def begin(folder: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", "from dspy_selfimprove.cli import main; main()", "phoenix", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": SOURCE, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(folder: Path, *arguments: str, **environment: str) -> tuple[int, str, str]:
    """Exit code, standard output, standard error."""
    with begin(folder, *arguments, **environment) as process:
        out, err = process.communicate()
    return process.returncode, out, err


def processes_that_mention(folder: Path) -> list[str]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            found.append((process / "cmdline").read_text())
        except OSError:
            continue
    return [command for command in found if str(folder) in command]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("project")
    yield folder
    run(folder, "stop")


@linux
def test_a_server_started_twice_at_once_looked_at_and_stopped(project: Path, tmp_path: Path) -> None:
    with begin(project, "start") as one, begin(project, "start") as other:
        outputs = {process.communicate()[0] for process in (one, other)}
    assert (one.returncode, other.returncode, len(outputs)) == (0, 0, 1)
    (said,) = outputs
    found = re.match(r"Phoenix (\S+) is running at (http://127\.0\.0\.1:\d+)\n", said)
    assert found, said
    url = found[2]
    assert len(processes_that_mention(project / ".selfimprove")) == 1

    code, out, _ = run(project, "status")
    assert (code, out.splitlines()[0]) == (0, said.splitlines()[0])
    assert run(project, "open", **NO_DISPLAY) == (0, f"{url}\n", "")
    assert run(project, "open", "support", **NO_DISPLAY) == (0, f"{url}/redirects/projects/support\n", "")

    # Another project is pointed at it.
    code, out, _ = run(tmp_path, "start", PHOENIX_COLLECTOR_ENDPOINT=url)
    assert (code, out) == (0, f"Using the Phoenix {found[1]} at {url}, which PHOENIX_COLLECTOR_ENDPOINT names.\n")
    assert run(tmp_path, "status", PHOENIX_COLLECTOR_ENDPOINT=url)[0] == 0
    assert list(tmp_path.iterdir()) == []

    # With a password in front, which is shown nowhere.
    secret = url.replace("//", "//bob:hunter2@")
    for command in ("start", "status", "open"):
        code, out, err = run(tmp_path, command, PHOENIX_COLLECTOR_ENDPOINT=secret, **NO_DISPLAY)
        assert (code, url in out, "hunter2" in out + err) == (0, True, False)

    # What the variable names is not this project's to stop, and does not keep it from stopping its own.
    assert run(tmp_path, "stop", PHOENIX_COLLECTOR_ENDPOINT=url) == (0, "No Phoenix of this project was running.\n", "")
    (project / "below").mkdir()
    elsewhere = {"PHOENIX_COLLECTOR_ENDPOINT": "http://127.0.0.1:1"}
    assert run(project / "below", "stop", **elsewhere) == (0, "Phoenix is stopped.\n", "")
    assert processes_that_mention(project / ".selfimprove") == []
    assert run(project, "stop") == (0, "No Phoenix of this project was running.\n", "")


def test_without_a_server(tmp_path: Path) -> None:
    assert run(tmp_path, "status")[::2] == (1, "")
    code, out, err = run(tmp_path, "open", **NO_DISPLAY)
    assert (code, out) == (1, "")
    assert err.startswith("Error: No Phoenix is running for this project.\nStart it with")


def test_a_server_elsewhere_that_is_not_there(tmp_path: Path) -> None:
    code, out, err = run(tmp_path, "start", PHOENIX_COLLECTOR_ENDPOINT="http://127.0.0.1:1")
    assert (code, out, len(err.splitlines())) == (1, "", 2)
    assert "cannot be reached" in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["start", "status", "open"])
def test_an_address_that_is_none(tmp_path: Path, command: str) -> None:
    code, out, err = run(tmp_path, command, PHOENIX_COLLECTOR_ENDPOINT="http://[::1")
    assert (code, out, len(err.splitlines())) == (1, "", 2)
    assert err.startswith("Error: That is not the address of a Phoenix.")


def test_stop_says_what_it_is_about(tmp_path: Path) -> None:
    assert "whatever PHOENIX_COLLECTOR_ENDPOINT names" in " ".join(run(tmp_path, "stop", "--help")[1].split())


def test_stopping_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / ".selfimprove" / "phoenix" / "lock").mkdir(parents=True)  # not even root can write it
    code, out, err = run(tmp_path, "stop")
    assert (code, out, len(err.splitlines())) == (1, "", 2)
    assert err.startswith("Error: Cannot write to ")


@linux
def test_interrupted_while_it_starts_leaves_nothing_running(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("""#!/bin/sh\nif [ "$1" = -c ]; then echo '[[3, 12], "20.26.1"]'; exit; fi\nexec sleep 600\n""")
    python.chmod(0o755)
    with begin(tmp_path, "start", **{PYTHON_VARIABLE: str(python)}) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "starting Phoenix ...\n"
        process.send_signal(signal.SIGINT)
        assert [said.strip() for said in process.communicate()] == ["", "Interrupted."]
    assert process.returncode == 130
    assert processes_that_mention(tmp_path) == []
    assert run(tmp_path, "status")[0] == 1


@linux
def test_interrupted_while_it_installs_leaves_nothing_half_installed(tmp_path: Path) -> None:
    pip = {name: "" for name in os.environ if name.startswith("PIP_")}
    with socket.create_server(("127.0.0.1", 0)) as silent_index:
        pip |= {
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_INDEX_URL": f"http://127.0.0.1:{silent_index.getsockname()[1]}/simple",
        }
        with begin(tmp_path, "start", DSPY_SELFIMPROVE_CACHE=str(tmp_path), **{PYTHON_VARIABLE: ""}, **pip) as process:
            assert process.stderr is not None
            assert process.stderr.readline() == "making an environment for Phoenix ...\n"
            assert process.stderr.readline() == "installing arize-phoenix, once for all projects ...\n"
            silent_index.settimeout(60)
            with silent_index.accept()[0]:
                process.send_signal(signal.SIGINT)
                assert [said.strip() for said in process.communicate()] == ["", "Interrupted."]
    assert process.returncode == 130
    assert processes_that_mention(tmp_path) == []
    assert not list(tmp_path.glob("phoenix-*/"))


def test_help_loads_nothing_heavy(tmp_path: Path) -> None:
    script = (
        "import sys; import dspy_selfimprove.cli.phoenix\n"
        "print([name for name in ('httpx', 'rich', 'filelock', 'phoenix', 'sqlite3') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": SOURCE},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize("seconds", ["-1", "0", "nan", "inf"])
def test_a_timeout_that_cannot_be_meant_is_refused(seconds, tmp_path):
    command = [sys.executable, "-m", "dspy_selfimprove", "phoenix", "start", "--timeout", seconds]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "cannot be meant" in done.stderr
    assert "Traceback" not in done.stderr
