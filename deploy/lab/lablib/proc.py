"""Processes of a lab: started so that they can always be found again, ended so that nobody else's ever is.

Each long-lived process writes `PID STARTTIME` into its record before it becomes the real program (exec keeps both),
so there is no moment in which it runs and is not on record. A pid that was used again has another start time.
Every process also carries MAINSTAY_LAB_STATE in its environment; `sweep` finds by it what no record names, such as
a helper command of an `up` that was killed."""
import os
import select
import signal
import subprocess
import time
from pathlib import Path

from .core import LabError

MARKER = "MAINSTAY_LAB_STATE"

# Field 22 of /proc/PID/stat is the start time; 20th word after the command's closing parenthesis.
RECORD_AND_EXEC = r"""
record=$1; shift
read -r line </proc/self/stat
i=0
for word in ${line##*) }; do i=$((i + 1)); [ $i = 20 ] && break; done
printf '%s %s\n' "$$" "$word" >"$record.new" && mv "$record.new" "$record" && exec "$@"
"""


def environment(lab):
    """What processes of the lab run with: little, and the same whoever started them (a user, cron, a BMC)."""
    kept = {k: v for k, v in os.environ.items() if k in ("HOME", "MAINSTAY_CACHE", "MAINSTAY_LAB_TIMEOUT", "TERM")}
    return {**kept, "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8",
            "MAINSTAY_LAB": lab.name, MARKER: str(lab.state)}


def start_time(pid):
    """Start time of a living process as a string; None when there is none or it is a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else fields[19]


def read_record(record):
    """(pid, start time) of a process that is alive, or None."""
    try:
        pid, start = Path(record).read_text().split()
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return (int(pid), start) if start_time(pid) == start else None


def alive(record):
    return read_record(record) is not None


def in_netns(lab):
    return ["nsenter", f"--net=/run/netns/{lab.netns}"]


def spawn(lab, record, log, command):
    """Starts a long-lived process inside the lab's network namespace; returns when it is on record."""
    with open(log, "ab") as out:
        child = subprocess.Popen(
            ["/bin/sh", "-c", RECORD_AND_EXEC, "sh", str(record), *in_netns(lab), *map(str, command)],
            stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
            env=environment(lab), start_new_session=True, cwd="/")
    deadline = time.monotonic() + 30
    while not _record_is(record, child.pid):
        if child.poll() is not None:
            raise LabError(f"{command[0]} did not start (exit status {child.returncode}); see {log}")
        if time.monotonic() > deadline:
            child.kill()
            raise LabError(f"{command[0]} was not on record in {record} after 30 s; is the host overloaded?")
        time.sleep(0.002)
    return child


def _record_is(record, pid):
    try:
        return int(Path(record).read_text().split()[0]) == pid
    except (FileNotFoundError, ValueError, IndexError):
        return False


def run(lab, command, check=True, netns=False, stdin=None):
    """Runs a short command to its end; with check, a failure is a LabError that quotes its output."""
    command = [*(in_netns(lab) if netns else []), *map(str, command)]
    done = subprocess.run(command, input=stdin, stdin=None if stdin is not None else subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment(lab))
    if check and done.returncode != 0:
        raise LabError(f"'{' '.join(command)}' failed with status {done.returncode}: {done.stdout.strip()}")
    return done


def kill(record, sig=signal.SIGKILL, timeout=30.0):
    """Ends the process on record and waits until it is gone. True when there was one."""
    found = read_record(record)
    if found is None:
        return False
    _kill_exactly(*found, sig, timeout)
    return True


def _kill_exactly(pid, start, sig, timeout):
    # The descriptor pins the process: checked after opening it, the pid cannot have been used again.
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if start_time(pid) != start:
            return
        signal.pidfd_send_signal(descriptor, sig)
        poller = select.poll()
        poller.register(descriptor, select.POLLIN)
        if not poller.poll(timeout * 1000):
            raise LabError(f"process {pid} is still there {timeout:.0f} s after signal {sig}; look at /proc/{pid}/stack")
    except ProcessLookupError:
        pass
    finally:
        os.close(descriptor)


def _own_family():
    """This process and its ancestors: never swept, even when a BMC's script led here."""
    family, pid = set(), os.getpid()
    while pid > 1:
        family.add(pid)
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[1])
        except FileNotFoundError:
            break
    return family


def marked(lab):
    """[(pid, start time, command)] of all processes that carry this lab's marker."""
    wanted, family, found = f"{MARKER}={lab.state}".encode(), _own_family(), []
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) in family:
            continue
        try:
            start = start_time(entry)
            if start and wanted in Path(f"/proc/{entry}/environ").read_bytes().split(b"\0"):
                command = Path(f"/proc/{entry}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                found.append((int(entry), start, command.strip()))
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    return found


def sweep(lab):
    """Kills what carries the marker until nothing does; children started meanwhile carry it as well."""
    deadline = time.monotonic() + 60
    while found := marked(lab):
        for pid, start, _ in found:
            _kill_exactly(pid, start, signal.SIGKILL, 30.0)
        if time.monotonic() > deadline:
            raise LabError(f"processes of lab '{lab.name}' keep appearing: {found}")
