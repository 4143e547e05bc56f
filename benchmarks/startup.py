"""What starting costs: importing the package, and `--help`, beside a bare interpreter in the same run."""

from __future__ import annotations

import subprocess
import sys
import time

CASES = {
    "bare python": ["-c", "pass"],
    "import dspy_selfimprove": ["-c", "import dspy_selfimprove"],
    "dspy-selfimprove --help": ["-m", "dspy_selfimprove", "--help"],
    "import dspy (for scale)": ["-c", "import dspy"],
}
ROUNDS = 15


def seconds(arguments: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    return time.perf_counter() - start


def main() -> None:
    taken: dict[str, list[float]] = {name: [] for name in CASES}
    for _ in range(ROUNDS):  # in turn, so that a noisy moment falls on all alike
        for name, arguments in CASES.items():
            taken[name].append(seconds(arguments))
    bare = min(taken["bare python"])
    for name, values in taken.items():
        value = min(values)  # noise only ever adds
        print(f"{name:26} {value:6.3f} s   +{value - bare:5.3f} s   {value / bare:5.1f} x bare")


if __name__ == "__main__":
    main()
