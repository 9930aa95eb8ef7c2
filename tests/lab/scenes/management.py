"""Scenarios of the management address. The lab's nodes have none by themselves, because other scenarios pull the cable of the cluster's network and
mean all there is; these give one to n1, on the management network, and take it back."""
import re
import time

from lab import need
from scene import LEASE_S, scenario

SILENT_S = 3                       # keeper-silent-ms of the lab


def restarted(scene):
    """Keeper and coordinator read their files anew."""
    lab = scene.lab
    lab.inject("keeper-kill", "n1")
    lab.inject("coordinator-kill", "c1")
    lab.wait_nodes("n1", seconds=120)


def managed(scene):
    """n1 has a management address from here on."""
    lab = scene.lab
    files = {name: lab.share / "config" / f"{name}.yaml" for name in ("n1", "c1")}
    plain = {name: path.read_text() for name, path in files.items()}
    node = plain["n1"].replace("{ address: 10.7.0.101,", "{ management-address: 10.8.0.101, address: 10.7.0.101,")
    need(node != plain["n1"], "n1.yaml does not name the coordinator as expected")
    member = re.search(r"  - name: n1\n", plain["c1"])
    need(member, "c1.yaml has no n1")
    coordinator = plain["c1"].replace(member[0], member[0] + "    management: { address: 10.8.0.1 }\n")

    def back():
        for name, path in files.items():
            path.write_text(plain[name])
        restarted(scene)
    scene.later(back)
    files["n1"].write_text(node + "management: { address: 10.8.0.1 }\n")
    files["c1"].write_text(coordinator)
    restarted(scene)
    for name, home in scene.homes.items():
        lab.wait_running(name, home)
    lab.wait("its VM has a checkpoint", 90, lambda: lab.vm("sc-1").get("save_seq"))
    scene.mark()


def device(lab, there):
    lab.exec("n1", "rdma link show rxe0/1 >/dev/null 2>&1 || rdma link add rxe0 type rxe netdev eth0" if there else "rdma link delete rxe0")


def degraded(scene):
    lab = scene.lab
    row = lab.wait("n1 is degraded", 60, lambda: next((node for node in lab.view("node", "list")
                                                      if node["node"] == "n1" and node["state"] == "degraded"), None))
    need("nothing is taken over" in row.get("text", ""), f"its text is: {row.get('text')}")
    need("n1" in lab.view("status").get("text", ""), "the status has no alarm")
    return row["text"]


@scenario("rdma-away", "28")
def rdma_away(scene):
    """The RDMA device of a node is away for longer than its lease while its management address answers: nothing is fenced or taken over. Then that is
    away as well: fenced, and taken over once."""
    lab = scene.lab
    managed(scene)

    def mended():
        lab.netns("link", "set", "n1-mgmt", "up")
        scene.back("n1")
        device(lab, True)
    scene.later(mended)
    pids = lab.qemus("n1")
    device(lab, False)
    scene.check("the coordinator calls it degraded", degraded, scene)

    def runs_on():
        time.sleep(3 * LEASE_S)    # nothing is to happen
        scene.no_fence()
        need(not scene.recoveries(), f"recoveries: {scene.recoveries()}")
        need(lab.qemus("n1") == pids and lab.vm("sc-1")["epoch"] == scene.epochs["sc-1"], "its VM has not run on")
        rows = scene.faults("node_unreachable")
        need(len(rows) == 1 and "degraded" in rows[0].get("verdict", ""), f"fault records: {rows}")
    scene.check("its VM runs on past its lease; one fault record, no recovery, no fence", runs_on)
    device(lab, True)
    scene.check("RDMA is back: all is as before", lab.wait_nodes, "n1", seconds=60)
    scene.check("no VM has noticed", scene.untouched)
    device(lab, False)
    lab.wait("n1 is degraded again", 60, lambda: lab.node("n1")["state"] == "degraded")
    lab.netns("link", "set", "n1-mgmt", "down")
    begun = time.monotonic()
    scene.check("then management is away too: its VM is taken over", scene.recovered, "sc-1", other_than="n1")

    def once():
        scene.fenced_by("sc-1", "power")
        need(scene.fences() == 1 and lab.vm("sc-1")["epoch"] == scene.epochs["sc-1"] + 1, f"{scene.fences()} fences")
        need(time.monotonic() - begun > SILENT_S, "sooner than keeper-silent-ms")
    scene.check("fenced by power, and once", once)
    scene.check("the other VM has not noticed", scene.untouched, "sc-2")
