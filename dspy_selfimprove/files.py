"""Where things are kept, and how they get there whole.

Three places: the project's own `.selfimprove/` (git-ignored; runs, data, Phoenix's database), the user's cache (what
can be built again: the Phoenix environment), and the definitions shipped with the package (`metrics/`, `datasets/`).
A file is written beside its name and moved into place, so a reader or a crash sees the old one or the new one, never
half. Not covered: two processes that write the same name (the later one wins), and network file systems that do not
rename atomically.
"""

from __future__ import annotations

import errno
import os
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import platformdirs

from dspy_selfimprove.errors import SetupError

HOME_NAME = ".selfimprove"


def nearest_home(start: Path | None = None) -> Path:
    """The `.selfimprove/` at or nearest above `start`, else the one `start` would get. Makes nothing."""
    here = (start or Path.cwd()).absolute()
    near = (folder / HOME_NAME for folder in (here, *here.parents))
    return next((folder for folder in near if folder.is_dir()), here / HOME_NAME)


def home(start: Path | None = None) -> Path:
    """The project's `.selfimprove/` (see `nearest_home`), made here with a .gitignore that keeps it out of commits."""
    return private(nearest_home(start))


def private(folder: Path) -> Path:
    """`folder`, made if need be, for prompts and customers' words: its owner's only, and out of every commit."""
    writable(folder)
    if folder.stat().st_mode & 0o077 and folder.stat().st_uid == os.getuid():
        folder.chmod(0o700)
    ignore = folder / ".gitignore"
    if not ignore.exists():
        write_text(ignore, "*\n")
    return folder


def cache() -> Path:
    """The user's cache folder for this product; `DSPY_SELFIMPROVE_CACHE` moves it."""
    chosen = os.environ.get("DSPY_SELFIMPROVE_CACHE")
    return writable(Path(chosen).absolute() if chosen else platformdirs.user_cache_path("dspy-selfimprove"))


def writable(folder: Path) -> Path:
    """`folder`, made if need be; a SetupError that names it if nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"\0" * 4096)  # an empty file can be made on a full disk
    except (FileExistsError, NotADirectoryError):
        raise SetupError(f"{folder} cannot be made: a file is in its place.", remedy="Move that file away.") from None
    except OSError as error:
        raise SetupError(
            f"Cannot write to {folder} ({error.strerror or error}).",
            remedy="Free space or change its permissions, or start from a folder of your own.",
        ) from None
    return folder


_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`; leaving the block without an error moves it into place.

    A link is followed. What the block itself raises passes through, but for a disk that fails.
    """
    path = path.resolve()
    writable(path.parent)
    part = path.with_name(f".{path.name[:100]}.{uuid.uuid4().hex[:8]}.part")
    try:
        yield part
        with telling(path), part.open("rb") as written:
            os.fsync(written.fileno())
        with telling(path):
            part.replace(path)
    except OSError as error:
        if error.errno not in _DISK:
            raise
        raise _cannot_write(path, error) from None
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


@contextmanager
def telling(path: Path) -> Iterator[None]:
    """A disk that fails in the block is one sentence about `path`."""
    try:
        yield
    except OSError as error:
        raise _cannot_write(path, error) from None


def _cannot_write(path: Path, error: OSError) -> SetupError:
    return SetupError(
        f"Cannot write {path} ({error.strerror or error}).", remedy="Free space or change its permissions."
    )


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path`, whole or not at all."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def definitions(kind: str) -> Path:
    """The folder of shipped `metrics` or `datasets`: inside the wheel, or beside the package in a checkout."""
    package = Path(__file__).parent
    for folder in (package / "_bundled" / kind, package.parent / kind):
        if folder.is_dir():
            return folder
    raise SetupError(f"The shipped {kind}/ folder is missing.", remedy="Install dspy-selfimprove again.")
