"""Scenarios of fence devices."""
import os
import time

from lab import need
from scene import FENCE_TIMEOUT_S, scenario

FENCE = "/usr/sbin/fence_ipmilan"
REAL = "/usr/libexec/mainstay-lab/fence_ipmilan"
# Takes a word of /run/fence.plan for each time it is called, and is the real one when there is none left.
AGENT = f"""#!/bin/sh
read -r word rest </run/fence.plan
[ "$word" ] && echo "$rest" >/run/fence.plan
case $word in
    fail) echo "the device says no" >&2; exit 1 ;;
    hang) sleep 1000; exit 0 ;;
esac
exec {REAL}
"""


def fence_agent(scene, plan):
    """The coordinator's fence agent does what the plan says, and then works."""
    lab = scene.lab
    path = lab.share / "fence_ipmilan"
    path.write_text(AGENT)
    scene.later(lab.exec, "c1", f"rm -f /run/fence.plan; cp {REAL} {FENCE}.new && mv {FENCE}.new {FENCE}")
    lab.exec("c1", f"mkdir -p {os.path.dirname(REAL)}; [ -e {REAL} ] || cp {FENCE} {REAL}; echo {plan} >/run/fence.plan; "
                   f"cp /lab/fence_ipmilan {FENCE}.new && chmod 755 {FENCE}.new && mv {FENCE}.new {FENCE}")


def failed_fences(scene):
    return [row for row in scene.events("fence.done") if row.get("err")]


@scenario("fence-fails", "10")
def fence_fails(scene):
    """The fence agent fails three times and then works: the VM of a node that is cut off is taken over only then."""
    fence_agent(scene, "fail fail fail")
    scene.cut("n1")
    scene.check("the VM is taken over", scene.recovered, "sc-1", other_than="n1")

    def after_the_fourth():
        need(len(failed_fences(scene)) == 3, f"{len(failed_fences(scene))} fences failed")
        need(scene.lab.lab("power", "n1", "status").stdout.strip() == "off", "n1 has power")
        scene.fenced_by("sc-1", "power")
    scene.check("three fences had failed, the fourth cut its power, and that was the proof", after_the_fourth)
    scene.check("the other VM has not noticed", scene.untouched, "sc-2")


@scenario("fence-hangs", "10")
def fence_hangs(scene):
    """The fence agent hangs: it is killed at its time-out and tried again; nothing is taken over before."""
    fence_agent(scene, "hang")
    begun = time.monotonic()
    scene.power_off("n1")

    def taken_over():
        how = scene.recovered("sc-1", other_than="n1")
        took = time.monotonic() - begun
        need(took > FENCE_TIMEOUT_S, f"already after {took:.0f} s")
        need(len(failed_fences(scene)) == 1, f"{len(failed_fences(scene))} fences failed")
        scene.fenced_by("sc-1", "power")
        return f"{how}, after {took:.0f} s"
    scene.check("the VM is taken over once the second agent has said off", taken_over)

    def nothing_left():
        done = scene.lab.exec("c1", "for p in /proc/[0-9]*; do tr '\\0' ' ' <$p/cmdline 2>/dev/null; echo; done")
        need("sleep 1000" not in done.stdout, "what the agent had started is still there")
    scene.check("what the hung agent had started is gone", nothing_left)


@scenario("bmc-away", "9")
def bmc_away(scene):
    """A node and its BMC are both away: nothing is taken over, status says so, until the operator confirms that it is off."""
    lab = scene.lab
    scene.later(lab.bmc, "n1", True, check=False)
    lab.bmc("n1", False)
    scene.cut("n1")
    scene.check("its recovery stands in fencing", scene.open_in, "fencing", "n1")

    def nothing_happens():
        end = time.monotonic() + 60
        while time.monotonic() < end:
            row = lab.vm("sc-1")
            need(row["epoch"] == scene.epochs["sc-1"], f"sc-1 was granted epoch {row['epoch']} on {row.get('node')}")
            found = lab.qemus("n2", "n3")
            need("sc-1" not in found, f"sc-1 runs on {found.get('sc-1')}")
            time.sleep(3)
        node = lab.node("n1")
        need(node["state"] == "fencing" and node.get("text"), f"n1 is {node['state']}: {node.get('text')}")
        need(failed_fences(scene), "no fence has been tried and failed")
        return node["text"][:160]
    scene.check("for a minute nothing is taken over, and node list says why", nothing_happens)
    lab.lab("power", "n1", "off")
    lab.ctl("node", "confirm-dead", "n1", "--text", "its plug is in my hand")
    scene.check("after the operator's word the VM is taken over", scene.recovered, "sc-1", other_than="n1")
    scene.check("which was the proof", scene.fenced_by, "sc-1", "operator")
    scene.check("the other VM has not noticed", scene.untouched, "sc-2")
