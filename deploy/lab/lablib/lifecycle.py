"""up, down, status, restart-services."""
import concurrent.futures
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys

from . import bmc, cache, config, lock, net, proc, ssh, vm
from .core import FORWARD_PORT, LAB_DIR, MAX_COORDINATORS, MAX_NODES, LabError, Machine, Stages, wait_until

PROGRAMS = ("qemu-system-x86_64 ip nsenter sysctl ss ssh ssh-keygen socat ipmi_sim mkfs.ext4 cpio depmod modprobe busybox"
            " dpkg-deb apt-get rdma sshd").split()


class Interrupted(Exception):
    """SIGINT or SIGTERM came while a lab was being brought up."""


def _interrupt(number, _frame):
    raise Interrupted(number)


def check_host(coordinators):
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    missing = [name for name in (*PROGRAMS, *(["etcd"] if coordinators >= 3 else [])) if not shutil.which(name, path=path)]
    if missing:
        raise LabError(f"not installed: {' '.join(missing)}; install them with: deploy/install lab")
    if not os.path.exists("/dev/net/tun"):
        raise LabError("/dev/net/tun is missing, so there can be no taps; load the module tun, or give the container that device")


def _check_size(options):
    if not 1 <= options.nodes <= MAX_NODES or not 1 <= options.coordinators <= MAX_COORDINATORS:
        raise LabError(f"--nodes has to be 1..{MAX_NODES} and --coordinators 1..{MAX_COORDINATORS}")
    if options.memory_mib < 512:
        raise LabError("--memory-mib has to be at least 512: less does not hold the VM's own files and a guest")


def up(lab, options):
    _check_size(options)
    check_host(options.coordinators)
    stage = Stages()
    with lock.lab_held(lab, "up"):
        if lab.state.exists():
            raise LabError(f"lab '{lab.name}' is up already, or was left half made; end it with: lab --name {lab.name} down")
        # From here on a signal undoes what has been made; a SIGKILL leaves it to `down`.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, _interrupt)
        try:
            _bring_up(lab, options, stage)
        except BaseException as error:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
            if not (options.keep and isinstance(error, LabError)):
                stage("taking down what has been made")
                _take_down(lab)
            raise


def _bring_up(lab, options, stage):
    kern = cache.kernel(stage)
    initramfs = cache.initramfs(kern)
    accel = "kvm" if cache.kvm_works(kern, initramfs, stage, proc.environment(lab)) else "tcg"
    stage(f"preparing lab '{lab.name}': {options.nodes} nodes, {options.coordinators} coordinators, {accel}, kernel {kern.version}")
    _prepare(lab, options, kern, initramfs, accel)
    missing = config.publish_binaries(lab)
    if missing and options.services:
        stage(f"no {' and no '.join(missing)} in {lab.settings['bin']}: the machines come up without; "
              "build, then: lab restart-services")
    net.create(lab)
    stage("starting BMCs and machines")
    for node in lab.nodes():
        bmc.start(node)
    for machine in lab.machines():
        vm.create_disk(machine)
        vm.power_on(machine)
    bmc.wait_listening(lab.nodes())
    for coordinator in lab.coordinators():
        _start_forward(coordinator)
    if lab.etcd():
        _start_leader_forward(lab)
    vm.wait_ready(lab.machines(), lambda machine: (stage(f"{machine.name} is up"), ssh.start_master(machine)))
    for machine in lab.machines():
        ssh.ensure_master(machine)
    stage(f"lab '{lab.name}' is up: {' '.join(m.name for m in lab.machines())}")


def _prepare(lab, options, kern, initramfs, accel):
    lab.state.mkdir(mode=0o700)
    node_vcpus = options.vcpus or (2 if accel == "kvm" else 1)
    lab.save_settings({
        "nodes": options.nodes, "coordinators": options.coordinators, "memory_mib": options.memory_mib,
        "services": options.services, "accel": accel, "node_vcpus": node_vcpus,
        "bin": config.check_bin(options.bin, explicit=options.bin_given),
        "kernel": str(kern.image), "kernel_version": kern.version, "initramfs": str(initramfs)})
    for machine in lab.machines():
        machine.dir.mkdir()
    config.write_all(lab, kern)


def socket_path(coordinator):
    return coordinator.dir / "coordinator.sock"


def _start_forward(coordinator):
    """host socket -> VM's management address -> coordinator.sock: a new chain for each client, so that neither a
    restart of the daemon nor of the VM breaks it."""
    proc.spawn(coordinator.lab, coordinator.record("forward"), coordinator.dir / "forward.log",
               ["socat", f"UNIX-LISTEN:{socket_path(coordinator)},fork,unlink-early",
                f"TCP:{coordinator.management}:{FORWARD_PORT},connect-timeout=5"])


def leader_socket_path(lab):
    return lab.state / "leader.sock"


def _start_leader_forward(lab):
    """host socket -> socket of the coordinator that leads at that moment; a new chain for each client."""
    first = lab.coordinators()[0]
    proc.spawn(lab, first.record("leader-forward"), first.dir / "leader-forward.log",
               ["socat", f"UNIX-LISTEN:{leader_socket_path(lab)},fork,unlink-early", f"EXEC:{LAB_DIR / 'to-leader'} {lab.name}"])


