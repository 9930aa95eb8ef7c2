"""Client of guest/control: one line to a VM's second serial port, one line back, a few milliseconds."""
import os
import socket
import time

from .core import LabError


def ask(machine, *words, timeout=30.0):
    """Sends `VERB ARGS`; returns the words after `ok`. LabError when the VM refuses or stays silent."""
    request = f"{os.getpid()}.{time.monotonic_ns()}"
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(timeout)
            connection.connect(str(machine.control_socket))
            # The leading newline ends whatever half line an interrupted client has left there.
            connection.sendall(f"\n{request} {' '.join(words)}\n".encode())
            return _answer(machine, connection, request)
    except (FileNotFoundError, ConnectionError):
        raise LabError(f"{machine.name} has no running VM (is its power off? see: lab power {machine.name} status)") from None
    except TimeoutError:
        raise LabError(f"{machine.name} did not answer '{' '.join(words)}' within {timeout:.0f} s: it is paused, "
                       "panicked, still booting, or the host is overloaded") from None


def _answer(machine, connection, request):
    deadline = time.monotonic() + (connection.gettimeout() or 0)
    with connection.makefile("r", errors="replace") as stream:
        for line in stream:
            head, _, rest = line.strip().partition(" ")
            if head == request:                        # other lines answer a client that has given up
                verdict, _, text = rest.partition(" ")
                if verdict == "ok":
                    return text
                raise LabError(f"{machine.name}: {text}")
            if time.monotonic() > deadline:
                raise TimeoutError
    raise ConnectionResetError
