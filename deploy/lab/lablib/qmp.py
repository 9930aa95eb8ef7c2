"""One question to a VM's QEMU monitor. The monitor takes one client at a time; others wait in its queue."""
import json
import socket

from .core import LabError


def ask(machine, command, timeout=30.0, **arguments):
    """Runs one QMP command; returns its answer."""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(timeout)
            connection.connect(str(machine.qmp_socket))
            with connection.makefile("rw") as stream:
                stream.readline()                                       # greeting
                _send(stream, {"execute": "qmp_capabilities"})
                return _send(stream, {"execute": command, "arguments": arguments})
    except (FileNotFoundError, ConnectionError):
        raise LabError(f"{machine.name} has no running VM (is its power off? see: lab power {machine.name} status)") from None
    except TimeoutError:
        raise LabError(f"QEMU of {machine.name} did not answer '{command}' within {timeout:.0f} s; "
                       "is the host overloaded?") from None


def _send(stream, request):
    stream.write(json.dumps(request) + "\n")
    stream.flush()
    for line in stream:
        answer = json.loads(line)
        if "error" in answer:
            raise LabError(f"QEMU refused '{request['execute']}': {answer['error']['desc']}")
        if "return" in answer:                                          # everything else is an event
            return answer["return"]
    raise ConnectionError("monitor closed")


def human(machine, line):
    """Runs a command of the human monitor; any text it prints is a complaint."""
    text = ask(machine, "human-monitor-command", **{"command-line": line})
    if text.strip():
        raise LabError(f"QEMU of {machine.name} says to '{line}': {text.strip()}")
