"""Spans from Arize AX, by its own SDK, which lives elsewhere.

The SDK wants an old pandas and an old wrapt, and would put them in the place of ours. So it gets an environment of its
own (`python -m venv ax && ax/bin/pip install "arize>=8" pyarrow`), and `fetch` runs it there, in a process that writes
a Parquet file. A file that was exported by hand is read by `exports.read` just as well.

Written from the SDK's documentation (8.x, `ArizeClient.spans.export_to_df`) and tested against a stand-in that checks
how it is called: **never run against a live AX**.
"""

from __future__ import annotations

import json
import subprocess
from datetime import datetime
from pathlib import Path
from typing import Final

from dspy_selfimprove import files
from dspy_selfimprove.errors import SetupError, TelemetryError
from dspy_selfimprove.telemetry.exports import Export, read
from dspy_selfimprove.telemetry.installation import environment_of
from dspy_selfimprove.telemetry.pages import utc

KEY_VARIABLE: Final = "ARIZE_API_KEY"

# Runs in the other environment, of which nothing of ours is a part. Lists and dicts go as JSON text, since a column of
# dicts that differ is more than Parquet holds.
_SCRIPT: Final = """
import json, sys
from datetime import datetime

asked = json.load(sys.stdin)

def text(value):
    if hasattr(value, "tolist"):
        value = value.tolist()
    return json.dumps(value, default=lambda each: each.tolist() if hasattr(each, "tolist") else str(each)) \\
        if isinstance(value, (list, dict, tuple)) else value

try:
    from arize import ArizeClient
except ImportError as error:
    print(json.dumps({"lacks": error.name or "arize"}))
    sys.exit()
try:
    frame = ArizeClient(**({"api_key": asked["api_key"]} if asked["api_key"] else {})).spans.export_to_df(
        space_id=asked["space_id"],
        project_name=asked["project"],
        start_time=datetime.fromisoformat(asked["since"]),
        end_time=datetime.fromisoformat(asked["until"]),
    )
    for name in frame.columns:
        if frame[name].dtype == object:
            frame[name] = frame[name].map(text)
    frame.to_parquet(asked["into"])
except Exception as error:
    print(json.dumps({"failed": type(error).__name__}))
else:
    print(json.dumps({"spans": len(frame)}))
"""


def fetch(
    project: str,
    since: datetime,
    until: datetime,
    *,
    space_id: str,
    python: str | Path,
    into: str | Path,
    api_key: str | None = None,
) -> Export:
    """Export the spans of an AX project to the Parquet file `into`, and read it.

    `python` is the interpreter that has the SDK; the key is `api_key`, else what that finds in `ARIZE_API_KEY`.
    """
    since, until = utc("since", since), utc("until", until)
    with files.replacing(Path(into)) as part:
        asked = {
            "project": project,
            "space_id": space_id,
            "since": since.isoformat(),
            "until": until.isoformat(),
            "api_key": api_key,
            "into": str(part),
        }
        _run(Path(python), json.dumps(asked))
    return read(into, since, until)


def _run(python: Path, asked: str) -> None:
    try:
        # The key goes through standard input, because arguments show in `ps`.
        done = subprocess.run(
            [str(python), "-c", _SCRIPT],
            input=asked,
            capture_output=True,
            text=True,
            env=environment_of(python),
            check=False,
        )
    except OSError:
        raise SetupError(f"{python} is not a Python that runs.", remedy="Name the one that has the SDK.") from None
    try:
        said = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        said = {"failed": f"exit code {done.returncode}"}
    if "lacks" in said:
        raise SetupError(f"{python} lacks the Arize SDK.", remedy='Install "arize>=8" and pyarrow there.')
    if "failed" in said:
        raise TelemetryError(
            f"The Arize SDK did not export the spans ({said['failed']}).",
            remedy=f"Check the space, the project and the key (see {KEY_VARIABLE}).",
        )
