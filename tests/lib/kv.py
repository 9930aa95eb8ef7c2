"""A client of the Linux guest's server (tests/guest/linux/serve.h), and the judge of what it saw: was anything that was answered undone?

`python3 kv.py HOST --history FILE` writes and reads without pause over many connections until its standard input ends. Each line there is a word that is
answered by one line of JSON, what has happened since the last one: `report` at once, `sweep` when every key has been asked for, and answered, after now.

A key has one writer, and its numbers only grow, one by one; so a value that is smaller than one that had been acknowledged, or read, before the question
was sent has been undone. A write whose answer never came may be there or not, until somebody has seen it. Each `set` is answered with what it replaced: an
acknowledged write that was lost is noticed though the next one covers it."""
import argparse
import asyncio
import collections
import itertools
import json
import os
import random
import socket
import struct
import sys
import time

PORT = 7778
KEYS = 24
WRITERS = 12                       # connections; each writes its own keys in turn
READERS = 4                        # read any key
BULK_BYTES = 16384                 # of a long answer
PACE_S = 0.5                       # from question to question of a connection at least: an emulated guest in an emulated node answers some 30 in a second
STALL_S = 3                        # a question that is open for so long: is the guest there at all?
HAIL_S = 10                        # so often one more connection tries to find out, as a SYN that is lost is sent again later and later
CONNECT_S, HELLO_S = 30, 60        # for a connection, and its first answer, to come about: each may wait for a checkpoint
GRACE_S = 5                        # the guest is there: so long at least the old connection may still go on by itself
LONG_ANSWER = bytes(ord("a") + left % 26 for left in range(BULK_BYTES, 1, -1)) + b"\n"


class Judge:
    """What is known of each key, from a history event by event, in the order in which its one client saw them.

    begin(number, key, seq)   a question is sent: `set key seq`, or `get key` when seq is None
    end(number, value)        its answer has come: the value (set: the one that was replaced). Without it: outcome unknown
    life(number)              a connection was told whose memory it speaks to
    breach(text)              what the client itself found wrong
    Violations are sentences; a loss is told once, whoever else notices it."""

    def __init__(self):
        self.known = collections.Counter()     # by key: the largest number acknowledged or read
        self.sent = collections.Counter()      # by key: the largest number written
        self.losses = collections.Counter()    # by key
        self.open = {}
        self.alive = None
        self.acknowledged = self.read = self.undone = 0
        self.violations = []

    def begin(self, number, key, seq=None):
        self.open[number] = (key, seq, self.known[key], self.losses[key])
        if seq is not None:
            self.sent[key] = max(self.sent[key], seq)

    def end(self, number, value):
        key, seq, known, losses = self.open.pop(number)
        largest = self.sent[key] if seq is None else seq - 1
        if seq is None:
            self.read += 1
        else:
            self.acknowledged += 1
        if value > largest:
            self.breach(f"key {key} was {value}, and {largest} is the largest that could be there")
        if value < known and losses == self.losses[key]:
            self.lose(key, value, f"key {key} went back from {known} to {value}")
        self.known[key] = max(self.known[key], value, seq or 0)

    def lose(self, key, value, text):
        self.undone += self.known[key] - value
        self.losses[key] += 1
        self.known[key] = value
        if text:
            self.breach(text)

    def life(self, number):
        if self.alive not in (None, number):
            self.breach(f"the guest's memory is another one: life {number} after {self.alive}")
            for key in [key for key in self.known if self.known[key]]:
                self.lose(key, 0, None)
        self.alive = number

    def breach(self, text):
        self.violations.append(text)

    def tell(self, event, *arguments):
        """The same by its name, as a line of a history has it."""
        {"begin": self.begin, "end": self.end, "life": self.life, "breach": self.breach}[event](*arguments)


