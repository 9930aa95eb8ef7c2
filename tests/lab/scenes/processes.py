"""Scenarios of QEMUs, guests and agents."""
import re
import time

from lab import need, witness
from scene import AGENT_SILENT_S, scenario


def pid_of_qemu(lab, node, name):
    return lab.exec(node, "cat", f"/run/mainstay/vm/{name}/qemu.pid").stdout.strip()


@scenario("qemu-stopped", "2")
def qemu_stopped(scene):
    """QEMU is stopped: its monitor falls silent, it is killed, and the VM resumed from its checkpoint."""
    pid = pid_of_qemu(scene.lab, "n1", "sc-1")
    scene.lab.inject("qemu-stop", "n1", "sc-1")
    scene.check("the VM is recovered", scene.recovered, "sc-1")
    scene.check("with its memory", scene.kept, "sc-1")

    def ended():
        done = scene.lab.exec("n1", f"[ -e /proc/{pid} ] && echo lives || echo ended")
        need(done.stdout.strip() == "ended", f"the stopped QEMU, process {pid}, is still there")
    scene.check("the stopped QEMU is gone", ended)

    def one():
        kinds = [row["report"]["kind"] for row in scene.faults() if row.get("recovery_id")]
        need(kinds == ["vm_silent"] and len(scene.recoveries()) == 1, f"{kinds}, {len(scene.recoveries())} recoveries")
        scene.no_fence()
    scene.check("one fault, one recovery, no node fenced", one)
    scene.check("the other VM has not noticed", scene.untouched, "sc-2")


@scenario("agent-paused", "4")
def agent_paused(scene):
    """The agent is stopped for half, one, two and ten times agent-silent-ms and goes on: it is restarted or not, and its VMs run on."""
    lab = scene.lab
    scene.later(lab.inject, "agent-continue", "n1", check=False)
    for times in (0.5, 1, 2, 10):
        lab.inject("agent-stop", "n1")
        time.sleep(times * AGENT_SILENT_S)
        lab.inject("agent-continue", "n1", check=False)    # of one that was killed meanwhile nothing is left to go on

        def as_before():
            lab.wait_nodes("n1", seconds=60)
            scene.untouched()
            lab.wait("checkpoints go on", 60, lambda seq=lab.vm("sc-1")["save_seq"]: lab.vm("sc-1").get("save_seq") != seq)
        scene.check(f"after {times * AGENT_SILENT_S:.1f} s: same grants, beats and checkpoints go on", as_before)

    def restarts_only():
        scene.no_recovery_of_vms()
        scene.no_fence()
        return f"{len(scene.faults('agent_silent'))} times called silent"
    scene.check("nothing but agents was recovered, nobody fenced", restarts_only)
    lab.ctl("node", "drain", "n1", "--undo")               # the restarts do not count for what comes next


@scenario("agent-oom", "14 3")
def agent_oom(scene):
    """The kernel kills the agent for memory: its VMs run on under the same grants, and the next agent takes them up."""
    lab, group = scene.lab, "/sys/fs/cgroup/mainstay"
    before = lab.pids()[("n1", "agent")]
    scene.later(lab.exec, "n1", f"echo max >{group}/agent/memory.max; echo -memory >{group}/cgroup.subtree_control; true")
    lab.exec("n1", f"echo +memory >{group}/cgroup.subtree_control && echo 0 >{group}/agent/memory.max")
    try:
        scene.check("the kernel kills it", lab.wait, "the agent is killed for memory", 60,
                    lambda: re.search(rf"Killed process {before} \S+", lab.exec("n1", "dmesg").stdout) is not None)
    finally:
        lab.exec("n1", f"echo max >{group}/agent/memory.max")

    def taken_up():
        lab.wait("there is another agent", 60, lambda: lab.pids().get(("n1", "agent")) not in (None, before))
        lab.wait_nodes("n1")
        scene.untouched()
        scene.no_recovery_of_vms()
        scene.no_fence()
    scene.check("its successor has the VMs, under the same grants", taken_up)


@scenario("guest-panic", "5 15")
def guest_panic(scene):
    """A guest that panics is a fault of its VM alone; one that panics again and again is held."""
    lab, name = scene.lab, "sc-panic"
    scene.later(lab.remove, name)
    lab.define(name, witness(name, append="pages=32 interval_ms=100 panic_at=40", protect="none", on_vm_fault="restart", restarts_max=2))
    lab.ctl("vm", "start", name, "--node", "n1")

    def held():
        row = lab.wait("the VM is held", 240, lambda: lab.vm(name).get("state") == "held" and lab.vm(name))
        need("recovered 2 times" in row.get("text", ""), f"held for another reason: {row.get('text')}")
        kinds = [fault["report"]["kind"] for fault in scene.faults()]
        need(kinds and set(kinds) == {"vm_panicked"}, f"faults: {kinds}")
        return f"{len(kinds)} panics, {row['text']}"
    scene.check("it is restarted, and held when that does not help", held)
    scene.check("nobody was fenced", scene.no_fence)
    scene.check("the other VMs have not noticed", scene.untouched)
