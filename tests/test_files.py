import subprocess
from pathlib import Path

import pytest

from dspy_selfimprove.errors import SetupError
from dspy_selfimprove.files import cache, definitions, home, replacing, writable, write_text


def test_home_is_the_nearest_and_stays_out_of_git(tmp_path):
    made = home(tmp_path)
    assert made == tmp_path / ".selfimprove"
    (tmp_path / "deep" / "er").mkdir(parents=True)
    assert home(tmp_path / "deep" / "er") == made
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    (made / "secret.jsonl").write_text("{}")
    seen = subprocess.run(["git", "status", "--porcelain"], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert seen.stdout == ""
    assert made.stat().st_mode & 0o077 == 0


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / ".selfimprove").write_text("a file where the folder should be")
    with pytest.raises(SetupError, match=r"\.selfimprove cannot be made: a file is in its place") as caught:
        home(tmp_path)
    assert caught.value.remedy
    with pytest.raises(SetupError):
        writable(tmp_path / ".selfimprove" / "below")


def test_a_file_is_whole_or_not_there(tmp_path):
    path = tmp_path / "a" / "file.json"
    write_text(path, "first")
    with pytest.raises(RuntimeError, match="half-way"), replacing(path) as part:
        part.write_text("second, unfinished")
        raise RuntimeError("half-way")
    assert path.read_text() == "first"
    assert [entry.name for entry in path.parent.iterdir()] == ["file.json"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has it")
def test_a_full_disk_is_one_sentence(tmp_path):
    """/dev/full is the kernel's own full disk: every write to it fails as a full file system would."""
    with pytest.raises(SetupError, match="No space left"), replacing(tmp_path / "file") as part:
        part.symlink_to("/dev/full")
        with part.open("w") as stream:
            stream.write("x")
    assert list(tmp_path.iterdir()) == []


def test_a_mistake_inside_the_block_is_not_blamed_on_the_target(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing-input"), replacing(tmp_path / "file") as part:
        part.write_text((tmp_path / "missing-input").read_text())
    assert list(tmp_path.iterdir()) == []


def test_a_link_is_followed_and_the_umask_respected(tmp_path):
    target = tmp_path / "target"
    target.write_text("old")
    (tmp_path / "link").symlink_to(target)
    write_text(tmp_path / "link", "new")
    assert target.read_text() == "new"
    assert (tmp_path / "link").is_symlink()
    plain = tmp_path / "plain"
    plain.touch()
    assert target.stat().st_mode == plain.stat().st_mode
    write_text(tmp_path / ("long" * 50), "a long name leaves room for the temporary one")


def test_the_cache_can_be_moved(tmp_path, monkeypatch):
    monkeypatch.setenv("DSPY_SELFIMPROVE_CACHE", str(tmp_path / "cache"))
    assert cache() == tmp_path / "cache"


def test_definitions_are_found_beside_the_package():
    assert (definitions("datasets") / "support_tickets").is_dir()
    with pytest.raises(SetupError, match="nonsense/ folder is missing"):
        definitions("nonsense")