class Client:
    def __init__(self, host, port, history, seed, bulk):
        self.host, self.port, self.history, self.random = host, port, history, random.Random(seed)
        self.judge, self.written, self.questions = Judge(), collections.Counter(), 0
        self.streams = [self.writing(range(i, KEYS, WRITERS)) for i in range(WRITERS)]
        self.streams += [self.reading() for _ in range(READERS)] + [self.filling() for _ in range(bulk)]
        self.unswept, self.sweep_from, self.swept = set(), 0, asyncio.Event()
        self.counts = collections.Counter()    # lost (connections that were given up, or ended), bulk (bytes)
        self.scouting = None
        self.gap, self.last_ack = 0.0, time.monotonic()
        self.told, self.told_violations = collections.Counter(), 0

    def tell(self, event, *arguments):
        self.history.write(json.dumps([event, *arguments, round(time.time(), 3)]) + "\n")
        self.judge.tell(event, *arguments)

    # --- connections ---

    async def connect(self):
        """(reader, writer, seconds the first answer took). OSError, or TimeoutError."""
        async with asyncio.timeout(CONNECT_S):
            reader, writer = await asyncio.open_connection(self.host, self.port, limit=2 * BULK_BYTES)
        try:
            # Closed, it is gone at once, and the guest is told.
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            begun = time.monotonic()
            writer.write(f"hello {random.SystemRandom().randrange(1, 1 << 63)}\n".encode())   # never the same again: a memory that lost the first takes another
            async with asyncio.timeout(HELLO_S):
                words = (await reader.readuntil()).split()
        except BaseException:
            writer.transport.abort()
            raise
        self.tell("life", int(words[1]))
        return reader, writer, time.monotonic() - begun

    async def hail(self):
        """Seconds that an answer takes now; None: there was none."""
        try:
            _, writer, took = await self.connect()
        except (OSError, EOFError):            # TimeoutError is an OSError
            await asyncio.sleep(1)
            return None
        writer.transport.abort()
        return took

    async def scout(self):
        """Until a connection that is begun now or later has had its first answer; what hail says."""
        hails = set()
        while True:
            hails.add(asyncio.create_task(self.hail()))
            done, hails = await asyncio.wait(hails, timeout=HAIL_S, return_when=asyncio.FIRST_COMPLETED)
            took = [one.result() for one in done if one.result() is not None]
            if took:
                for one in hails:
                    one.cancel()
                return took[0]

    def reached(self):
        """A task that ends when the guest has been reached after now; everybody waits for the same one."""
        if self.scouting is None or self.scouting.done():
            self.scouting = asyncio.create_task(self.scout())
        return self.scouting

    async def answer(self, reader):
        """The answer to what was asked. TimeoutError: none came, though the guest has been there for long enough."""
        reading = asyncio.create_task(reader.readuntil())
        try:
            done, _ = await asyncio.wait({reading}, timeout=STALL_S)
            if not done:
                reached = self.reached()
                await asyncio.wait({reading, reached}, return_when=asyncio.FIRST_COMPLETED)
                # Both sides may have to send again, later and later, and then wait for a checkpoint.
                async with asyncio.timeout(max(GRACE_S, 3 * reached.result()) if reached.done() else GRACE_S):
                    await asyncio.shield(reading)
            return await reading
        finally:
            reading.cancel()

    # --- what they are for: questions without end, (line, key, seq) ---

    def writing(self, keys):
        for key in itertools.cycle(keys):
            self.written[key] += 1
            yield f"set {key} {self.written[key]}", key, self.written[key]

    def reading(self):
        while True:
            key = self.random.randrange(KEYS)
            yield f"get {key}", key, None

    def filling(self):
        while True:
            yield f"fill {BULK_BYTES}", None, None

    def take(self, number, line, key, seq, answer):
        """Judges the answer to a question. ConnectionError: it is another one's; what comes after it is worth nothing."""
        begins = f"is {key} " if seq is None else f"ok {key} {seq} "
        value = answer.decode(errors="replace").removeprefix(begins).strip()
        if answer != LONG_ANSWER if key is None else not value.isdigit():
            self.tell("breach", f"'{line}' was answered with {len(answer)} bytes: {answer[:80]!r}")
            raise ConnectionError
        if key is None:
            self.counts["bulk"] += len(answer)
            return
        self.tell("end", number, int(value))
        if seq is not None:
            now = time.monotonic()
            self.gap, self.last_ack = max(self.gap, now - self.last_ack), now
        if number > self.sweep_from:
            self.unswept.discard(key)
            if not self.unswept:
                self.swept.set()

    async def converse(self, questions, reader, writer):
        """Question and answer over one connection, as long as it holds."""
        for line, key, seq in questions:
            self.questions += 1
            number, due = self.questions, time.monotonic() + PACE_S
            if key is not None:
                self.tell("begin", number, key, seq)
            writer.write(line.encode() + b"\n")
            self.take(number, line, key, seq, await self.answer(reader))
            await asyncio.sleep(max(0, due - time.monotonic()))

    async def work(self, questions):
        """One connection after the other. A question whose answer did not come is not asked again: its outcome is unknown."""
        while True:
            await self.reached()               # one at a time tries in vain: all of them would keep a slow guest from ever answering
            try:
                reader, writer, _ = await self.connect()
            except (OSError, EOFError):
                continue
            try:
                await self.converse(questions, reader, writer)
            except (OSError, EOFError):
                self.counts["lost"] += 1
            finally:
                writer.transport.abort()

    # --- commands ---

    def report(self):
        """gap_s: the longest time without an acknowledged write; undone: numbers that keys went back by."""
        now = time.monotonic()
        total = collections.Counter(self.counts, acknowledged=self.judge.acknowledged, read=self.judge.read, undone=self.judge.undone)
        row = {key: total[key] - self.told[key] for key in ("acknowledged", "read", "undone", "lost", "bulk")}
        row.update(gap_s=round(max(self.gap, now - self.last_ack), 2), violations=self.judge.violations[self.told_violations:])
        self.told, self.told_violations, self.gap = total, len(self.judge.violations), 0.0
        self.history.flush()
        print(json.dumps(row), flush=True)

    async def sweep(self):
        """Until every key has been asked for, and answered, after now."""
        self.unswept, self.sweep_from = set(range(KEYS)), self.questions
        self.swept.clear()
        await self.swept.wait()

    async def run(self, commands):
        """commands: a coroutine that says when it is over."""
        async with asyncio.TaskGroup() as group:
            working = [group.create_task(self.work(questions)) for questions in self.streams]
            await commands
            for one in working:
                one.cancel()

    async def obey(self):
        """Words of standard input, until it ends."""
        words = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(words), sys.stdin)
        while line := await words.readline():
            if line == b"sweep\n":
                await self.sweep()
            self.report()