def leader(lab):
    """The coordinator that leads, None when none does: it is the one that answers."""
    program = os.path.join(lab.settings["bin"], "mainstayctl")

    def answers(coordinator):
        try:
            return subprocess.run([program, "--socket", socket_path(coordinator), "--timeout", "2", "node", "list"], timeout=8,
                                  stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0
        except subprocess.TimeoutExpired:
            return False
    coordinators = lab.coordinators()
    with concurrent.futures.ThreadPoolExecutor(len(coordinators)) as pool:
        return next((c for c, good in zip(coordinators, pool.map(answers, coordinators)) if good), None)


def wait_leader(lab, timeout=60):
    found = wait_until(lambda: leader(lab), timeout, interval=0.2)
    if not found:
        raise LabError(f"no coordinator of lab '{lab.name}' leads (not within {timeout:.0f} s)")
    return found


def down(lab):
    with lock.lab_held(lab, "down", stop_up=True):
        was_there = lab.state.exists()
        _take_down(lab)
    return was_there


def _take_down(lab):
    """Removes every trace, whatever state the lab is in: can be interrupted and run again at any point.

    The state folder goes last, because it says what there is to remove."""
    if lab.state.is_dir():
        # From now on nobody switches a machine on (see vm.power_on).
        lab.closing_file.touch()
        for folder in lab.state.iterdir():
            for record in folder.glob("*.pid"):
                proc.kill(record)
            if (folder / "lock").exists():
                vm.power_off(Machine(lab, folder.name))
    proc.sweep(lab)
    net.delete(lab)
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(lab.state)


def restart_services(lab):
    """Gives all machines that are on the newest binaries, at once, and restarts their daemons."""
    missing = config.publish_binaries(lab)
    if len(missing) == len(config.DAEMONS):
        raise LabError(f"no {' and no '.join(missing)} in {lab.settings['bin']}; build first")
    if missing:
        print(f"lab: no {missing[0]} in {lab.settings['bin']}: machines that need it go on without", file=sys.stderr)
    config.enable_services(lab)
    running = [machine for machine in lab.machines() if vm.is_on(machine)]
    for machine in running:
        ssh.ensure_master(machine)
    env = proc.environment(lab)
    jobs = [(m, subprocess.Popen(ssh.command(m, ["sh /lab/guest/services restart"]), stdin=subprocess.DEVNULL, env=env))
            for m in running]
    failed = [machine.name for machine, job in jobs if job.wait() != 0]
    if failed:
        raise LabError(f"the services of {' '.join(failed)} were not restarted; see: lab logs {failed[0]}")


def status(lab, as_json):
    with concurrent.futures.ThreadPoolExecutor(16) as pool:             # a silent machine takes seconds to be so
        rows = list(pool.map(_status_of, lab.machines()))
    if as_json:
        print(json.dumps({"lab": lab.name, **lab.settings, "machines": rows}, indent=2))
        return
    settings = lab.settings
    print(f"lab {lab.name}: {settings['accel']}, kernel {settings['kernel_version']}, state {lab.state}, "
          f"binaries {settings['bin']}")
    print(f"{'MACHINE':8} {'STATE':9} {'ADDRESS':12} {'BMC':12} {'RXE0':8} DAEMONS")
    for row in rows:
        print(f"{row['name']:8} {row['state']:9} {row['address']:12} {row['bmc'] or '-':12} {row['rxe0'] or '-':8} "
              f"{row['daemons']}")


def _status_of(machine):
    row = {"name": machine.name, "state": vm.stage_of(machine), "address": machine.address,
           "management": machine.management, "bmc": machine.bmc_address, "rxe0": None, "daemons": "-", "pids": {}}
    if row["state"] != "ready":
        return row
    answer = vm.answers(machine)
    if answer is None:
        row["state"] = "silent"            # paused, panicked or hung: the power is on, and nobody answers
        return row
    words = dict(word.split("=", 1) for word in answer.split())
    row["rxe0"] = words.pop("rxe0")
    row["pids"] = words
    wanted = ("keeper", "agent") if machine.is_node else ("coordinator", "etcd") if machine.lab.etcd() else ("coordinator",)
    row["daemons"] = " ".join(f"{name}={words.get(name) or _why_absent(machine)}" for name in wanted)
    return row


def _why_absent(machine):
    settings = machine.lab.settings
    daemon = config.DAEMONS[0 if machine.is_node else 1]
    if not settings["services"]:
        return "off(--no-services)"
    return "no-pid-file" if os.path.exists(os.path.join(settings["bin"], daemon)) else "not-built"


def leftovers(lab):
    """What of a lab is still there, in words; empty after a good `down`."""
    found = [f"process {pid}: {command}" for pid, _, command in proc.marked(lab)]
    found += [f"{path} exists" for path in (lab.state, lab.lock_file, f"/run/netns/{lab.netns}") if os.path.exists(path)]
    with open("/proc/self/mountinfo") as mounts:
        found += [f"mount {line.split()[4]}" for line in mounts if lab.netns in line.split()[4] or str(lab.state) in line]
    return found
