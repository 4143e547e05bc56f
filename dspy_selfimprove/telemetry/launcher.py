"""The program that becomes the Phoenix server. Phoenix's own Python runs it, so it imports nothing of this package.

It adds three things that Phoenix has no setting for:

- The HTTP port is a socket that was opened, and is listening, before this process began; Phoenix is handed it. So no
  other program can take the port during the seconds of start-up, and whatever answers there is this process.
- gRPC listens on loopback alone (Phoenix binds every interface), on the wished port or, if that is taken, on a free
  one, which is written to a file for whoever asks.
- It ends when the process that started it does, unless by then a given file exists: a start that was interrupted, even
  by SIGKILL, leaves nothing behind. A thread asks who its parent is: the kernel's parent-death signal would fire when
  the *thread* that started us ends, and exists on Linux only.

Not covered: Windows, which has neither inherited sockets by number nor a parent that changes.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

ASK_SECONDS = 0.25
LAST_WORDS_SECONDS = 5.0


def end_with(parent: int, unless: Path | None) -> None:
    """Stop this process soon after `parent` is gone, politely first, then for certain; not if `unless` exists then."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(ASK_SECONDS)
        if unless is not None and unless.exists():
            return
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(LAST_WORDS_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()


def keep_grpc_on_loopback(note: Path) -> None:
    """Make every gRPC server of this process listen on 127.0.0.1, and write the port it got to `note`."""
    import grpc.aio

    make_server = grpc.aio.server

    def loopback_server(*args: Any, **kwargs: Any) -> Any:
        server = make_server(*args, **kwargs)
        listen = server.add_insecure_port

        def listen_on_loopback(address: str) -> int:
            try:
                port = int(listen(f"127.0.0.1:{address.rsplit(':', 1)[1]}"))
            except RuntimeError:
                port = int(listen("127.0.0.1:0"))
            note.write_text(str(port), encoding="ascii")
            return port

        server.add_insecure_port = listen_on_loopback
        return server

    grpc.aio.server = loopback_server


def serve_on(listener: socket.socket) -> None:
    """Make uvicorn serve on `listener` instead of opening a port."""
    import uvicorn

    run = uvicorn.Server.run
    uvicorn.Server.run = lambda server, sockets=None: run(server, sockets=[listener])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--listener", type=int, required=True, help="file descriptor of the listening HTTP socket")
    parser.add_argument("--grpc-note", type=Path, required=True, help="where to write the gRPC port")
    parser.add_argument("--parent", type=int, required=True, help="end when this process does")
    parser.add_argument("--unless", type=Path, help="go on without the parent if this file exists")
    given = parser.parse_args()

    end_with(given.parent, given.unless)
    listener = socket.socket(fileno=given.listener)
    listener.set_inheritable(False)
    serve_on(listener)
    keep_grpc_on_loopback(given.grpc_note)

    from phoenix.server.main import main as phoenix

    sys.argv = ["phoenix", "serve"]
    phoenix()


if __name__ == "__main__":
    main()
