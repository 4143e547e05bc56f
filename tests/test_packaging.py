"""What a user installs: a wheel made from the source distribution holds everything and needs no checkout."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The wheel, made from the sdist as an index would, unpacked."""
    folder = tmp_path_factory.mktemp("build")
    build = [sys.executable, "-m", "hatchling", "build", "-d", str(folder)]
    subprocess.run([*build, "-t", "sdist"], cwd=ROOT, check=True, capture_output=True)
    (sdist,) = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (source,) = (path for path in folder.iterdir() if path.is_dir())
    subprocess.run([*build, "-t", "wheel"], cwd=source, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_the_wheel_holds_the_package_and_its_definitions(installed):
    package = installed / "dspy_selfimprove"
    for name in (
        "py.typed",
        "telemetry/phoenix-constraints.txt",
        "_bundled/metrics/helpfulness.yaml",
        "_bundled/datasets/support_tickets/train.jsonl",
        "_bundled/datasets/support_tickets/policy.md",
    ):
        assert (package / name).is_file(), name
    assert {path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")} == {"dspy_selfimprove"}


def test_it_finds_them_without_the_checkout(installed, tmp_path):
    code = (
        f"import sys; sys.path.insert(0, {str(installed)!r})\n"
        "import dspy_selfimprove\n"
        "from dspy_selfimprove.files import definitions\n"
        "print(dspy_selfimprove.__file__, definitions('metrics'), definitions('datasets'))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert all(path.startswith(str(installed)) for path in done.stdout.split())
