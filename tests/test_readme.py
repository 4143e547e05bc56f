"""Everything the README shows is true: its code runs, its commands exist, its tree is the tree."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
FENCED = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
BLOCKS = [text for language, text in FENCED if language == "python"]
COMMANDS = sorted(set(re.findall(r"dspy-selfimprove ([a-z]+ [a-z]+)", README)))


@pytest.mark.parametrize("code", BLOCKS, ids=range(len(BLOCKS)))
def test_a_block_of_python_runs(code, tmp_path):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert "prompt version" in done.stdout
    assert "Ana" in done.stdout, "the stand-in follows the prompt: it greets by first name"
    assert "no Phoenix is running" in done.stdout


def test_the_example_is_about_twenty_lines():
    assert len([line for line in BLOCKS[0].splitlines() if line.strip()]) <= 20


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_exists(command):
    line = [sys.executable, "-m", "dspy_selfimprove", *command.split(), "--help"]
    assert subprocess.run(line, capture_output=True, text=True, check=False).returncode == 0


def test_the_tree_is_the_tree():
    (tree,) = [text for _, text in FENCED if "errors.py" in text]
    told = {line.split()[0].rstrip("/") for line in tree.splitlines() if line.startswith("  ")}
    package = ROOT / "dspy_selfimprove"
    there = {path.name for path in package.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert told == there - {"__main__.py"}
    folders = {line.split()[0].rstrip("/") for line in tree.splitlines() if re.match(r"[a-z]\w*/", line)}
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    assert folders == {name.split("/")[0] for name in tracked if "/" in name and not name.startswith(".")} | {
        "dspy_selfimprove"
    }


def test_what_links_point_to_is_there():
    for text in (
        README,
        *((ROOT / name).read_text(encoding="utf-8") for name in ("CONTRIBUTING.md", "ARCHITECTURE.md")),
    ):
        for target in re.findall(r"\]\((?!http)([^)#]+)", text):
            assert (ROOT / target).exists(), target
