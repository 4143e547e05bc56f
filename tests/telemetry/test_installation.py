"""Which Python runs Phoenix. That the environment can be built is shown by every test that uses it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from dspy_selfimprove.errors import SetupError
from dspy_selfimprove.telemetry import installation
from dspy_selfimprove.telemetry.installation import CONSTRAINTS, PYTHON_VARIABLE, VERSION, phoenix_python, recent


def nobody(doing: str) -> None:
    pass


class TestAPythonNamedByTheUser:
    def test_is_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(PYTHON_VARIABLE, "/nowhere/python")
        with pytest.raises(SetupError, match=f"{PYTHON_VARIABLE}.*is not a Python"):
            phoenix_python(nobody)

    @pytest.mark.parametrize(
        ("says", "problem"),
        [
            ('[[3, 10], "20.26.1"]', "is Python 3.10; Phoenix needs 3.11"),
            ('[[3, 12], "20.25.0"]', "has arize-phoenix 20.25.0"),
            ("[[3, 12], null]", "has no arize-phoenix"),
        ],
    )
    def test_does_not_fit(self, says: str, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        python = tmp_path / "python"
        python.write_text(f"#!/bin/sh\necho '{says}'\n")
        python.chmod(0o755)
        monkeypatch.setenv(PYTHON_VARIABLE, str(python))
        with pytest.raises(SetupError, match=problem):
            phoenix_python(nobody)

    def test_is_asked_without_our_packages(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        metadata = tmp_path / "arize_phoenix-99.0.dist-info" / "METADATA"
        metadata.parent.mkdir()
        metadata.write_text("Metadata-Version: 2.1\nName: arize-phoenix\nVersion: 99.0\n")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        monkeypatch.chdir(tmp_path)
        bare = tmp_path / "python"
        bare.symlink_to(os.path.realpath(sys.executable))
        monkeypatch.setenv(PYTHON_VARIABLE, str(bare))
        with pytest.raises(SetupError, match="has no arize-phoenix"):
            phoenix_python(nobody)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache on a machine without a network, whose own environment has no Phoenix."""
    if recent(installation._own_version()):
        pytest.skip("arize-phoenix is installed beside the tests, so no environment is ever built")
    monkeypatch.delenv(PYTHON_VARIABLE, raising=False)
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("DSPY_SELFIMPROVE_CACHE", str(tmp_path))
    return tmp_path


def environments(cache: Path) -> list[Path]:
    return [path for path in cache.iterdir() if path.is_dir()]


class TestBuildingAnEnvironment:
    def test_without_a_network_begins_anew_and_leaves_nothing_half_built(self, cache: Path) -> None:
        half_built = cache / f"phoenix-{VERSION}-py{sys.version_info.major}.{sys.version_info.minor}"
        (half_built / "bin").mkdir(parents=True)
        (half_built / "bin" / "python").symlink_to(sys.executable)
        said: list[str] = []
        with pytest.raises(SetupError, match="package index does not answer") as failed:
            phoenix_python(said.append)
        assert "PHOENIX_COLLECTOR_ENDPOINT" in failed.value.remedy
        assert any("installing arize-phoenix" in doing for doing in said)
        assert environments(cache) == []

    def test_without_room_is_not_begun(self, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(installation, "DISK_BYTES", 10**18)
        with pytest.raises(SetupError, match=r"no room.*DSPY_SELFIMPROVE_CACHE"):
            phoenix_python(nobody)
        assert environments(cache) == []


@pytest.mark.parametrize(
    ("version", "fits"),
    [("20.26.1", True), ("20.26", True), ("21.0.0rc1", True), ("20.9.9", False), ("9.99", False), ("x", False)],
)
def test_recent_compares_numbers(version: str, fits: bool) -> None:
    assert recent(version) is fits


def test_constraints_pin_everything_exactly_and_from_nowhere_in_particular() -> None:
    lines = [line for line in CONSTRAINTS.read_text().splitlines() if not line.startswith("#")]
    assert f"arize-phoenix=={VERSION}" in lines
    assert all(name and version and "/" not in line for line in lines for name, _, version in [line.partition("==")])
