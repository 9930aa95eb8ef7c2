"""The network of a lab: three bridges in a network namespace of its own, one tap per VM on each (guests': per node), the BMCs' addresses."""
import contextlib
import subprocess
from pathlib import Path

from . import proc
from .core import LabError

CLUSTER_BRIDGE = "cluster"
MANAGEMENT_BRIDGE = "management"
GUESTS_BRIDGE = "guests"      # one network for the VMs of all nodes, and whoever is to reach them
CLUSTER_MTU = 9000            # rxe then has a path MTU of 4096, 7 times the bandwidth of Ethernet's 1500


def create(lab):
    try:
        proc.run(lab, ["ip", "netns", "add", lab.netns])
        proc.run(lab, ["ip", "-n", lab.netns, "-batch", "-"], stdin="\n".join(_batch(lab)) + "\n")
        # The bridges and taps have nothing to say in IPv6; it would only be noise on the cluster's network.
        proc.run(lab, ["sysctl", "-q", "net.ipv6.conf.all.disable_ipv6=1"], netns=True, check=False)
    except LabError as error:
        raise LabError(f"this host does not let us make a network namespace with a bridge and taps: {error}; "
                       "run as root of the machine, with /dev/net/tun, or in a container with NET_ADMIN and SYS_ADMIN") from None


def _batch(lab):
    yield "link set lo up"
    for bridge, mtu, address in ((CLUSTER_BRIDGE, CLUSTER_MTU, "10.7.0.254/24"), (MANAGEMENT_BRIDGE, 1500, "10.8.0.254/24"),
                                 (GUESTS_BRIDGE, 1500, "10.9.0.254/24")):
        yield f"link add {bridge} type bridge stp_state 0 forward_delay 0 mcast_snooping 0"
        yield f"address add {address} dev {bridge}"
        for machine in lab.machines():
            tap = {CLUSTER_BRIDGE: machine.tap, MANAGEMENT_BRIDGE: machine.management_tap, GUESTS_BRIDGE: machine.guests_tap}[bridge]
            if tap is None:
                continue
            yield f"tuntap add dev {tap} mode tap"
            yield f"link set {tap} mtu {mtu} master {bridge} up"
        yield f"link set {bridge} mtu {mtu} up"
    for node in lab.nodes():
        yield f"address add {node.bmc_address}/24 dev {CLUSTER_BRIDGE}"


def set_port(lab, machine, up):
    """The switch's side of the machine's cluster link: when down, frames vanish and the machine's NIC sees no fault."""
    proc.run(lab, ["ip", "-n", lab.netns, "link", "set", machine.tap, "up" if up else "down"])


def slow_port(lab, machine, rate):
    """What the switch sends to the machine goes at this rate at most, through a queue that is full after 2 MB; None: as fast as it may."""
    if rate:
        proc.run(lab, ["tc", "-n", lab.netns, "qdisc", "replace", "dev", machine.tap, "root", "tbf", "rate", rate, "burst", "64kb", "limit", "2mb"])
    else:
        proc.run(lab, ["tc", "-n", lab.netns, "qdisc", "del", "dev", machine.tap, "root"], check=False)


def delete(lab):
    path = Path("/run/netns") / lab.netns
    if not path.exists():
        return
    subprocess.run(["ip", "netns", "delete", lab.netns], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    if path.exists():                                  # made half: a file on which nothing is mounted
        subprocess.run(["umount", "-l", path], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
