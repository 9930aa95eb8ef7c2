"""What measurements in a lab have in common (tests/bench): perftest on the lab's link, what guests say and when, versions, the lab itself."""
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

from lab import REPO, Failed, Lab, need

MIB = 1 << 20
ADDRESS = {"n1": "10.7.0.1", "n2": "10.7.0.2"}
# What perftest's bandwidth programs are run with; the best way counts. ib_read_bw polls by itself and sleeps with -e: on an emulated node, polling
# takes time from rxe. ib_write_bw can only poll.
READ_WAYS = {f"{size >> 10}K{mode}": (["-s", str(size), *([mode] if mode else [])], size)
             for size in (64 << 10, 256 << 10, 1 << 20) for mode in ("", "-e")}
WRITE_WAYS = {way: words for way, words in READ_WAYS.items() if not way.endswith("-e")}
PERFTEST_TRIES = 5
BW_PORT = 18515             # perftest's own


def note(text):
    print(f"bench: {text}", file=sys.stderr, flush=True)


def other(node):
    return "n2" if node == "n1" else "n1"


def percentile(values, percent):
    """Nearest rank."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)]


# --- perftest -------------------------------------------------------------------------------------------------------------------------

def perftest(lab, program, server, client, options):
    """Last line of figures that the client prints; it READs from the server, or WRITEs into it."""
    for _ in range(PERFTEST_TRIES - 1):
        try:
            return perftest_once(lab, program, server, client, options)
        except Failed as failure:
            if "Correlation coefficient" not in str(failure):       # it could not find out the clock's rate: the host is busy
                raise
            note(f"{program} once more: " + next(line for line in str(failure).splitlines() if "Correlation" in line))
    return perftest_once(lab, program, server, client, options)


def perftest_once(lab, program, server, client, options):
    words = ["timeout", "100", program, "-d", "rxe0", "-p", str(BW_PORT), *options]
    process = lab.start(server, *words)

    def listens():
        need(process.poll() is None, f"{program} on {server} has ended before it was called")
        return lab.exec(server, f"busybox netstat -ltn | grep -q :{BW_PORT}", check=False).returncode == 0
    try:
        lab.wait(f"{program} listens on {server}", 60, listens)
        done = lab.exec(client, *words, ADDRESS[server])
        process.wait(30)
    except Failed as failure:
        process.kill()
        raise Failed(f"{failure}\n{program} on {server}: {process.stdout.read()}") from None
    finally:
        process.kill()
        process.wait()
    rows = [line.split() for line in done.stdout.splitlines() if re.match(r"\s*\d+\s+\d+\s+[\d.]", line)]
    if not rows:
        raise Failed(f"{program} printed no figures:\n{done.stdout}{done.stderr}")
    return [float(word) for word in rows[-1]]


def bandwidth(lab, program, server, client, way, volume):
    """MiB/s (perftest's MB are 2^20), average over so many bytes; way: of READ_WAYS or WRITE_WAYS."""
    words, size = way
    return perftest(lab, program, server, client, [*words, "-n", str(max(8, volume // size))])[3]


def choose_way(lab, program, ways, directions):
    """Median of what the program gets in each of its ways, once for each direction (server, client), and the name of the best way."""
    values = {way: [] for way in ways}
    for server, client in directions:
        for way, words in ways.items():
            values[way].append(bandwidth(lab, program, server, client, words, 16 * MIB))
        note(f"{program}, {client} to {server}: " + " ".join(f"{way} {row[-1]:.1f}" for way, row in values.items()))
    return max(values, key=lambda way: statistics.median(values[way])), values


# --- guests ---------------------------------------------------------------------------------------------------------------------------

class Console:
    """Beats of a VM, and what it says of its work, with the host's time at which they were seen; goes on over moves."""

    def __init__(self, lab, name):
        self.beats = []
        self.work = []
        self.broken = []
        self._process = subprocess.Popen([lab.bin / "mainstayctl", "--socket", lab.socket, "vm", "console", name, "--follow"],
                                         stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self):
        for line in self._process.stdout:
            seen = time.monotonic()
            text = line.decode(errors="replace")
            beat = re.search(r"beat (\d+) .*witness=(\w+)", text)
            work = re.match(r"work (\d+)\r?\n", text)
            if beat:
                self.beats.append((seen, int(beat.group(1))))
                if beat.group(2) != "ok":
                    self.broken.append(text.strip())
            elif work:
                self.work.append((seen, int(work.group(1))))

    def close(self):
        self._process.kill()
        self._process.wait()
        self._thread.join(5)

    def longest_gap(self, since):
        """(milliseconds, time of the first beat after it, beats that were never seen) of the longest silence that ended after since."""
        gaps = [(after[0] - before[0], after[0], after[1] - before[1] - 1)
                for before, after in zip(self.beats, self.beats[1:]) if after[0] > since]
        if not gaps:
            raise Failed("no beat came after the move")
        gap = max(gaps)
        return gap[0] * 1000, gap[1], gap[2]


# --- where it was measured ------------------------------------------------------------------------------------------------------------

def first_line(*words):
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=REPO, check=False)
    return done.stdout.splitlines()[0] if done.stdout else "?"


def versions(build):
    cache = (build / "CMakeCache.txt").read_text()
    return {"mainstay": first_line("git", "describe", "--always", "--dirty"),
            "build": re.search(r"CMAKE_BUILD_TYPE:\w+=(\w*)", cache).group(1), "host_kernel": os.uname().release,
            "qemu": first_line("qemu-system-x86_64", "--version"),
            "perftest": first_line("dpkg-query", "-W", "-f", "${Version}", "perftest"),
            "cpu": re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text()).group(1), "cores": os.cpu_count()}


def lab_versions(lab):
    settings = json.loads(lab.lab("status", "--json").stdout)
    return {**versions(lab.build), "accel": settings["accel"], "node_kernel": settings["kernel_version"]}


def host(name):
    """How busy the host is, and with which labs besides this one."""
    labs = Path("/run/mainstay-lab")
    return {"load": os.getloadavg(),
            "other_labs": sorted(path.name for path in labs.iterdir() if path.is_dir() and path.name != name) if labs.exists() else []}


# --- the run --------------------------------------------------------------------------------------------------------------------------

def terminated(number, _frame):
    sys.exit(128 + number)


def run(options, measure, memory_mib=None):
    """measure(lab, options) in the lab that --lab names and that is up, or in one called bench that is brought up for it and taken down again.
    Its report, or the exit status when there is none."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, terminated)
    lab = Lab(options.lab or "bench", options.build)
    ours = False
    try:
        if not options.lab:
            if lab.share.parent.exists():
                raise Failed("a lab called bench is there already: `deploy/lab/lab --name bench down`, or --lab bench")
            ours = True
            lab.up(2, 1, *([] if memory_mib is None else ["--memory-mib", str(memory_mib)]))
        lab.wait_nodes("n1", "n2")
        begin = host(lab.name)
        report = {"versions": lab_versions(lab), **measure(lab, options)}
        return {**report, "host": {"begin": begin, "end": host(lab.name)}}
    except Failed as failure:
        print(f"bench: {failure}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    finally:
        if ours:
            lab.down()
