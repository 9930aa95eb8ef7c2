"""A lab as seen by a test: commands in its machines, mainstayctl on the host, waiting. Standard library only."""
import json
import os
import re
import subprocess
import time
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent.parent
LAB = REPO / "deploy/lab/lab"


class Failed(Exception):
    """A step did not do what it had to; the text says what and shows the output."""


def need(condition, text):
    if not condition:
        raise Failed(text)


class Checks:
    """Runs checks and prints a line for each; one that fails does not end the test."""

    def __init__(self):
        self.failed = []

    def __call__(self, text, function, *arguments, **keywords):
        """Whether it held. What the function returns is printed behind its line."""
        begun = time.monotonic()
        try:
            detail = function(*arguments, **keywords)
            print(f"ok   {text} ({time.monotonic() - begun:.1f} s)" + (f": {detail}" if detail else ""), flush=True)
            return True
        except Failed as failure:
            self.failed.append(text)
            print(f"FAIL {text} ({time.monotonic() - begun:.1f} s): {failure}", flush=True)
            return False


def witness(name, append="pages=64 interval_ms=200 hot=8", **keys):
    """Definition of a VM with the bare-metal guest; keys as in docs/CONFIGURATION.md, with _ for -."""
    rows = {"memory_mib": 16, "protect": "local", **keys}
    lines = [f"name: {name}", "boot:", "  kernel: /lab/guest/witness.elf", f'  append: "{append}"']
    return "\n".join(lines + [f"{key.replace('_', '-')}: {value}" for key, value in rows.items()]) + "\n"


