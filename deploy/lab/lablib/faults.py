"""Faults: things done to a VM from outside, or to its processes from inside."""
import os
import re
import socket
import sys

from . import control, net, qmp, vm
from .core import Lab, LabError, lab_name, wait_until, write_atomic

# A corrected memory error in bank 4: "[Hardware Error] ... Bank 4" in the kernel log within check_interval, a second.
MACHINE_CHECK = "mce 0 4 0x9c00004000010092 0 0x12345000 0x8c"
SLOW_LINK = "4mbit"      # a checkpoint of a busy guest takes longer than its interval, and beats still come in time
RUN_DIR = "/run/mainstay"


def pause(machine):
    qmp.ask(machine, "stop")


def resume(machine):
    qmp.ask(machine, "cont")


def panic(machine):
    """Panics the kernel; returns when it has said so on its console."""
    before = machine.console_log.stat().st_size
    control.ask(machine, "sysrq", "c")

    def panicked():
        with open(machine.console_log, "rb") as log:
            log.seek(before)
            return b"Kernel panic" in log.read()
    if not wait_until(panicked, 60, interval=0.01):
        raise LabError(f"{machine.name} was told to panic and did not within 60 s; see: lab console {machine.name}")


def machine_check(machine):
    qmp.human(machine, MACHINE_CHECK)


def cut(machine, silent=False):
    """Pulls the cable of the cluster's network: the NIC loses its carrier. Silent: a switch that drops everything."""
    if silent:
        net.set_port(machine.lab, machine, up=False)
    else:
        qmp.ask(machine, "set_link", name="cluster", up=False)


def heal(machine):
    net.set_port(machine.lab, machine, up=True)
    qmp.ask(machine, "set_link", name="cluster", up=True)


def link_slow(machine):
    """The machine's cable carries to it only a trickle: whoever writes into its memory waits."""
    net.slow_port(machine.lab, machine, SLOW_LINK)


def link_well(machine):
    net.slow_port(machine.lab, machine, None)


def _signal(sig, pid_file, folder=RUN_DIR):
    """A fault that sends a signal to the process of a pid file of the machine."""
    def act(machine, virtual_machine=None):
        control.ask(machine, "signal", sig, f"{folder}/{pid_file.format(vm=virtual_machine)}")
    return act


# kind: (what it works on, how). A coordinator has no agent and no VMs; power and cable it has like a node.
KINDS = {
    "qemu-kill": ("vm", _signal("KILL", "vm/{vm}/qemu.pid")),
    "qemu-stop": ("vm", _signal("STOP", "vm/{vm}/qemu.pid")),
    "agent-kill": ("node", _signal("KILL", "agent.pid")),
    "agent-stop": ("node", _signal("STOP", "agent.pid")),
    "agent-continue": ("node", _signal("CONT", "agent.pid")),
    "keeper-kill": ("node", _signal("KILL", "keeper.pid")),
    "keeper-stop": ("node", _signal("STOP", "keeper.pid")),
    "keeper-continue": ("node", _signal("CONT", "keeper.pid")),
    "coordinator-kill": ("coordinator", _signal("KILL", "coordinator.pid")),
    "coordinator-stop": ("coordinator", _signal("STOP", "coordinator.pid")),
    "coordinator-continue": ("coordinator", _signal("CONT", "coordinator.pid")),
    "etcd-kill": ("coordinator", _signal("KILL", "etcd.pid", "/run/supervise")),
    "etcd-stop": ("coordinator", _signal("STOP", "etcd.pid", "/run/supervise")),
    "etcd-continue": ("coordinator", _signal("CONT", "etcd.pid", "/run/supervise")),
    "machine-check": ("node", machine_check),
    "panic": ("any", panic),
    "power-off": ("any", vm.power_off),
    "power-on": ("any", vm.power_on),
    "cut": ("any", cut),
    "heal": ("any", heal),
    "link-slow": ("any", link_slow),
    "link-well": ("any", link_well),
}


def _coordinator(lab, kind, name):
    """A coordinator by its name, or "leader": who leads now. For "continue": whom the last "stop" of "leader" struck."""
    struck = lab.state / f"struck-{kind.rpartition('-')[0]}"
    if name != "leader":
        return lab.machine(name)
    if kind.endswith("-continue"):
        try:
            return lab.machine(struck.read_text().strip())
        except FileNotFoundError:
            raise LabError(f"nobody was struck as 'leader' before, so there is nobody for {kind}") from None
    from . import lifecycle    # late: other faults are injected sooner without it
    machine = lifecycle.wait_leader(lab)
    write_atomic(struck, machine.name + "\n")
    return machine


def inject(lab, kind, name, virtual_machine=None):
    target, act = KINDS[kind]
    machine = _coordinator(lab, kind, name) if target == "coordinator" else lab.machine(name)
    if target != "any" and machine.is_node == (target == "coordinator"):
        raise LabError(f"'{kind}' works on a {'coordinator' if target == 'coordinator' else 'node'}, and {name} is none")
    if target == "vm":
        if not re.fullmatch(r"[a-z0-9-]{1,63}", virtual_machine):
            raise LabError(f"'{virtual_machine}' is no name of a VM (1 to 63 of a-z 0-9 -)")
        act(machine, virtual_machine)
    else:
        act(machine)


def inject_main(arguments):
    """Exit status 0: the fault has been injected; 1: it has not, and why; 2: wrong usage."""
    kind = arguments[0] if arguments else None
    wanted = 3 if kind in KINDS and KINDS[kind][0] == "vm" else 2
    if kind not in KINDS or len(arguments) != wanted:
        print("usage: inject KIND NODE [VM]   (env MAINSTAY_LAB names the lab)\n"
              "  with a VM:  qemu-kill qemu-stop\n"
              f"  without:    {' '.join(k for k, v in KINDS.items() if v[0] != 'vm')}", file=sys.stderr)
        return 2
    if os.geteuid() != 0:
        print("inject: only root can; run it through sudo", file=sys.stderr)
        return 1
    try:
        inject(Lab(lab_name()), *arguments)
    except (LabError, OSError, socket.error) as error:
        print(f"inject: {kind} {arguments[1]}: {error}", file=sys.stderr)
        return 1
    return 0
