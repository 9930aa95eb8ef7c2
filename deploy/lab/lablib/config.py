"""Files a lab gives its VMs: the daemons' configuration (docs/OPERATING.md), addresses, keys, binaries."""
import shutil
from pathlib import Path

from . import proc
from .core import (BMC_PASSWORD, BMC_USER, ETCD_CLIENT_PORT, ETCD_PEER_PORT, FORWARD_PORT, LAB_DIR, RDMA_PORT_COORDINATOR, RDMA_PORT_NODE, REPO_DIR,
                   LabError,
                   write_atomic)

GUEST_FILES = ("init", "inittab", "boot", "control", "services", "clock")
DAEMONS = ("mainstay-keeper", "mainstay-coordinator")

NODE_YAML = """\
cluster: lab
node: {name}
id: {index}
address: {address}
port: {port}
rack: r{index}
coordinators:
{coordinators}
main-storage: /dev/shm/mainstay
memory-mib: {memory}
vcpus: 8
run-dir: /run/mainstay
state-dir: /var/lib/mainstay
events-file: /lab/log/{name}/events.jsonl
cgroup: /sys/fs/cgroup/mainstay
agent: /usr/libexec/mainstay/mainstay-node
exec: /usr/libexec/mainstay/mainstay-exec
qemu: /usr/bin/qemu-system-x86_64
accel: auto
"""

COORDINATOR_YAML = """\
cluster: lab
id: {index}
address: {address}
port: {port}
state-dir: /var/lib/mainstay
events-file: /lab/log/{name}/events.jsonl
run-dir: /run/mainstay
watch-interval-ms: 50
agent-silent-ms: 3000
keeper-silent-ms: 3000
keeper-return-ms: 3000
lease-ms: 10000
node-starts-max: 16
node-starts-window-ms: 60000
nodes:
{nodes}
"""

FENCED_NODE = """\
  - name: {name}
    id: {index}
    address: {address}
    port: {port}
    fence:
      agent: fence_ipmilan
      options: {{ ip: {bmc}, username: {user}, password: {password}, lanplus: "1", cipher: "3", power_wait: "0" }}"""

# Timing for machines that are emulated and share a processor: a member that is late is no member that is dead.
ETCD_HEARTBEAT_MS = 300
ETCD_ELECTION_MS = 3000
STORE_YAML = """\
store:
  etcd:
    endpoints: [{endpoints}]
    lease-ms: 8000
"""

SSHD = """\
ListenAddress {address}
HostKey /lab/config/ssh_host_key
AuthorizedKeysFile /lab/config/authorized_keys
PidFile /run/sshd.pid
PermitRootLogin prohibit-password
StrictModes no
UsePAM no
UseDNS no
PrintMotd no
PrintLastLog no
AcceptEnv *
MaxSessions 200
MaxStartups 100
SetEnv PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
"""


def write_all(lab, kern):
    """Fills the share: everything that stays as it is while the lab is up."""
    for folder in ("config", "guest", "boot", "bin", "log"):
        (lab.share / folder).mkdir(parents=True)
    for name in GUEST_FILES:
        shutil.copy(LAB_DIR / "guest" / name, lab.share / "guest" / name)
    shutil.copy(LAB_DIR / "supervise", lab.share / "guest/supervise")
    _write_keys(lab)
    config = lab.share / "config"
    machines = lab.machines()
    write_atomic(config / "hosts", "127.0.0.1 localhost\n" + "".join(f"{m.address} {m.name}\n" for m in machines))
    for machine in machines:
        machine.log_dir.mkdir()
        write_atomic(config / f"{machine.name}.env", _environment(lab, machine, kern))
        write_atomic(config / f"{machine.name}.sshd", SSHD.format(address=machine.management))
        write_atomic(machine.config_file, _node_yaml(lab, machine) if machine.is_node else _coordinator_yaml(lab, machine))


def _environment(lab, machine, kern):
    values = {
        "ROLE": "node" if machine.is_node else "coordinator",
        "DAEMON": DAEMONS[0] if machine.is_node else DAEMONS[1],
        "CONFIG_NAME": "node.yaml" if machine.is_node else "coordinator.yaml",
        "ADDRESS": machine.address, "MANAGEMENT": machine.management, "FORWARD_PORT": FORWARD_PORT,
        "SERVICES": "yes" if lab.settings["services"] else "no",
        "ETCD": "" if machine.is_node or not lab.etcd() else _etcd_options(lab, machine),
        "KERNEL": kern.version, "MODULES": kern.modules, "REPO": REPO_DIR,
    }
    return "".join(f"{key}='{value}'\n" for key, value in values.items())