def judge(history):
    one = Judge()
    for event in history:
        one.tell(*event)
    return one


# Histories made by hand: what happened, and how many violations the judge has to find in it.
TOLD = {
    "all is well": (0, [("life", 7), ("begin", 1, 0, 1), ("end", 1, 0), ("begin", 2, 0), ("end", 2, 1), ("begin", 3, 0, 2), ("end", 3, 1), ("life", 7)]),
    "a write without an answer may be there": (0, [("begin", 1, 0, 1), ("end", 1, 0), ("begin", 2, 0, 2), ("begin", 3, 0), ("end", 3, 2)]),
    "or not": (0, [("begin", 1, 0, 1), ("end", 1, 0), ("begin", 2, 0, 2), ("begin", 3, 0), ("end", 3, 1), ("begin", 4, 0, 3), ("end", 4, 1)]),
    "and come about later": (0, [("begin", 1, 0, 1), ("begin", 2, 0), ("end", 2, 0), ("begin", 3, 0), ("end", 3, 1)]),
    "a read may be overtaken by a write that is acknowledged first": (0, [("begin", 1, 0), ("begin", 2, 0, 1), ("end", 2, 0), ("end", 1, 0)]),
    "keys have nothing to do with each other": (0, [("begin", 1, 0, 1), ("end", 1, 0), ("begin", 2, 1), ("end", 2, 0)]),
    "an acknowledged write is gone, a read says": (1, [("begin", 1, 0, 1), ("end", 1, 0), ("begin", 2, 0), ("end", 2, 0)]),
    "an acknowledged write is gone, the next one covers it": (1, [("begin", 1, 0, 1), ("end", 1, 0), ("begin", 2, 0, 2), ("end", 2, 0),
                                                                 ("begin", 3, 0), ("end", 3, 2)]),
    "what was read is gone": (1, [("begin", 1, 0, 1), ("begin", 2, 0), ("end", 2, 1), ("begin", 3, 0), ("end", 3, 0)]),
    "the memory is another one": (1, [("life", 7), ("begin", 1, 0, 1), ("end", 1, 0), ("life", 8), ("begin", 2, 0), ("end", 2, 0)]),
    "a value that nobody wrote": (1, [("begin", 1, 0, 1), ("end", 1, 0), ("begin", 2, 0), ("end", 2, 5)]),
    "a write that replaces what is newer": (1, [("begin", 1, 0, 1), ("end", 1, 1)]),
    "one loss is told once": (1, [("begin", 1, 0, 1), ("end", 1, 0), ("begin", 2, 0), ("begin", 3, 0), ("end", 2, 0), ("end", 3, 0), ("begin", 4, 0), ("end", 4, 0)]),
    "two losses are two": (2, [("begin", 1, 0, 1), ("end", 1, 0), ("begin", 2, 0), ("end", 2, 0), ("begin", 3, 0, 2), ("end", 3, 0), ("begin", 4, 0), ("end", 4, 0)]),
    "two keys are two": (2, [("begin", 1, 0, 1), ("end", 1, 0), ("begin", 2, 1, 1), ("end", 2, 0), ("begin", 3, 0), ("end", 3, 0), ("begin", 4, 1), ("end", 4, 0)]),
    "what the client found itself": (1, [("breach", "an answer to nothing")]),
}


