"""Names, paths and addresses of a lab: everything else asks here and nowhere else."""
import json
import os
import re
import sys
import time
from pathlib import Path

STATE_ROOT = Path("/run/mainstay-lab")
LAB_DIR = Path(__file__).resolve().parent.parent
REPO_DIR = LAB_DIR.parent.parent
MAX_NODES = 50            # BMC addresses are 10.7.0.201 and up, coordinators 10.7.0.101 and up
MAX_COORDINATORS = 9
RDMA_PORT_NODE = 7471
RDMA_PORT_COORDINATOR = 7470
FORWARD_PORT = 7000       # a coordinator VM offers its coordinator.sock here, on the management network
ETCD_CLIENT_PORT = 2379    # on coordinators, when there are three or more
ETCD_PEER_PORT = 2380
BMC_USER = "admin"
BMC_PASSWORD = "admin"


class LabError(Exception):
    """Something the user has to know: what happened, then what to do about it."""


def boot_timeout():
    """Seconds one machine may take to boot: generous, because a loaded host emulates slowly."""
    return float(os.environ.get("MAINSTAY_LAB_TIMEOUT", "180"))


def wait_until(condition, timeout, interval=0.02):
    """Polls condition() until it is true; returns its value, or None when timeout seconds have passed."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() >= deadline:
            return None
        time.sleep(interval)


def write_atomic(path, text, mode=0o644):
    """A reader sees the old file or the new one, never half of one."""
    temporary = Path(f"{path}.new.{os.getpid()}")
    temporary.write_text(text)
    temporary.chmod(mode)
    temporary.rename(path)


class Machine:
    """One VM of the lab: node nI or coordinator cI."""

    def __init__(self, lab, name):
        self.lab = lab
        self.name = name
        self.is_node = name[0] == "n"
        self.index = int(name[1:])
        host = self.index if self.is_node else 100 + self.index
        self.address = f"10.7.0.{host}"
        self.management = f"10.8.0.{host}"
        self.bmc_address = f"10.7.0.{200 + self.index}" if self.is_node else None
        self.mac = f"52:54:00:07:00:{host:02x}"
        self.management_mac = f"52:54:00:08:00:{host:02x}"
        self.guests_mac = f"52:54:00:09:00:{host:02x}"
        self.tap = f"{name}-cluster"
        self.guests_tap = f"{name}-guests" if self.is_node else None
        self.management_tap = f"{name}-mgmt"
        self.dir = lab.state / name
        self.disk = self.dir / "disk.raw"
        self.console_log = self.dir / "console.log"
        self.serial_socket = self.dir / "serial.sock"
        self.control_socket = self.dir / "control.sock"
        self.qmp_socket = self.dir / "qmp.sock"
        self.ssh_socket = self.dir / "ssh.sock"
        self.lock_file = self.dir / "lock"
        self.boot_file = lab.share / "boot" / name
        self.log_dir = lab.share / "log" / name
        self.config_file = lab.share / "config" / f"{name}.yaml"

    def record(self, what):
        """Where the pid of one of this machine's processes on the host is kept: qemu, bmc, ssh, forward."""
        return self.dir / f"{what}.pid"


class Lab:
    """A lab by name, up or not."""

    def __init__(self, name):
        if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,23}", name):
            raise LabError(f"lab name '{name}' is not usable: take 1 to 24 of a-z 0-9 -")
        self.name = name
        self.state = STATE_ROOT / name
        self.share = self.state / "share"
        self.lock_file = STATE_ROOT / f"{name}.lock"
        self.closing_file = self.state / "closing"
        self.settings_file = self.state / "lab.json"
        self.netns = f"mst-{name}"
        self._settings = None

    @property
    def settings(self):
        """What `up` was told and found out; refuses when the lab is not up."""
        if self._settings is None:
            try:
                self._settings = json.loads(self.settings_file.read_text())
            except FileNotFoundError:
                raise LabError(f"lab '{self.name}' is not up; start it with: lab --name {self.name} up") from None
        return self._settings

    def save_settings(self, settings):
        write_atomic(self.settings_file, json.dumps(settings, indent=2) + "\n")
        self._settings = settings

    def nodes(self):
        return [Machine(self, f"n{i}") for i in range(1, self.settings["nodes"] + 1)]

    def coordinators(self):
        return [Machine(self, f"c{i}") for i in range(1, self.settings["coordinators"] + 1)]

    def etcd(self):
        """Whether the coordinators share etcd: one member on each."""
        return self.settings["coordinators"] >= 3

    def machines(self):
        return self.nodes() + self.coordinators()

    def machine(self, name):
        known = self.machines()
        for machine in known:
            if machine.name == name:
                return machine
        raise LabError(f"lab '{self.name}' has no machine '{name}'; it has: {' '.join(m.name for m in known)}")

    def node(self, name):
        machine = self.machine(name)
        if not machine.is_node:
            raise LabError(f"'{name}' is a coordinator; this works on nodes: {' '.join(m.name for m in self.nodes())}")
        return machine


def lab_name(option=None):
    return option or os.environ.get("MAINSTAY_LAB") or "default"


class Stages:
    """Prints what `up` is doing and for how long it has been at it."""

    def __init__(self):
        self.start = time.monotonic()

    def __call__(self, text):
        print(f"[{time.monotonic() - self.start:5.1f} s] {text}", file=sys.stderr, flush=True)