class Lab:
    def __init__(self, name, build):
        self.name = name
        self.build = Path(build).resolve()
        self.bin = self.build / "bin"
        self.env = {**os.environ, "MAINSTAY_LAB": name}
        self.share = Path("/run/mainstay-lab") / name / "share"
        self._socket = None

    # --- the lab itself ---

    def lab(self, *words, check=True, timeout=300):
        return self._run([LAB, *words], check, timeout)

    def up(self, nodes, coordinators=1, *words):
        self._run([REPO / "deploy/lab/up-with-guests", self.build, "--nodes", str(nodes), "--coordinators", str(coordinators), *words], True, 600)

    def down(self):
        self.lab("down", check=False)

    def inject(self, *words, check=True):
        return self._run([REPO / "deploy/lab/inject", *words], check, 120)

    def status(self):
        """Machines by name, as `lab status --json` shows them."""
        return {row["name"]: row for row in json.loads(self.lab("status", "--json").stdout)["machines"]}

    def pids(self):
        """{(machine, daemon): pid} of the daemons that live."""
        return {(name, daemon): pid for name, row in self.status().items() for daemon, pid in row["pids"].items() if pid.isdigit()}

    # --- in a machine ---

    def command(self, machine, *words):
        return [str(word) for word in (LAB, "exec", machine, *words)]

    def exec(self, machine, *words, check=True, timeout=180, stdin=None):
        """One word is a line for the machine's shell, several are a program and its arguments."""
        return self._run([LAB, "exec", machine, *words], check, timeout, stdin)

    def start(self, machine, *words):
        """The same in the background; its output is both streams."""
        return subprocess.Popen(self.command(machine, *words), env=self.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                stderr=subprocess.STDOUT, text=True)

    def log(self, machine, daemon):
        path = self.share / "log" / machine / f"{daemon}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def events(self, machine, *names, file="events.jsonl"):
        """Events of these names (all when none is given) in the machine's timeline, in the order of the file; agents have one of their own."""
        rows = []
        for suffix in (".1", ""):
            path = self.share / "log" / machine / f"{file}{suffix}"
            for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
                try:
                    row = json.loads(line)
                except ValueError:          # cut by a power failure, or being written
                    continue
                if not names or row.get("event") in names:
                    rows.append(row)
        return rows

    def netem(self, machine, words):
        """What the machine sends into the cluster's network goes through netem; without words no more."""
        if words:
            self.exec(machine, "tc", "qdisc", "replace", "dev", "eth0", "root", "netem", *words.split())
        else:
            self.lab("link", machine, "clear")

    # --- around the machines: the switch's side of their cables, their BMCs' addresses ---

    def netns(self, *words, check=True):
        return self._run(["ip", "-n", f"mst-{self.name}", *words], check, 30)

    def port(self, machine, up):
        """Frames of the machine's cluster link pass, or vanish with its carrier kept: as `lab cut --silent`, in milliseconds."""
        self.netns("link", "set", f"{machine}-cluster", "up" if up else "down")

    def bmc(self, node, there, check=True):
        """The BMC of a node keeps its power and loses its place in the network, or gets it back."""
        self.netns("address", "add" if there else "del", f"10.7.0.{200 + int(node[1:])}/24", "dev", "cluster", check=check)

    # --- mainstayctl ---

    @property
    def socket(self):
        if self._socket is None:
            self._socket = self.lab("socket").stdout.strip()
        return self._socket

    def ctl(self, *words, check=True, timeout=180):
        return self._run([self.bin / "mainstayctl", "--socket", self.socket, "--timeout", "150", *words], check, timeout)

    def view(self, *words, check=True):
        """The JSON that `mainstayctl --json WORDS` prints; None when it fails and check is off."""
        done = self.ctl("--json", *words, check=check)
        return json.loads(done.stdout) if done.returncode == 0 else None

    # --- waiting ---

    def wait(self, what, seconds, condition, interval=0.25):
        """Value of condition() once it is true; Failed after so many seconds."""
        deadline = time.monotonic() + seconds
        while True:
            value = condition()
            if value:
                return value
            if time.monotonic() >= deadline:
                raise Failed(f"not within {seconds} s: {what}")
            time.sleep(interval)

    def life(self, node):
        """What its keeper has logged since it started, and the instance it has in this life (None: it is not up yet)."""
        text = self.log(node, "mainstay-keeper").rpartition("supervise: mainstay-keeper started")[2]
        if "supervise: mainstay-keeper process" in text:
            return "", None                                # it has ended, and the next one is not there yet
        up = re.findall(rf"\] node={node} id=\d+ instance=([0-9a-f]{{16}})", text)
        return text, up[-1] if up else None

    def wait_nodes(self, *names, seconds=90):
        """Until these nodes are up with their agents, and the coordinator means the keepers that live: it notices a while later that one was replaced."""
        def all_up():
            nodes = {row["node"]: row for row in self.view("node", "list", check=False) or []}
            return all(nodes.get(name, {}).get("state") == "up" and nodes[name].get("agent_up") and
                       int(nodes[name]["instance"], 16) == int(self.life(name)[1] or "0", 16) for name in names)
        self.wait(f"nodes {' '.join(names)} are up with their agents", seconds, all_up)

    def vm(self, name):
        return self.view("vm", "show", name, check=False) or {}

    def node(self, name):
        return self.view("node", "show", name, check=False) or {}

    def newest(self, noun):
        """Number of the newest fault or recovery, 0 when there is none."""
        return max((row["id"] for row in self.view(noun, "list")), default=0)

    def define(self, name, text):
        path = self.share / f"{name}.yaml"
        path.write_text(text)
        self.ctl("vm", "define", path, "--replace")

    def remove(self, name):
        self.ctl("vm", "stop", name, check=False)
        self.ctl("vm", "undefine", name, check=False)

    def beats(self, name):
        """Numbers of the beats that its console still has; Failed when the guest says that its memory is broken."""
        text = self.ctl("vm", "console", name, timeout=60).stdout
        need("witness=BROKEN" not in text, f"VM {name} says that its memory is broken: "
             + next((line for line in text.splitlines() if "BROKEN" in line), ""))
        return [int(number) for number in re.findall(r"^beat (\d+) t=\S+ witness=ok", text, re.MULTILINE)]

    def beats_on(self, name, seconds=60):
        first = (self.beats(name) or [0])[-1]

        def another():
            now = (self.beats(name) or [0])[-1]
            return now != first and now
        return f"beat {first} -> {self.wait(f'VM {name} beats (last seen {first})', seconds, another)}"

    def qemus(self, *nodes):
        """{VM: [node, ...]} of the QEMUs that are there, asked of the machines themselves over the management network."""
        found = {}
        for node in nodes:
            # A zombie has no command line any more, and keeps its name. One that waits beside an image is nobody's.
            done = self.exec(node, "for p in /proc/[0-9]*; do read -r c <$p/comm && case $c in mst-*) [ \"$(readlink $p/exe)\" ] && "
                                   "! grep -qsx ${p#/proc/} /run/mainstay/vm/${c#mst-}/standby.pid && echo $c;; esac; "
                                   "done 2>/dev/null; echo all")
            lines = done.stdout.split()
            need(lines[-1:] == ["all"], f"{node} does not say which QEMUs it has: {done.stdout}{done.stderr}")
            for line in lines[:-1]:
                found.setdefault(line.removeprefix("mst-"), []).append(node)
        return found

    def wait_running(self, name, node=None, seconds=90):
        def runs():
            row = self.vm(name)
            return row.get("state") == "running" and (node is None or row.get("node") == node) and row
        return self.wait(f"VM {name} runs" + (f" on {node}" if node else ""), seconds, runs)

    def evidence(self, path, *nodes):
        """What there is to look at after a failure, beside the daemons' logs in the share, into a file."""
        parts = [self.ctl(*words, check=False).stdout for words in (("status",), ("fault", "list"), ("recovery", "list"))]
        parts += ["\n".join(self.log(machine, daemon).splitlines()[-200:])
                  for machine, daemon in (("c1", "mainstay-coordinator"), *((node, "mainstay-keeper") for node in nodes))]
        path.write_text("\n\n".join(parts))

    def drill(self, path, report):
        done = subprocess.run([self.bin / "mainstayctl", "--socket", self.socket, "drill", "run", path, "--injector", REPO / "deploy/lab/inject",
                               "--report", report], env=self.env, stdin=subprocess.DEVNULL, timeout=900)
        need(done.returncode == 0, f"drill {path.stem}: status {done.returncode}; report: {report}")

    def judge(self, so_far=False):
        """Holds what has happened in this lab against the invariants, by the events of every machine (tests/lab/check-invariants); so far: there need
        not have been something of everything. The last line of what it says."""
        done = subprocess.run([REPO / "tests/lab/invariants", *(["--so-far"] if so_far else [])], env={**self.env, "MAINSTAY_BUILD": str(self.build)},
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300)
        need(done.returncode == 0, f"status {done.returncode}:\n{done.stdout}")
        return done.stdout.splitlines()[-1]

    def _run(self, words, check, timeout, stdin=None):
        words = [str(word) for word in words]
        try:
            done = subprocess.run(words, env=self.env, input=stdin, stdin=None if stdin is not None else subprocess.DEVNULL,
                                  stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace", timeout=timeout)
        except subprocess.TimeoutExpired:
            if check:
                raise Failed(f"no end after {timeout} s: {' '.join(words)}") from None
            return subprocess.CompletedProcess(words, 124, "", f"no end after {timeout} s")
        if check and done.returncode != 0:
            raise Failed(f"status {done.returncode} of: {' '.join(words)}\n{done.stdout}{done.stderr}".rstrip())
        return done
