"""`dspy-selfimprove rehearsal serve` as a shell runs it: what it prints, and how it ends."""

import re
import signal
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager

import httpx
import openai
import pytest

COMMAND = [sys.executable, "-m", "dspy_selfimprove", "rehearsal", "serve"]


@contextmanager
def serving(tmp_path, *options):
    """The command, running, with what it printed and the URL in it."""
    process = subprocess.Popen(
        [*COMMAND, "--port", "0", *options], cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        # Line by line: what a line reader holds back, communicate() would not see.
        said = [*iter(process.stdout.readline, "Ctrl-C stops it.\n")]
        yield process, "".join(said), re.search(r"http://127\.0\.0\.1:\d+/v1", said[0])[0]
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-C", "SIGTERM"])
def test_it_serves_until_it_is_stopped_even_with_a_call_in_flight(tmp_path, number):
    with serving(tmp_path, "--latency", "600s") as (process, said, url):
        given_up = []

        def wait() -> None:
            try:
                openai.OpenAI(base_url=url, api_key="any", max_retries=0).chat.completions.create(
                    model="any", messages=[{"role": "user", "content": "hello"}]
                )
            except openai.APIConnectionError as error:
                given_up.append(error)

        waiting = threading.Thread(target=wait)
        waiting.start()
        counters = url.replace("/v1", "/counters")
        while not httpx.get(counters).json()["in_flight"]:
            pass
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
        waiting.join(timeout=30)
    assert process.returncode == 0
    assert err == ""
    assert f"export OPENAI_BASE_URL={url}\n" in said
    assert "export OPENAI_API_KEY=" in said
    assert out == "Stopped. Calls: 1.\n"
    assert len(given_up) == 1


def test_its_options_reach_the_server(tmp_path):
    with serving(tmp_path, "--faults", "429=100%,retry_after=7s", "--api-key", "open sesame") as (_, _, url):
        for key, kind in (("wrong", openai.AuthenticationError), ("open sesame", openai.RateLimitError)):
            with openai.OpenAI(base_url=url, api_key=key, max_retries=0) as api, pytest.raises(kind) as raised:
                api.chat.completions.create(model="any", messages=[{"role": "user", "content": "hello"}])
        assert raised.value.response.headers["retry-after"] == "7"


def test_a_taken_port_is_one_sentence_and_a_remedy(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = subprocess.run([*COMMAND, "--port", port], cwd=tmp_path, text=True, capture_output=True, check=False)
    assert done.returncode == 1
    assert f"cannot listen on port {port}" in done.stderr
    assert "--port" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_text_that_is_no_latency_is_a_usage_error(tmp_path):
    done = subprocess.run([*COMMAND, "--latency", "fast"], cwd=tmp_path, text=True, capture_output=True, check=False)
    assert done.returncode == 2
    assert "'fast' is not a latency" in done.stderr


def test_help_says_what_it_is_not(tmp_path):
    done = subprocess.run([*COMMAND, "--help"], cwd=tmp_path, text=True, capture_output=True, check=True)
    assert "nothing about the quality of any model" in re.sub(r"\s+", " ", done.stdout)
