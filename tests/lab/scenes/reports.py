"""Scenarios of fault reports and of operators."""
import re
import time
from concurrent.futures import ThreadPoolExecutor

from lab import need
from scene import NODES, scenario
from wire import exchange, field, fixed64, frame


def report(lab, node, vm, epoch=0, instance=0):
    """The coordinator's answer to a report by hand, with what mainstayctl has no words for: an epoch, the instance of a keeper."""
    body = field(1, 1) + field(2, node.encode()) + field(3, vm.encode()) + field(6, b"replayed") + field(7, b"sent again")
    if epoch:
        body += field(4, epoch)
    if instance:
        body += fixed64(5, instance)
    got, closed = exchange(lab.socket, frame(field(1, 9) + field(15, body)))
    need(got, f"no answer to a report ({'closed' if closed else 'open'})")
    return " ".join(run.decode() for run in re.findall(rb"[ -~]{8,}", got))  # the sentence in it


@scenario("repeated-reports", "48")
def repeated_reports(scene):
    """Ten reports of one fault at once open one recovery; reports of an earlier epoch and of an earlier keeper open none."""
    lab = scene.lab
    lab.inject("qemu-kill", "n1", "sc-1")
    # Each names the epoch: one that comes late, on a busy host, is then of the VM before, and without would be a report about the one after.
    with ThreadPoolExecutor(10) as reporters:
        list(reporters.map(lambda _: report(lab, "n1", "sc-1", epoch=scene.epochs["sc-1"]), range(10)))
    scene.check("the VM is recovered", scene.recovered, "sc-1")

    def one():
        need(len(scene.moves("sc-1")) == 1, f"recoveries {[row['id'] for row in scene.moves('sc-1')]}")
        need(lab.vm("sc-1")["epoch"] == scene.epochs["sc-1"] + 1, "it was granted more than once")
        scene.no_fence()
    scene.check("once", one)
    row = lab.vm("sc-1")

    def replayed(words, **which):
        answer = report(lab, row["node"], "sc-1", **which)
        need(words in answer, f"answer: {answer}")
        time.sleep(5)                                      # nothing is to happen
        now = lab.vm("sc-1")
        need((now["state"], now["epoch"]) == ("running", row["epoch"]), f"sc-1 is {now['state']} with epoch {now['epoch']}")
        one()
        return answer
    scene.check("a report of the epoch before is refused", replayed, "stale", epoch=scene.epochs["sc-1"])
    scene.check("a report that speaks of an earlier keeper is refused", replayed, "earlier keeper", epoch=row["epoch"], instance=0x1111)
    scene.check("the other VM has not noticed", scene.untouched, "sc-2")


@scenario("stop-during-recovery", "50")
def stop_during_recovery(scene):
    """The operator stops a VM while it is recovered, at several moments: it stays stopped."""
    lab = scene.lab

    def stays_stopped():
        lab.ctl("vm", "stop", "sc-1", check=False)         # what cannot be proved at once is carried out later, and says so
        lab.wait("it is stopped", 120, lambda: lab.vm("sc-1").get("state") == "stopped")
        time.sleep(8)                                      # nothing is to happen
        need(lab.vm("sc-1")["state"] == "stopped", f"it is {lab.vm('sc-1')['state']}")
        found = lab.qemus(*NODES).get("sc-1", [])
        need(not found, f"its QEMU runs on {found}")
    for kind, delay in (("qemu-kill", 0), ("qemu-kill", 0.4), ("qemu-kill", 1.2), ("keeper-kill", 0.8)):
        lab.inject(kind, "n1", *(["sc-1"] if kind == "qemu-kill" else []))
        time.sleep(delay)
        scene.check(f"stopped {delay} s after {kind}", stays_stopped)
        lab.wait_nodes("n1", seconds=120)
        lab.ctl("vm", "start", "sc-1", "--node", "n1")
        lab.wait_running("sc-1", "n1")
    scene.check("nobody was fenced by power", scene.no_fence)
