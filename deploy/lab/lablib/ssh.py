"""Commands in a VM over one standing ssh connection per VM, so that each costs a session and no handshake."""
import contextlib
import os
import shlex
import socket
import subprocess
import sys

from . import lock, proc, vm
from .core import LabError, boot_timeout, wait_until


def _options(machine):
    state = machine.lab.state
    return ["ssh", "-F", "none", "-S", str(machine.ssh_socket), "-i", str(state / "ssh_key"),
            "-o", "IdentitiesOnly=yes", "-o", f"UserKnownHostsFile={state}/known_hosts", "-o", "BatchMode=yes",
            "-o", "LogLevel=ERROR", "-o", "KexAlgorithms=curve25519-sha256", "-l", "root"]


def start_master(machine):
    """Starts the connection in the background; it is usable when connected() says so."""
    with contextlib.suppress(FileNotFoundError):
        machine.ssh_socket.unlink()
    command = _options(machine) + ["-M", "-N", "-o", "ConnectTimeout=60", "-o", "ServerAliveInterval=10",
                                   "-o", "ServerAliveCountMax=6", machine.management]
    return proc.spawn(machine.lab, machine.record("ssh"), machine.dir / "ssh.log", command)


def connected(machine):
    if not proc.alive(machine.record("ssh")):
        return False
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.connect(str(machine.ssh_socket))
            return True
    except (FileNotFoundError, ConnectionError):
        return False


def ensure_master(machine):
    """Has the connection standing; waits for the VM to boot if it must."""
    if connected(machine):
        return
    if not vm.is_on(machine):
        raise LabError(f"{machine.name} is switched off; switch it on with: lab power {machine.name} on")
    vm.wait_ready([machine])
    with lock.held(machine.dir / "ssh.lock"):
        def up():
            if not proc.alive(machine.record("ssh")):
                start_master(machine)
            return connected(machine)
        if not wait_until(up, boot_timeout(), interval=0.1):
            raise LabError(f"no ssh connection to {machine.name} ({machine.management}); see {machine.dir}/ssh.log")


def command(machine, words, tty=False):
    """The ssh command line. One word is a line for the VM's shell; several are a program and its arguments."""
    line = words[0] if len(words) == 1 else shlex.join(words)
    # Without the standing connection the client would try to connect by itself, outside the lab's network.
    return [*_options(machine), "-o", "ProxyCommand=false", *(["-t"] if tty else ["-T"]), machine.management, line]


def replace_process(machine, words):
    """Becomes the command in the VM: its input, output and exit status are this process's."""
    ensure_master(machine)
    line = command(machine, words, tty=sys.stdin.isatty() and sys.stdout.isatty())
    os.execvpe(line[0], line, proc.environment(machine.lab))


def run(machine, *words, check=True):
    """Runs a command in the VM; returns its output."""
    ensure_master(machine)
    done = subprocess.run(command(machine, words), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, env=proc.environment(machine.lab))
    if check and done.returncode != 0:
        raise LabError(f"in {machine.name}, '{' '.join(words)}' ended with status {done.returncode}: {done.stdout.strip()}")
    return done.stdout