def _etcd_options(lab, machine):
    client, peer = (f"http://{machine.address}:{port}" for port in (ETCD_CLIENT_PORT, ETCD_PEER_PORT))
    cluster = ",".join(f"{c.name}=http://{c.address}:{ETCD_PEER_PORT}" for c in lab.coordinators())
    # On the machine's disk: a member that comes back without what it had promised would make a majority out of nothing.
    return (f"--name {machine.name} --data-dir /var/lib/mainstay/etcd --listen-client-urls {client} --advertise-client-urls {client}"
            f" --listen-peer-urls {peer} --initial-advertise-peer-urls {peer} --initial-cluster {cluster}"
            f" --heartbeat-interval {ETCD_HEARTBEAT_MS} --election-timeout {ETCD_ELECTION_MS} --max-txn-ops 512"
            " --auto-compaction-retention 1h --logger zap")


def enable_services(lab):
    """Has machines that were brought up without services start them, from now on and after each power on."""
    lab.save_settings({**lab.settings, "services": True})
    for machine in lab.machines():
        file = lab.share / "config" / f"{machine.name}.env"
        write_atomic(file, file.read_text().replace("SERVICES='no'", "SERVICES='yes'"))


def _node_yaml(lab, machine):
    # Of two, the first only: they share no store, and a node must not obey both.
    known = lab.coordinators() if lab.etcd() else lab.coordinators()[:1]
    coordinators = "\n".join(f"  - {{ address: {c.address}, port: {RDMA_PORT_COORDINATOR} }}" for c in known)
    return NODE_YAML.format(name=machine.name, index=machine.index, address=machine.address, port=RDMA_PORT_NODE,
                            coordinators=coordinators, memory=lab.settings["memory_mib"] // 2)


def _coordinator_yaml(lab, machine):
    nodes = "\n".join(FENCED_NODE.format(name=n.name, index=n.index, address=n.address, port=RDMA_PORT_NODE,
                                         bmc=n.bmc_address, user=BMC_USER, password=BMC_PASSWORD) for n in lab.nodes())
    text = COORDINATOR_YAML.format(name=machine.name, index=machine.index, address=machine.address,
                                   port=RDMA_PORT_COORDINATOR, nodes=nodes)
    if not lab.etcd():
        return text
    own_first = lab.coordinators()[machine.index - 1:] + lab.coordinators()[:machine.index - 1]
    endpoints = ", ".join(f'"http://{c.address}:{ETCD_CLIENT_PORT}"' for c in own_first)
    return text.replace("nodes:\n", STORE_YAML.format(endpoints=endpoints) + "nodes:\n", 1)


def _write_keys(lab):
    """One key for the way in and one for all VMs' sshd, made for this lab and deleted with it."""
    config = lab.share / "config"
    for path in (lab.state / "ssh_key", config / "ssh_host_key"):
        proc.run(lab, ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", f"mainstay-lab-{lab.name}", "-f", path])
    shutil.copy(lab.state / "ssh_key.pub", config / "authorized_keys")
    host_key = (config / "ssh_host_key.pub").read_text()
    write_atomic(lab.state / "known_hosts", f"* {host_key}")


def publish_binaries(lab):
    """Copies the binaries into a new numbered folder of the share; returns the daemons that are missing.

    A new folder, because a VM may have the old files cached or running."""
    source = Path(lab.settings["bin"])
    wanted = sorted(path for path in source.glob("mainstay*") if path.is_file()) if source.is_dir() else []
    if wanted:
        have = [int(path.name) for path in (lab.share / "bin").iterdir() if path.name.isdigit()]
        version = f"{max(have, default=0) + 1:04}"
        folder = lab.share / "bin" / version
        folder.mkdir()
        for path in wanted:
            shutil.copy2(path, folder / path.name)
        write_atomic(lab.share / "bin/current", version + "\n")
    names = {path.name for path in wanted}
    return [daemon for daemon in DAEMONS if daemon not in names]


def check_bin(path, explicit):
    """A folder named on the command line has to exist; the default one may not have been built yet."""
    folder = Path(path).resolve()
    if explicit and not folder.is_dir():
        raise LabError(f"--bin {path}: there is no such folder; build first, for example: cmake --build --preset release")
    return str(folder)
