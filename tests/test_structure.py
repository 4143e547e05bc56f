"""The house as a machine sees it: what importing costs, which way imports point, what the public face shows."""

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import dspy_selfimprove

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "dspy_selfimprove"
HEAVY = ("dspy", "phoenix", "pandas", "sklearn", "numpy", "openai", "litellm", "opentelemetry", "click", "rich")


def loaded_after(code: str, cwd: Path) -> list[str]:
    script = f"import sys, json\n{code}\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=cwd)
    return json.loads(done.stdout.splitlines()[-1])


def test_importing_the_package_loads_nothing_heavy(tmp_path):
    loaded = loaded_after("import dspy_selfimprove", tmp_path)
    assert not [name for name in loaded if name.split(".")[0] in HEAVY]


def test_help_loads_neither_dspy_nor_phoenix_nor_pandas(tmp_path):
    code = "from dspy_selfimprove.cli import main\ntry:\n    main(['--help'])\nexcept SystemExit:\n    pass"
    loaded = loaded_after(code, tmp_path)
    assert not [name for name in loaded if name.split(".")[0] in set(HEAVY) - {"click"}]


def test_every_public_name_is_there_and_listed():
    assert sorted(dspy_selfimprove.__all__) == dspy_selfimprove.__all__
    for name in dspy_selfimprove.__all__:
        value = getattr(dspy_selfimprove, name)
        assert value.__doc__, f"{name} has no docstring"
    assert set(dspy_selfimprove.__all__) <= set(dir(dspy_selfimprove))
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        _ = dspy_selfimprove.Nonsense


def test_our_folders_never_pose_as_packages(tmp_path):
    """HuggingFace's `datasets` and anybody's `metrics` must not resolve to the definition folders."""
    code = "from importlib.util import find_spec\nfor name in ('datasets', 'metrics'): print(find_spec(name))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert str(ROOT) not in done.stdout
    assert not list((ROOT / "metrics").rglob("*.py")) + list((ROOT / "datasets").rglob("*.py"))


def imported_by(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_each_half_of_phoenix_has_one_door(path):
    where = path.relative_to(PACKAGE).parts[0]
    names = imported_by(path)
    if where != "telemetry":
        assert not [name for name in names if name.startswith(("phoenix.client", "phoenix.otel"))]
    if where not in ("judge.py", "judges"):
        assert not [name for name in names if name.startswith("phoenix.evals")]


def test_an_upward_import_breaks_the_contract(tmp_path):
    """The linter is only worth something if it can fail: copy the package, add one upward import, run it."""
    for name in ("pyproject.toml",):
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(PACKAGE, tmp_path / "dspy_selfimprove", ignore=shutil.ignore_patterns("__pycache__"))
    linter = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}

    def lint():
        return subprocess.run(linter, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)

    clean = lint()
    assert clean.returncode == 0, clean.stdout
    errors = tmp_path / "dspy_selfimprove" / "errors.py"
    errors.write_text(errors.read_text() + "\nfrom dspy_selfimprove.journal import Journal\n")
    broken = lint()
    assert broken.returncode != 0
    assert "dspy_selfimprove.errors is not allowed to import dspy_selfimprove.journal" in broken.stdout
    (tmp_path / "dspy_selfimprove" / "stray.py").write_text("")
    assert "stray" in lint().stdout
