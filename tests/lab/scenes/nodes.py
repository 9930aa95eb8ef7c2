"""Scenarios of nodes, their keepers and their clocks."""
import re
import time

from lab import need
from scene import LEASE_S, NODES, scenario


@scenario("mutual-reports", "12")
def mutual_reports(scene):
    """Two nodes that cannot see each other are each reported dead, five times: the coordinator sees both, and nobody is fenced."""
    lab = scene.lab
    for node, other in (("n1", "10.7.0.2"), ("n2", "10.7.0.1")):
        scene.later(lab.exec, node, f"ip route del blackhole {other}/32 2>/dev/null; true")
        lab.exec(node, "ip", "route", "replace", "blackhole", f"{other}/32")
    for _ in range(5):
        for node, other in (("n1", "n2"), ("n2", "n1")):
            lab.ctl("fault", "report", "--node", node, "--kind", "node-unreachable", "--text", f"{other} cannot see it")
        time.sleep(1)
    time.sleep(2 * LEASE_S)                                # nothing is to happen

    def no_effect():
        need(not lab.exec("n1", "busybox ping -c 1 -W 1 10.7.0.2", check=False).stdout.count(" 0% packet loss"), "n1 reaches n2")
        need(len(scene.faults("node_unreachable")) == 10, f"{len(scene.faults('node_unreachable'))} reports are on record")
        need(not scene.recoveries(), f"{len(scene.recoveries())} recoveries")
        scene.no_fence()
    scene.check("ten reports are on record, and nothing came of them", no_effect)
    scene.check("VMs run on", scene.untouched)


@scenario("all-power-lost", "13", sc1="n1", sc2="n2", sc3="n3")
def all_power_lost(scene):
    """All machines lose their power and boot: each VM runs once, under a newer epoch."""
    lab, machines = scene.lab, (*NODES, "c1")
    for machine in machines:
        scene.later(lab.lab, "power", machine, "on")
    for machine in machines:
        lab.lab("power", machine, "off")
    for machine in machines:
        lab.lab("power", machine, "on")
    lab.lab("wait")
    lab.wait("the coordinator answers", 180, lambda: lab.ctl("status", check=False).returncode == 0)
    for name in scene.homes:
        scene.check(f"{name} runs again", scene.recovered, name, 300)


@scenario("crash-loop", "15")
def crash_loop(scene):
    """The keeper of a node dies again and again: after node-starts-max starts its node gets no VMs, until the operator says so."""
    lab, limit = scene.lab, 4
    config = lab.share / "config/c1.yaml"
    plain = config.read_text()
    changed = re.sub(r"(?m)^node-starts-max: .*$", f"node-starts-max: {limit}", plain)
    changed = re.sub(r"(?m)^node-starts-window-ms: .*$", "node-starts-window-ms: 600000", changed)
    need(changed != plain, "c1.yaml has no node-starts-max")

    def configured(text):
        config.write_text(text)
        lab.inject("coordinator-kill", "c1")
        lab.wait("the coordinator answers", 60, lambda: lab.ctl("status", check=False).returncode == 0)
        lab.wait_nodes(*NODES, seconds=120)
    scene.later(lab.ctl, "node", "drain", "n1", "--undo")
    scene.later(configured, plain)
    configured(changed)
    for _ in range(limit):
        before = lab.pids().get(("n1", "keeper"))
        lab.inject("keeper-kill", "n1")
        lab.wait("n1's keeper is another process", 60, lambda before=before: lab.pids().get(("n1", "keeper")) not in (None, before))
        lab.wait("n1's agent is seen", 90, lambda: lab.node("n1").get("agent_up"))
        lab.wait_running("sc-1", seconds=180)

    def distrusted():
        text = lab.wait("n1 is distrusted", 30, lambda: "started too often" in lab.node("n1").get("text", "") and lab.node("n1")["text"])
        def elsewhere():
            row = lab.vm("sc-1")
            return row.get("state") == "running" and row.get("node") in ("n2", "n3") and row
        row = lab.wait("sc-1 runs on another node than the one that crashes", 120, elsewhere)
        need(row["epoch"] <= scene.epochs["sc-1"] + limit, f"{limit} crashes cost sc-1 {row['epoch'] - scene.epochs['sc-1']} epochs")
        return text
    scene.check(f"after {limit} starts it gets no VMs, and sc-1 is elsewhere", distrusted)

    def refused():
        lab.ctl("vm", "stop", "sc-1")
        scene.later(lab.ctl, "vm", "start", "sc-1", check=False)
        done = lab.ctl("vm", "start", "sc-1", "--node", "n1", check=False)
        need(done.returncode == 1 and "too often" in done.stderr, f"status {done.returncode}: {done.stdout}{done.stderr}")
    scene.check("not even when its name is given", refused)
    lab.ctl("vm", "stop", "sc-1", check=False)

    def trusted():
        lab.ctl("node", "drain", "n1", "--undo")
        lab.ctl("vm", "start", "sc-1", "--node", "n1")
        lab.wait_running("sc-1", "n1")
    scene.check("the operator lifts it", trusted)
    scene.check("nobody was fenced", scene.no_fence)


