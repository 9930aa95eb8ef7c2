"""The command line of deploy/lab/lab."""
import argparse
import os
import shutil
import sys

from . import faults, lifecycle, ssh, vm
from .core import REPO_DIR, Lab, LabError, lab_name

DEFAULT_BIN = REPO_DIR / "build/release/bin"


def _parser():
    parser = argparse.ArgumentParser(prog="lab", description="A soft-RoCE cluster of virtual machines on this host.")
    parser.add_argument("--name", help="which lab (default: $MAINSTAY_LAB, or 'default')")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name, handler, text, machine=False, **keywords):
        command = commands.add_parser(name, help=text, description=text, **keywords)
        command.set_defaults(handler=handler)
        if machine:
            command.add_argument("machine", metavar="NODE", help="n1, n2, ... or c1, ...")
        return command

    up = add("up", _up, "bring a lab up")
    up.add_argument("--nodes", type=int, default=3, metavar="N")
    up.add_argument("--coordinators", type=int, default=1, metavar="M")
    up.add_argument("--bin", metavar="DIR", help=f"where the daemons are (default: {DEFAULT_BIN})")
    up.add_argument("--memory-mib", type=int, default=1536, metavar="MIB", help="of each machine")
    up.add_argument("--vcpus", type=int, metavar="V", help="of each node (default: 2 with KVM, 1 emulated)")
    up.add_argument("--no-services", dest="services", action="store_false", help="start no daemons")
    up.add_argument("--keep", action="store_true", help="leave everything in place when it fails, to look at")

    add("down", _down, "end a lab and remove every trace of it; may be repeated, also ends an up that is at work")
    status = add("status", _status, "show machines and daemons")
    status.add_argument("--json", action="store_true")
    run = add("exec", _exec, "run a command in a machine; one word is a line for its shell", machine=True)
    run.add_argument("words", nargs=argparse.REMAINDER, metavar="CMD")
    console = add("console", _console, "show a machine's serial console", machine=True)
    how = console.add_mutually_exclusive_group()
    how.add_argument("--follow", action="store_true", help="go on showing it")
    how.add_argument("--attach", action="store_true", help="a shell on it; ends with Ctrl-]")
    socket = add("socket", _socket, "print the host's path of a coordinator's socket; without one: of whichever leads")
    socket.add_argument("machine", metavar="COORDINATOR", nargs="?")
    add("leader", _leader, "print which coordinator leads")
    logs = add("logs", _logs, "show the logs of a machine's daemons", machine=True)
    logs.add_argument("--follow", action="store_true")
    add("restart-services", _restart, "give the machines fresh binaries and restart their daemons")
    power = add("power", _power, "power of a machine: a cut, not a shutdown", machine=True)
    power.add_argument("what", choices=("on", "off", "status"))
    power.add_argument("--wait", action="store_true", help="with on: until it has booted")
    add("pause", _on_machine(faults.pause), "stop a machine's CPUs (QEMU stop)", machine=True)
    add("continue", _on_machine(faults.resume), "let a paused machine go on", machine=True)
    add("panic", _on_machine(faults.panic), "panic a machine's kernel", machine=True)
    add("mce", _on_machine(faults.machine_check), "inject a machine check", machine=True)
    cut = add("cut", _cut, "pull a machine's cluster cable", machine=True)
    cut.add_argument("--silent", action="store_true", help="leave the carrier: a switch that drops everything")
    add("heal", _on_machine(faults.heal), "undo cut", machine=True)
    link = add("link", _link, "netem on what a machine sends into the cluster network", machine=True)
    link.add_argument("words", nargs="+", metavar="loss|delay|rate VALUE ... | clear")
    add("wait", _wait, "wait until all machines that are on have booted")
    return parser


