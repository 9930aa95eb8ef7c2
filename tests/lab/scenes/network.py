"""Scenarios of the network and what goes over it."""
import time

from lab import need, witness
from scene import LEASE_S, NODES, scenario


def one_way(scene, words, undo):
    """After a while the network is mended; the node may have been fenced meanwhile."""
    lab = scene.lab

    def mend():
        lab.lab("power", "n1", "on", "--wait")
        lab.exec("n1", undo)
    scene.later(mend)
    lab.exec("n1", words)

    def safe():
        time.sleep(4 * LEASE_S)                            # longer than whatever may come of it
        row = lab.vm("sc-1")
        found = lab.qemus(*scene.powered()).get("sc-1", [])
        need(len(found) <= 1, f"sc-1 runs on {found}")
        if row["epoch"] > scene.epochs["sc-1"]:
            need([event for event in scene.events("grant.fenced") if event.get("vm") == "sc-1"], "taken over without a proof")
            return f"taken over: it runs on {found}"
        return f"no takeover: it runs on {found}"
    scene.check("taken over with a proof, or left alone; never both", safe)
    scene.check("the other VM has not noticed", scene.untouched, "sc-2")


@scenario("one-way-out", "26")
def one_way_out(scene):
    """What a node sends is lost, what is sent to it arrives."""
    one_way(scene, "tc qdisc replace dev eth0 root netem loss 100%", "tc qdisc del dev eth0 root 2>/dev/null; true")


@scenario("one-way-in", "26")
def one_way_in(scene):
    """What is sent to a node is lost, what it sends arrives."""
    one_way(scene, "tc qdisc add dev eth0 ingress && tc filter add dev eth0 ingress matchall action drop",
            "tc qdisc del dev eth0 ingress 2>/dev/null; true")


def deleted_under_load(lab):
    """READs from n2 into n1 over the device, as fast as it goes, while it is deleted. rxe waits for whoever has it open, and ib_read_bw, unlike a keeper,
    does not let go by itself: it is killed when the deletion has begun."""
    server = lab.start("n2", "ib_read_bw -d rxe0 -D 30 >/dev/null 2>&1 & echo $! > /run/load.pid; wait")
    try:
        lab.wait("n2 waits for the load", 60, lambda: ":18515" in lab.exec("n2", "busybox netstat -ltn").stdout)
        lab.exec("n1", "ib_read_bw -d rxe0 -D 30 10.7.0.2 >/dev/null 2>&1 & load=$!; sleep 3; kill -0 $load || exit 3; "
                 "rdma link delete rxe0 & deletion=$!; sleep 0.2; kill -9 $load; wait $deletion; rdma link add rxe0 type rxe netdev eth0")
    finally:
        lab.exec("n2", "kill -9 $(cat /run/load.pid)", check=False)
        server.wait(timeout=30)


@scenario("rdma-deleted", "28 39")
def rdma_deleted(scene):
    """A node's RDMA device is deleted under load and added again: its keeper lives on and opens it anew; management is up all the time."""
    lab = scene.lab
    before = lab.pids()[("n1", "keeper")]
    scene.later(lab.exec, "n1", "rdma link show rxe0/1 >/dev/null 2>&1 || rdma link add rxe0 type rxe netdev eth0")
    deleted_under_load(lab)

    def lives_on():
        lab.wait_nodes("n1", seconds=120)
        now = lab.pids().get(("n1", "keeper"))
        need(now == before, f"the keeper was process {before}, and is {now}")
        scene.no_fence()
    scene.check("the keeper lives on and its node is up; nobody was fenced", lives_on)
    scene.check("VMs have not noticed", scene.untouched)


@scenario("link-flaps", "29")
def link_flaps(scene):
    """The link of a node flaps ten times a second for a minute: its VM is moved once at most."""
    lab = scene.lab
    scene.later(scene.back, "n1")
    end, flaps = time.monotonic() + 60, 0
    while time.monotonic() < end:
        lab.port("n1", flaps % 2 == 1)
        flaps += 1
        time.sleep(0.05)
    scene.back("n1")

    def once():
        scene.once()
        moves = lab.vm("sc-1")["epoch"] - scene.epochs["sc-1"]
        need(moves <= 1, f"sc-1 was moved {moves} times")
        return f"{flaps // 2} times down and up, moved {moves} times, {scene.fences()} power fences"
    scene.check("moved once at most", once)
    scene.check("the other VM has not noticed", scene.untouched, "sc-2")


def worse(scene, levels, seconds, judge):
    """Each level of trouble on all machines for so many seconds; judged before it is over."""
    for words in levels:
        scene.netem(words, *NODES, "c1")

        def holds():
            time.sleep(seconds)
            return judge()
        scene.check(f"{words}, {seconds} s", holds)


@scenario("little-loss", "30")
def little_loss(scene):
    """Loss below 5 %, duplicates, another order, delay, on all machines: no fault, no recovery."""
    def nothing():
        scene.no_fault()
        scene.untouched()
    worse(scene, ("loss 1%", "loss 4%", "duplicate 5%", "delay 10ms reorder 25% 50%", "delay 20ms", "loss 4% duplicate 5%"), 15, nothing)


@scenario("heavy-loss", "30")
def heavy_loss(scene):
    """Loss of 20 % and 40 %, delay up to 200 ms, and all of it: what is taken over is taken over safely."""
    def safe():
        twice = {name: nodes for name, nodes in scene.lab.qemus(*scene.powered()).items() if len(nodes) > 1}
        need(not twice, f"run more than once: {twice}")
        return f"{scene.fences()} power fences, {len(scene.recoveries())} recoveries so far"
    worse(scene, ("loss 20%", "loss 40%", "delay 100ms 100ms", "loss 10% duplicate 5% delay 20ms 20ms reorder 25%"), 20, safe)


