"""One telling of a fault scenario in a lab (tests/lab/scenarios): VMs at home, what happened since, and how to put back what was broken."""
import contextlib

from lab import Checks, Failed, need, witness

NODES = ("n1", "n2", "n3")
AGENT_SILENT_S = 3                 # agent-silent-ms, lease-ms and the default of fence-timeout-ms in the lab
LEASE_S = 10
FENCE_TIMEOUT_S = 30
KEPT = {"resumed_in_place", "pulled_shadow", "pulled_live"}        # how a VM comes back with its memory

check = Checks()
SCENARIOS = {}                     # name -> (rows, VMs and their homes, text, function)


def scenario(name, rows, **vms):
    """Rows of the list of fault scenarios, in words. VMs: their number in the name and their home, as sc1="n1"."""
    def add(function):
        homes = {key.replace("sc", "sc-"): node for key, node in vms.items()} or {"sc-1": "n1", "sc-2": "n2"}
        SCENARIOS[name] = (rows, homes, " ".join(function.__doc__.split()), function)
        return function
    return add


class Scene:
    """One telling: the VMs at home, what there was before, and how to put back what is broken."""

    def __init__(self, lab, name, homes):
        self.lab, self.name, self.homes = lab, name, dict(homes)
        self.undo = contextlib.ExitStack()
        self.troubled = set()

    def check(self, text, function, *arguments, **keywords):
        return check(f"{self.name}: {text}", function, *arguments, **keywords)

    def later(self, function, *arguments, **keywords):
        """To be done at the end, whatever happens; the last one first. A step that fails does not keep the others from being done."""
        def step():
            try:
                function(*arguments, **keywords)
            except Failed as failure:
                check.failed.append(self.name)
                print(f"FAIL {self.name}: cannot be put back: {failure}", flush=True)
        self.undo.callback(step)

    # --- before and after ---

    def mend(self):
        """What a telling that was killed may have left."""
        for node in NODES:
            self.lab.bmc(node, True, check=False)
            self.lab.lab("power", node, "on")
            self.lab.lab("heal", node)
        self.lab.lab("wait")
        for node in NODES:
            self.lab.netem(node, "")
            self.lab.ctl("node", "drain", node, "--undo")
        self.lab.wait_nodes(*NODES, seconds=240)

    def begin(self):
        lab = self.lab
        self.mend()
        for row in lab.view("vm", "list"):
            if row["vm"].startswith("sc-") and row["vm"] not in self.homes:
                lab.remove(row["vm"])
        for name, node in self.homes.items():
            row = lab.vm(name)
            if row.get("state") == "running" and row.get("node") == node and row.get("save_seq"):
                continue
            lab.ctl("vm", "stop", name, check=False)
            lab.define(name, witness(name, restarts_max=20, restarts_window_s=60))
            lab.ctl("vm", "start", name, "--node", node)
            lab.wait_running(name, node)
        for name in self.homes:
            lab.wait(f"VM {name} has a checkpoint", 90, lambda name=name: lab.vm(name).get("save_seq"))
        self.once()
        self.mark()

    def mark(self):
        """What comes after this is what the scenario is judged by."""
        self.epochs = {name: self.lab.vm(name)["epoch"] for name in self.homes}
        self.newest = {noun: self.lab.newest(noun) for noun in ("fault", "recovery")}
        self.told = {(row["pid"], row["n"]) for row in self.lab.events("c1")}

    def once(self, seconds=300):
        """All is well again: nodes up, nothing open, every VM once."""
        lab = self.lab
        lab.wait_nodes(*NODES, seconds=seconds)
        lab.wait("no recovery is open", seconds, lambda: not lab.view("status").get("recoveries"))
        for name in self.homes:
            lab.wait_running(name, seconds=seconds)

        def as_told():
            told = {row["vm"]: [row["node"]] for row in lab.view("vm", "list") if row["state"] == "running" and row.get("node")}
            found = lab.qemus(*NODES)
            twice = {name: nodes for name, nodes in found.items() if len(nodes) > 1}
            need(not twice, f"run more than once: {twice}")
            return found == told and found
        found = lab.wait("the machines have the QEMUs that the coordinator speaks of", 60, as_told)
        return "; ".join(f"{name} on {found[name][0]}, {lab.beats_on(name)}" for name in self.homes)

    # --- what happened since ---

    def faults(self, kind=None):
        rows = [row for row in self.lab.view("fault", "list") if row["id"] > self.newest["fault"]]
        return [row for row in rows if kind is None or row["report"]["kind"] == kind]

    def recoveries(self):
        """From faults; starts and stops are none."""
        return [row for row in self.lab.view("recovery", "list") if row["id"] > self.newest["recovery"] and row.get("fault_id")]

    def moves(self, name):
        """Recoveries that concern this VM."""
        return [row for row in self.recoveries() if any(vm["vm"] == name for vm in row.get("vms", []))]

    def events(self, *names):
        return [row for row in self.lab.events("c1", *names) if (row["pid"], row["n"]) not in self.told]

    def fences(self):
        return len(self.events("fence.started"))

    # --- what has to be ---

    def recovered(self, name, seconds=180, other_than=None):
        """It runs under a newer epoch, and beats. Returns how it came back."""
        def again():
            row = self.lab.vm(name)
            return row.get("state") == "running" and row["epoch"] > self.epochs[name] and row
        row = self.lab.wait(f"VM {name} is recovered", seconds, again)
        need(row["node"] != other_than, f"{name} is back on {other_than}")
        self.lab.beats_on(name)
        how = [vm.get("start", {}).get("method") for rec in self.moves(name) for vm in rec["vms"] if vm["vm"] == name]
        return f"on {row['node']}, epoch {self.epochs[name]} -> {row['epoch']}, {', '.join(filter(None, how)) or 'no recovery names it'}"

    def kept(self, name):
        """It came back with its memory, each time."""
        how = [vm.get("start", {}).get("method") for rec in self.moves(name) for vm in rec["vms"] if vm["vm"] == name]
        need(how and set(how) <= KEPT, f"{name} came back as {how}")
        return ", ".join(how)

    def untouched(self, *names):
        for name in names or self.homes:
            row = self.lab.vm(name)
            need(row.get("state") == "running" and row.get("node") == self.homes[name] and row["epoch"] == self.epochs[name],
                 f"{name} was on {self.homes[name]} with epoch {self.epochs[name]}, and is {row.get('state')} on {row.get('node')} "
                 f"with epoch {row.get('epoch')}")
            self.lab.beats_on(name)

    def no_recovery_of_vms(self):
        concerned = {vm["vm"] for row in self.recoveries() for vm in row.get("vms", [])}
        need(not concerned, f"recoveries concerned {sorted(concerned)}")

    def no_fence(self):
        need(self.fences() == 0, f"{self.fences()} power fences")

    def no_fault(self):
        rows = [f"{row['report']['kind']} {row['report']['node']}: {row['report'].get('text', '')}" for row in self.faults()]
        need(not rows, f"faults: {rows}")
        self.no_fence()

    def fenced_by(self, name, proof):
        """The grant that the VM had was proved over by this."""
        rows = [row for row in self.events("grant.fenced") if row.get("vm") == name and row.get("epoch") == self.epochs[name]]
        need([row.get("what") for row in rows] == [proof], f"proofs of {name} epoch {self.epochs[name]}: {rows}")

    def open_in(self, state, node, seconds=90):
        """A recovery of this node stands in this state."""
        def stands():
            return next((row for row in self.lab.view("status").get("recoveries", []) if row["state"] == state and row["node"] == node), None)
        return f"recovery {self.lab.wait(f'a recovery of {node} is {state}', seconds, stands)['id']}"

    def powered(self):
        return [node for node in NODES if self.lab.lab("power", node, "status").stdout.strip() == "on"]

    # --- breaking things, with what mends them ---

    def cut(self, node, silent=False):
        self.later(self.back, node)
        self.lab.lab("cut", node, *(["--silent"] if silent else []))

    def power_off(self, node):
        self.later(self.back, node)
        self.lab.inject("power-off", node)

    def back(self, node):
        """Power and cable; it boots when its power was cut."""
        self.lab.lab("power", node, "on", "--wait")
        self.lab.lab("heal", node)

    def netem(self, words, *machines):
        """On those that have power: heavy trouble may cost a node its own."""
        for machine in machines:
            if machine not in self.troubled:
                self.later(self.netem_off, machine)
            self.troubled.add(machine)
            if self.lab.lab("power", machine, "status").stdout.strip() == "on":
                self.lab.netem(machine, words)

    def netem_off(self, machine):
        self.lab.lab("power", machine, "on", "--wait")      # it may have been fenced meanwhile, and then has nothing of it any more
        self.lab.netem(machine, "")