def main(arguments):
    options = _parser().parse_args(arguments)
    try:
        if os.geteuid() != 0:
            raise LabError("only root can make network namespaces, bridges and taps; run it through sudo")
        return options.handler(Lab(lab_name(options.name)), options) or 0
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    except lifecycle.Interrupted as interrupt:
        print("lab: interrupted; nothing is left of this lab", file=sys.stderr)
        return 128 + interrupt.args[0]
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read the output has seen enough; Python must not complain about it when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _up(lab, options):
    options.bin_given = options.bin is not None
    options.bin = options.bin or DEFAULT_BIN
    lifecycle.up(lab, options)


def _down(lab, _options):
    print(f"lab '{lab.name}' is down" if lifecycle.down(lab) else f"lab '{lab.name}' was not up")
    left = lifecycle.leftovers(lab)
    if left:
        raise LabError(f"something is left of lab '{lab.name}': {'; '.join(left)}")


def _status(lab, options):
    lifecycle.status(lab, options.json)


def _exec(lab, options):
    words = options.words[1:] if options.words[:1] == ["--"] else options.words
    if not words:
        raise LabError("no command given; for example: lab exec n1 uname -a, or: lab exec n1 sh")
    ssh.replace_process(lab.machine(options.machine), words)


def _console(lab, options):
    machine = lab.machine(options.machine)
    if options.attach:
        if not vm.is_on(machine):
            raise LabError(f"{machine.name} is switched off; switch it on with: lab power {machine.name} on")
        _become("socat", "STDIO,raw,echo=0,escape=0x1d", f"UNIX-CONNECT:{machine.serial_socket}")
    if options.follow:
        _become("tail", "-n", "+1", "-F", machine.console_log)
    with open(machine.console_log, "rb") as log:
        shutil.copyfileobj(log, sys.stdout.buffer)


def _logs(lab, options):
    machine = lab.machine(options.machine)
    logs = sorted(machine.log_dir.glob("*.log"))
    if not logs:
        raise LabError(f"{machine.name} has no logs in {machine.log_dir}: none of its daemons was started (lab status says why)")
    _become("tail", "-n", "+1", *(["-F"] if options.follow else []), *logs)


def _become(*words):
    sys.stdout.flush()
    os.execvp(words[0], [str(word) for word in words])


def _leader(lab, _options):
    print(lifecycle.wait_leader(lab).name)


def _socket(lab, options):
    if not options.machine and lab.etcd():
        print(lifecycle.leader_socket_path(lab))
        return
    options.machine = options.machine or "c1"
    machine = lab.machine(options.machine)
    if machine.is_node:
        raise LabError(f"{machine.name} is a node; only coordinators have a coordinator.sock")
    print(lifecycle.socket_path(machine))


def _restart(lab, _options):
    lifecycle.restart_services(lab)


def _power(lab, options):
    machine = lab.machine(options.machine)
    if options.what == "off":
        print(f"{machine.name}: " + ("off" if vm.power_off(machine) else "was off"))
    elif options.what == "on":
        print(f"{machine.name}: " + ("on" if vm.power_on(machine) else "was on"))
        if options.wait:
            vm.wait_ready([machine])
    else:
        print("on" if vm.is_on(machine) else "off")


def _on_machine(act):
    return lambda lab, options: act(lab.machine(options.machine))


def _cut(lab, options):
    faults.cut(lab.machine(options.machine), silent=options.silent)


def _link(lab, options):
    machine, words = lab.machine(options.machine), options.words
    if words == ["clear"]:
        ssh.run(machine, "tc qdisc del dev eth0 root 2>/dev/null || true")
        return
    if len(words) % 2 or not set(words[::2]) <= {"loss", "delay", "rate"}:
        raise LabError("link takes pairs of: loss PERCENT% | delay TIMEms | rate RATEmbit; or clear. "
                       "Example: lab link n1 loss 1% delay 5ms")
    ssh.run(machine, "tc", "qdisc", "replace", "dev", "eth0", "root", "netem", *words)


def _wait(lab, _options):
    vm.wait_ready([machine for machine in lab.machines() if vm.is_on(machine)])