@scenario("thin-link", "32")
def thin_link(scene):
    """A node sends 1 Mbit a second at most: its VM is not held up, checkpoints go on, no fault."""
    lab = scene.lab
    scene.netem("rate 1mbit", "n1")
    seq = lab.vm("sc-1")["save_seq"]
    time.sleep(2 * LEASE_S)

    def goes_on():
        scene.no_fault()
        scene.untouched()
        need(lab.vm("sc-1")["save_seq"] > seq + 5, f"checkpoint {seq} -> {lab.vm('sc-1')['save_seq']} in {2 * LEASE_S} s")
    scene.check("no fault; beats and checkpoints go on", goes_on)


@scenario("corrupt", "31")
def corrupt(scene):
    """One packet of a hundred has a wrong bit while a VM is pulled to another node: not one wrong byte arrives."""
    lab = scene.lab
    scene.later(lab.ctl, "node", "drain", "n1", "--undo")
    scene.netem("corrupt 1%", *NODES)
    lab.ctl("node", "drain", "n1")
    scene.check("the VM is moved, and the guest finds nothing wrong in its memory", scene.recovered, "sc-1", other_than="n1")
    scene.check("with its memory", scene.kept, "sc-1")

    def no_damage():
        need(not scene.faults("area_corrupt"), f"{[row['report'] for row in scene.faults('area_corrupt')]}")
        scene.no_fence()
    scene.check("nothing was called damaged, nobody fenced", no_damage)


@scenario("owner-killed", "36")
def owner_killed(scene):
    """The keeper of a node is killed while another one pulls a VM of 256 MiB from it: what has been pulled is not used."""
    lab, name = scene.lab, "sc-big"
    lab.define(name, witness(name, memory_mib=256, protect="none", restarts_max=20, restarts_window_s=60))
    lab.ctl("vm", "start", name, "--node", "n1")
    lab.wait_running(name, "n1")
    scene.homes[name] = "n1"
    scene.mark()
    scene.later(lab.ctl, "node", "drain", "n1", "--undo")
    lab.ctl("node", "drain", "n1")

    def pulling():
        rows = [row for row in lab.view("status").get("recoveries", []) if any(vm["vm"] == name for vm in row.get("vms", []))]
        need(rows or lab.vm(name).get("node") == "n1", f"{name} has been moved already: the pull was too quick for this check")
        return any(row["state"] == "resuming" for row in rows)
    lab.wait(f"{name} is being pulled", 90, pulling, interval=0.02)
    lab.inject("keeper-kill", "n1")
    scene.check("the large VM runs again, and the guest finds nothing wrong in its memory", scene.recovered, name)
    scene.check("so does the other one of that node", scene.recovered, "sc-1")
    scene.check("the VM of the other node has not noticed", scene.untouched, "sc-2")


@scenario("connect-cycles", "38")
def connect_cycles(scene):
    """Three hundred connections that send noise: the coordinator has as many descriptors as before, about as much memory, and is as fast."""
    lab = scene.lab

    def size():
        pid = lab.pids()[("c1", "coordinator")]
        text = lab.exec("c1", f"ls /proc/{pid}/fd | wc -l; grep VmRSS /proc/{pid}/status").stdout.split()
        return pid, int(text[0]), int(text[2])

    def flood():
        begun = time.monotonic()
        done = lab.exec("n2", lab.bin / "rogue", "--from", "10.7.0.2", "--coordinator", "10.7.0.101:7470", "--node", "n2", "--id", "2",
                        "--node-address", "10.7.0.2", "flood", check=False)
        need(done.returncode == 0, f"status {done.returncode}: {done.stdout}{done.stderr}")
        return time.monotonic() - begun
    took = [flood()]                                       # what is allocated once is there after it
    before = size()
    took += [flood() for _ in range(14)]

    def nothing_left():
        lab.wait("its descriptors are as many as before", 30, lambda: size()[1] <= before[1] + 1, interval=1)
        after = size()
        need(after[0] == before[0], f"process {before[0]} -> {after[0]}")
        need(after[2] < before[2] + 4096, f"{before[2]} KiB -> {after[2]} KiB")
        return f"{before[1]} -> {after[1]} descriptors, {before[2]} -> {after[2]} KiB"
    scene.check("nothing is left of 280 connections", nothing_left)

    def as_fast():
        need(min(took[-4:]) < 2 * min(took[:4]) + 1, f"20 connections took {took[0]:.1f} s, and at the end {took[-1]:.1f} s")
        return f"20 connections: {took[0]:.1f} s, at the end {took[-1]:.1f} s"
    scene.check("the last are served as fast as the first", as_fast)
    scene.check("nobody else has noticed", lambda: (scene.no_fault(), scene.untouched())[0])


@scenario("silent-host", "40")
def silent_host(scene):
    """A node without VMs falls silent with its carrier kept: connecting to it holds up nobody else's recovery, and it is not fenced."""
    lab = scene.lab
    scene.cut("n3", silent=True)
    lab.wait("the coordinator misses n3", 60, lambda: lab.node("n3").get("state") != "up")
    lab.inject("qemu-kill", "n1", "sc-1")
    scene.check("a VM of another node is recovered meanwhile", scene.recovered, "sc-1", 30)

    def answers():
        slowest = 0
        for _ in range(20):
            begun = time.monotonic()
            lab.view("status")
            slowest = max(slowest, time.monotonic() - begun)
            time.sleep(0.2)
        need(slowest < 3, f"status took {slowest:.1f} s")
        return f"slowest status of 20: {1000 * slowest:.0f} ms"
    scene.check("the coordinator answers", answers)
    scene.check("nobody is fenced", scene.no_fence)
    scene.check("the other VM has not noticed", scene.untouched, "sc-2")
