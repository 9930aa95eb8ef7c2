"""The VMs: QEMU's arguments, power, and whether a VM has booted."""
import signal
import socket

from . import control, lock, proc
from .core import REPO_DIR, LabError, boot_timeout, wait_until

DISK_BYTES = 512 << 20


def create_disk(machine):
    with open(machine.disk, "wb") as file:
        file.truncate(DISK_BYTES)
    proc.run(machine.lab, ["mkfs.ext4", "-q", "-F", "-m", "0", "-L", "mainstay", machine.disk])


def _qemu(machine):
    settings = machine.lab.settings
    kvm = settings["accel"] == "kvm"
    append = f"console=ttyS0 quiet loglevel=4 panic=0 net.ifnames=0 mitigations=off mainstay_lab.node={machine.name}"
    if not kvm:
        # The kernel takes the TSC of an emulated machine that waited for its host for broken, and then asks QEMU for the time at every look. Huge pages
        # are nothing to TCG; a machine full of load stood still for a minute with khugepaged on its CPU (whether for that was not found out).
        append += " tsc=nowatchdog transparent_hugepage=never"
    return [
        "qemu-system-x86_64", "-name", f"{machine.lab.netns}-{machine.name},debug-threads=on", "-nodefaults", "-no-user-config", "-display", "none",
        # All of its memory at once: on a host that is a virtual machine itself a fault can take long, and the machine stands still meanwhile.
        "-object", f"memory-backend-ram,id=ram,size={settings['memory_mib']}M,prealloc=on",
        "-machine", "pc,usb=off,vmport=off,memory-backend=ram", "-m", f"{settings['memory_mib']}M",
        "-smp", str(settings["node_vcpus"] if machine.is_node else 1),
        *(["-accel", "kvm", "-cpu", "host"] if kvm else ["-accel", "tcg,thread=multi,tb-size=256", "-cpu", "max"]),
        "-rtc", "base=utc,clock=host",
        "-kernel", settings["kernel"], "-initrd", settings["initramfs"], "-append", append,
        # ttyS0: the console, also kept as a log. ttyS1: guest/control.
        "-chardev", f"socket,id=console,path={machine.serial_socket},server=on,wait=off,logfile={machine.console_log},logappend=on",
        "-chardev", f"socket,id=control,path={machine.control_socket},server=on,wait=off",
        "-serial", "chardev:console", "-serial", "chardev:control",
        "-chardev", f"socket,id=qmp,path={machine.qmp_socket},server=on,wait=off", "-mon", "chardev=qmp,mode=control",
        # In this order the kernel calls them eth0, eth1 and eth2.
        "-netdev", f"tap,id=cluster,ifname={machine.tap},script=no,downscript=no",
        "-device", f"virtio-net-pci,netdev=cluster,mac={machine.mac},host_mtu=9000,romfile=",
        "-netdev", f"tap,id=management,ifname={machine.management_tap},script=no,downscript=no",
        "-device", f"virtio-net-pci,netdev=management,mac={machine.management_mac},romfile=",
        # eth2 of nodes: the port of their bridge mainstay0, which the guests' taps are in.
        *(["-netdev", f"tap,id=guests,ifname={machine.guests_tap},script=no,downscript=no",
           "-device", f"virtio-net-pci,netdev=guests,mac={machine.guests_mac},romfile="] if machine.is_node else []),
        "-fsdev", "local,id=root,path=/,readonly=on,security_model=none,multidevs=remap",
        "-device", "virtio-9p-pci,fsdev=root,mount_tag=root",
        "-fsdev", f"local,id=lab,path={machine.lab.share},security_model=none,multidevs=remap",
        "-device", "virtio-9p-pci,fsdev=lab,mount_tag=lab",
        # The repository once more, without a cache: a test that was built again is seen at once.
        "-fsdev", f"local,id=repo,path={REPO_DIR},readonly=on,security_model=none,multidevs=remap",
        "-device", "virtio-9p-pci,fsdev=repo,mount_tag=repo",
        "-drive", f"file={machine.disk},if=none,id=disk,format=raw,cache=writeback,discard=unmap",
        "-device", "virtio-blk-pci,drive=disk", "-device", "virtio-rng-pci",
    ]


def is_on(machine):
    return proc.alive(machine.record("qemu"))


def power_on(machine):
    """Starts the VM's QEMU; the VM boots from then on. False when it was on."""
    with lock.held(machine.lock_file):
        # A BMC may be asked to switch on while `down` is at work: whoever has the lock after it sees the mark.
        if machine.lab.closing_file.exists():
            raise LabError(f"lab '{machine.lab.name}' is going down; {machine.name} stays off")
        if is_on(machine):
            return False
        machine.boot_file.unlink(missing_ok=True)
        proc.spawn(machine.lab, machine.record("qemu"), machine.dir / "qemu.log", _qemu(machine))
        return True


def power_off(machine):
    """Ends the VM as a power cut would: at once, with nothing said to it. Returns when it is gone."""
    with lock.held(machine.lock_file):
        was_on = proc.kill(machine.record("qemu"))
        # The ssh connection would only find out by its time-out.
        proc.kill(machine.record("ssh"), signal.SIGKILL)
        return was_on


def stage_of(machine):
    """How far the VM has come: off, starting, or what guest/boot wrote last (booting, ready, failed: ...)."""
    if not is_on(machine):
        return "off"
    try:
        return machine.boot_file.read_text().rpartition(" ")[0] or "starting"
    except FileNotFoundError:
        return "starting"


def wait_ready(machines, on_ready=lambda machine: None):
    """Waits until all have booted; calls on_ready for each as it comes up."""
    waiting = list(machines)

    def all_up():
        for machine in list(waiting):
            stage = stage_of(machine)
            if stage == "ready":
                waiting.remove(machine)
                on_ready(machine)
            elif stage == "off" or stage.startswith("failed"):
                raise LabError(f"{machine.name} did not boot ({stage}):\n{console_tail(machine)}")
        return not waiting

    timeout = boot_timeout()
    if not wait_until(all_up, timeout, interval=0.05):
        name = waiting[0].name
        raise LabError(f"{' '.join(m.name for m in waiting)} not up after {timeout:.0f} s (is the host overloaded? "
                       f"MAINSTAY_LAB_TIMEOUT raises it); {name} is '{stage_of(waiting[0])}':\n{console_tail(waiting[0])}")


def console_tail(machine, lines=15):
    """The last lines of the console, and of QEMU's own complaints when there was no console."""
    for file in (machine.console_log, machine.dir / "qemu.log"):
        try:
            text = file.read_bytes().decode(errors="replace").strip()
        except FileNotFoundError:
            continue
        if text:
            return "\n".join("  | " + line for line in text.splitlines()[-lines:])
    return "  | (nothing on its console)"


def answers(machine):
    """What the VM's control line says about it, or None when it does not answer."""
    try:
        return control.ask(machine, "status", timeout=5.0)
    except (LabError, socket.error):
        return None