@scenario("keeper-stopped", "42")
def keeper_stopped(scene):
    """The keeper is stopped and its memory reads well: the frozen counter tells, its power is cut, and its VM taken over."""
    scene.later(scene.back, "n1")
    scene.lab.inject("keeper-stop", "n1")
    scene.check("the VM is taken over", scene.recovered, "sc-1", other_than="n1")

    def frozen():
        texts = [row["report"].get("text", "") for row in scene.faults("keeper_silent")]
        need(len(texts) == 1 and "counter stood" in texts[0], f"faults: {[row['report'] for row in scene.faults()]}")
        scene.fenced_by("sc-1", "power")
        return texts[0]
    scene.check("it was the counter that told, and power the proof", frozen)
    scene.check("the other VM has not noticed", scene.untouched, "sc-2")


@scenario("most-nodes-vanish", "storms", sc1="n1", sc2="n2", sc3="n3")
def most_nodes_vanish(scene):
    """Two of three nodes vanish at once: nobody is fenced, status says so; when they are back all goes on."""
    lab = scene.lab
    for node in ("n1", "n2"):
        scene.later(scene.back, node)
    for node in ("n1", "n2"):
        lab.port(node, False)

    def said():
        text = lab.wait("status says it", 60, lambda: "vanished at once" in lab.view("status").get("text", "") and lab.view("status")["text"])
        time.sleep(3 * LEASE_S)                            # nothing is to happen
        scene.no_fence()
        scene.untouched("sc-3")
        for name in ("sc-1", "sc-2"):
            need(lab.vm(name)["epoch"] == scene.epochs[name], f"{name} was granted anew")
        return text
    scene.check("nobody is fenced, and status says why", said)
    for node in ("n1", "n2"):
        lab.port(node, True)

    def goes_on():
        lab.wait_nodes(*NODES, seconds=180)
        for name in scene.homes:
            lab.wait_running(name, seconds=180)
        scene.no_fence()
        need("vanished" not in lab.view("status").get("text", ""), "status still says it")
    scene.check("when they are back nobody was fenced, and all VMs run", goes_on)


SAMPLE = """
s() {{ read -r boot </proc/sys/kernel/random/boot_id; before=${{EPOCHREALTIME/./}}; echo >$d/clock.step; after=${{EPOCHREALTIME/./}}
      echo "$boot $before $after $(stat -c %.9Y $d/clock.step)" >>$d/clock.samples; }}
export LC_ALL=C; d=/lab/log/{node}; read -r now _ <<<"$EPOCHREALTIME"; to=$(( ${{now%.*}} + {seconds} ))
s; busybox date -s @$to >/dev/null && s; rm -f $d/clock.step
"""


def step_clock(lab, node, seconds):
    """And tells the checker of the timeline, which places this machine's events on the host's clock."""
    path = lab.share / f"step-{node}.sh"
    path.write_text(SAMPLE.format(node=node, seconds=seconds))
    lab.exec(node, "bash", f"/lab/step-{node}.sh")


def boot_anew(scene, node):
    """Times of a boot whose clock was stepped are its own: the checker tells boots apart."""
    lab = scene.lab

    def row():
        return next((row for row in lab.view("node", "list", check=False) or [] if row["node"] == node), {})
    before = row().get("instance")
    lab.lab("power", node, "off")
    lab.lab("power", node, "on", "--wait")
    lab.wait(f"{node} has joined anew", 240, lambda: row().get("instance") not in (None, before))
    lab.wait_nodes(node, seconds=120)


@scenario("clock-steps", "24")
def clock_steps(scene):
    """The clock of one node steps an hour ahead, two back, and home again: no fault, no recovery, checkpoints go on."""
    lab = scene.lab
    lab.ctl("vm", "stop", "sc-1")
    boot_anew(scene, "n1")
    lab.ctl("vm", "start", "sc-1", "--node", "n1")
    lab.wait_running("sc-1", "n1")
    lab.wait("sc-1 has a checkpoint", 90, lambda: lab.vm("sc-1").get("save_seq"))
    scene.mark()

    def end():
        lab.ctl("vm", "stop", "sc-1")
        boot_anew(scene, "n1")
        lab.ctl("vm", "start", "sc-1", "--node", "n1")
    scene.later(end)
    for text, seconds in (("an hour ahead", 3600), ("an hour behind", -7200), ("right again", 3600)):
        step_clock(lab, "n1", seconds)

        def nothing():
            seq = lab.vm("sc-1")["save_seq"]
            time.sleep(2 * LEASE_S)                        # nothing is to happen
            scene.untouched()
            scene.no_fault()
            need(lab.vm("sc-1")["save_seq"] > seq, "no checkpoint in twenty seconds")
        scene.check(f"its clock is {text}: no fault, and checkpoints go on", nothing)
