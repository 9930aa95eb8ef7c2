"""One VM with the QEMU command line of the contract, its console and its monitor. Python standard library only."""
import atexit
import json
import os
import re
import socket
import subprocess
import threading
import time

QEMU = os.environ.get("MAINSTAY_QEMU", "qemu-system-x86_64")
BEAT = re.compile(r"^beat (\d+) t=(\d+\.\d{3}) witness=(ok|BROKEN)(?: page=(\d+) want=(\d+) have=(\d+))?$")


class Failure(Exception):
    pass


def command_line(name, directory, ram, memory_mib, console_fd, kernel, initrd=None, append=None, incoming=False,
                 machine="pc-i440fx-7.2", cpu="max", vcpus=1, accel="tcg", network=None, mac=None):
    """docs/OPERATING.md, "QEMU command line of every VM". network: a -netdev without its id, in place of a node's tap."""
    args = [QEMU, "-name", f"{name},process=mst-{name}", "-nodefaults", "-no-user-config", "-display", "none",
            "-machine", f"{machine},accel={accel},memory-backend=ram,suppress-vmdesc=on,vmport=off,usb=off",
            "-cpu", cpu, "-smp", str(vcpus), "-m", f"size={memory_mib}M",
            "-object", f"memory-backend-file,id=ram,mem-path={ram},share=on,size={memory_mib << 20}",
            "-chardev", f"socket,id=con,fd={console_fd}", "-device", "isa-serial,chardev=con",
            "-device", "pvpanic", "-action", "panic=pause", "-action", "reboot=reset",
            "-chardev", f"socket,id=qmp,path={directory}/qmp.sock,server=on,wait=off",
            "-mon", "chardev=qmp,mode=control",
            "-chardev", f"socket,id=qmp2,path={directory}/qmp-spare.sock,server=on,wait=off",
            "-mon", "chardev=qmp2,mode=control",
            "-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]
    if network:
        args += ["-netdev", f"{network},id=net0", "-device", f"virtio-net-pci,netdev=net0,mac={mac},romfile="]
    args += ["-kernel", kernel]
    if initrd:
        args += ["-initrd", initrd]
    if append:
        args += ["-append", append]
    if incoming:
        args += ["-incoming", "defer"]
    return args


class Console:
    """Collects what the guest prints; several QEMUs may feed one: a VM that moves may go on in mid-line."""

    def __init__(self):
        self.data = b""
        self.changed = threading.Condition()

    def attach(self, sock):
        threading.Thread(target=self._read, args=(sock,), daemon=True).start()

    def _read(self, sock):
        while True:
            try:
                piece = sock.recv(65536)
            except OSError:
                piece = b""
            if not piece:
                return
            with self.changed:
                self.data += piece
                self.changed.notify_all()

    def lines(self):
        return [line.rstrip("\r") for line in self.data.decode("latin-1").split("\n")[:-1]]

    def beats(self):
        """[(number, seconds, broken or None)]"""
        found = [m for m in map(BEAT.match, self.lines()) if m]
        return [(int(m[1]), float(m[2]), m[0] if m[3] == "BROKEN" else None) for m in found]

    def wait(self, condition, what, timeout_s):
        end = time.monotonic() + timeout_s
        with self.changed:
            while not condition(self):
                if not self.changed.wait(end - time.monotonic()) and time.monotonic() >= end:
                    raise Failure(f"no {what} in {timeout_s} s; console ends {self.data[-400:]!r}")

    def wait_beats(self, count, timeout_s=60):
        self.wait(lambda c: len(c.beats()) >= count, f"{count} beats", timeout_s)


class Monitor:
    def __init__(self, path, process):
        end = time.monotonic() + 20
        while True:
            self.sock = socket.socket(socket.AF_UNIX)
            try:
                self.sock.connect(path)
                break
            except OSError:
                self.sock.close()
                if process.poll() is not None or time.monotonic() > end:
                    raise Failure(f"no monitor at {path}, QEMU exit status {process.poll()}") from None
                time.sleep(0.005)
        self.sock.settimeout(60)
        self.stream = self.sock.makefile("r")
        self.events = []
        json.loads(self.stream.readline())
        self.run("qmp_capabilities")

    def _next(self):
        line = self.stream.readline()
        if not line:
            raise Failure("QEMU closed its monitor")
        return json.loads(line)

    def run(self, command, fd=None, **arguments):
        message = json.dumps({"execute": command, "arguments": arguments}).encode()
        if fd is None:
            self.sock.sendall(message)
        else:
            socket.send_fds(self.sock, [message], [fd])
        while True:
            answer = self._next()
            if "event" in answer:
                self.events.append(answer)
            elif "error" in answer:
                raise Failure(f"{command}: {answer['error']['desc']}")
            else:
                return answer["return"]

    def wait_event(self, name, accept=lambda data: True):
        while True:
            for i, event in enumerate(self.events):
                if event["event"] == name and accept(event.get("data", {})):
                    del self.events[:i + 1]
                    return event
            answer = self._next()
            if "event" in answer:
                self.events.append(answer)


class Vm:
    def __init__(self, directory, ram, memory_mib, kernel, console=None, name="guest", **options):
        os.makedirs(directory, exist_ok=True)
        self.console = console or Console()
        ours, theirs = socket.socketpair()
        with theirs, open(f"{directory}/qemu.log", "wb") as log:
            self.process = subprocess.Popen(
                command_line(name, directory, ram, memory_mib, theirs.fileno(), kernel, **options),
                pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        atexit.register(self.process.kill)  # a test that fails leaves no QEMU behind
        self.console.attach(ours)
        self.log = f"{directory}/qemu.log"
        try:
            self.monitor = Monitor(f"{directory}/qmp.sock", self.process)
        except Failure as failure:
            self.process.kill()
            self.process.wait()
            with open(self.log, encoding="utf-8") as log:
                raise Failure(f"{failure}: {log.read()}") from None

    def _prepare_migration(self):
        self.monitor.run("migrate-set-capabilities", capabilities=[
            {"capability": name, "state": True} for name in ("x-ignore-shared", "events")])

    def _wait_migration(self):
        event = self.monitor.wait_event("MIGRATION", lambda d: d["status"] in ("completed", "failed"))
        if event["data"]["status"] != "completed":
            raise Failure("migration failed")

    def stop(self):
        self.monitor.run("stop")

    def cont(self):
        for _ in range(200):
            try:
                return self.monitor.run("cont")
            except Failure as failure:  # for some ms after a save
                if "not finalized" not in str(failure):
                    raise
                time.sleep(0.005)
        raise Failure("cont: migration never finalized")

    def save(self, device):
        """Writes the device state of the stopped VM; its RAM is the RAM file."""
        self._prepare_migration()
        self.monitor.run("migrate-set-parameters", **{"max-bandwidth": 1 << 40})
        fd = os.open(device, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        self.monitor.run("getfd", fd=fd, fdname="state")
        os.close(fd)
        self.monitor.run("migrate", uri="fd:state")
        self._wait_migration()

    def load(self, device):
        self._prepare_migration()
        fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
        self.monitor.run("getfd", fd=fd, fdname="state")
        os.close(fd)
        self.monitor.run("migrate-incoming", uri="fd:state")
        self._wait_migration()

    def cpu_seconds(self):
        with open(f"/proc/{self.process.pid}/stat", encoding="ascii") as stat:
            fields = stat.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def quit(self):
        try:
            self.monitor.run("quit")
            self.process.wait(10)
        except (Failure, OSError, subprocess.TimeoutExpired):
            self.process.kill()
            self.process.wait()
