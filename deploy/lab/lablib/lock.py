"""Locks on files. The kernel drops them with their holder, however it died."""
import contextlib
import fcntl
import os
import signal
import time
from pathlib import Path

from . import proc
from .core import LabError


def _open_and_lock(path, blocking):
    """Descriptor of the locked file, or None when somebody else has it."""
    while True:
        try:
            Path(path).parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            continue                  # the last lab's `down` removed the folder in between
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if blocking else fcntl.LOCK_NB))
        except BlockingIOError:
            os.close(descriptor)
            return None
        # The former holder may have removed the file: then this lock is on nothing.
        try:
            if os.fstat(descriptor).st_ino == os.stat(path).st_ino:
                return descriptor
        except FileNotFoundError:
            pass
        os.close(descriptor)


@contextlib.contextmanager
def held(path):
    """Waits for the lock and holds it."""
    descriptor = _open_and_lock(path, blocking=True)
    try:
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def lab_held(lab, purpose, stop_up=False):
    """Holds a whole lab for `up` or `down`. With stop_up an `up` that is still at work is told to give up."""
    descriptor = _open_and_lock(lab.lock_file, blocking=False)
    if descriptor is None and not stop_up:
        raise LabError(f"another 'lab up' or 'lab down' is at work on lab '{lab.name}' (see {lab.lock_file}); wait for it")
    deadline, force_at = time.monotonic() + 180, time.monotonic() + 90
    while descriptor is None:
        _signal_up(lab, signal.SIGKILL if time.monotonic() > force_at else signal.SIGTERM)
        if time.monotonic() > deadline:
            raise LabError(f"somebody holds {lab.lock_file} and does not end; its pid is in that file")
        time.sleep(0.2)
        descriptor = _open_and_lock(lab.lock_file, blocking=False)
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()} {proc.start_time(os.getpid())} {purpose}\n".encode(), 0)
        yield
    finally:
        if not lab.state.exists():
            lab.lock_file.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                lab.lock_file.parent.rmdir()       # goes when this was the last lab
        os.close(descriptor)


def _signal_up(lab, sig):
    """Ends the `up` that holds the lab; a `down` that holds it is left to finish."""
    try:
        pid, start, purpose = lab.lock_file.read_text().split()
    except (FileNotFoundError, ValueError):
        return
    if purpose == "up" and proc.start_time(pid) == start:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), sig)