class Forgetful:
    """A server whose memory can be taken back."""

    def __init__(self):
        self.memory, self.writers, self.serving = {}, set(), set()  # key: number; "life"

    async def serve(self, reader, writer):
        self.writers.add(writer)
        self.serving.add(asyncio.current_task())
        while line := await reader.readline():
            word, *numbers = line.decode().split()
            numbers = [int(number) for number in numbers]
            if word == "hello":
                writer.write(b"life %d\n" % self.memory.setdefault("life", numbers[0]))
            elif word == "get":
                writer.write(b"is %d %d\n" % (numbers[0], self.memory.get(numbers[0], 0)))
            else:
                writer.write(b"ok %d %d %d\n" % (*numbers, self.memory.get(numbers[0], 0)))
                self.memory[numbers[0]] = numbers[1]

    def become(self, memory):
        """As after a cut: this is what is left, and no connection."""
        self.memory = memory
        for writer in self.writers:
            writer.transport.abort()
        self.writers.clear()


async def against_forgetful():
    """Violations after connections were cut; after the memory went back as well; after it was lost: [sentences] each."""
    server = Forgetful()
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    found = []
    with open(os.devnull, "w", encoding="ascii") as history:
        client = Client("127.0.0.1", listener.sockets[0].getsockname()[1], history, "0", 0)

        async def story():
            await client.sweep()
            before = dict(server.memory)
            await client.sweep()
            for memory in (server.memory, before, {}):
                seen = len(client.judge.violations)
                server.become(memory)
                await client.sweep()
                found.append(client.judge.violations[seen:])
        await client.run(story())
    listener.close()
    server.become({})
    await asyncio.wait(server.serving)
    return found


def self_test():
    """Whether the judge finds in each of TOLD what there is, and no more; and client and judge what a server undid."""
    failed = []

    def check(text, holds, detail):
        print(f"{'ok  ' if holds else 'FAIL'} {text}: {detail}")
        failed.extend([] if holds else [text])
    for text, (wanted, history) in TOLD.items():
        found = judge(history).violations
        check(text, len(found) == wanted, f"{wanted} wanted, found {found}")
    cut, undone, lost = asyncio.run(against_forgetful())
    check("a server that loses its connections has undone nothing", not cut, f"found {cut}")
    check("one that goes back has, to every key", len(undone) == KEYS and all("went back" in text for text in undone), f"found {len(undone)}: {undone[:2]}")
    check("one that has lost its memory is known", any("another one" in text for text in lost), f"found {len(lost)}: {lost[:2]}")
    return not failed


def main():
    words = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    words.add_argument("host")
    words.add_argument("--history", required=True, help="a file: what was asked and answered, a line of JSON each")
    words.add_argument("--seed", default="0", help="of what readers read")
    words.add_argument("--bulk", type=int, default=0, metavar="N", help="connections that ask for long answers")
    options = words.parse_args()
    with open(options.history, "w", encoding="ascii") as history:
        client = Client(options.host, PORT, history, options.seed, options.bulk)
        asyncio.run(client.run(client.obey()))


if __name__ == "__main__":
    main()
