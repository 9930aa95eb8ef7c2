// A small key-value server in the Linux guest, for tests that ask from outside whether anything that was answered is ever undone.
#ifndef GUEST_SERVE_H
#define GUEST_SERVE_H

#include <stdint.h>
#include <sys/types.h>

// Brings eth0 up as 10.9.0.HOST/24 and starts the server, a process of its own, on TCP port 7778. All it knows is in its memory.
// One line each way, answered in order; KEY is below 64, N fits 64 bits:
//
//   hello N     life M          M: the N of the first hello that this memory has heard. Another M than before: the memory of before is gone
//   set KEY N   ok KEY N WAS    stored; WAS was there before (0: nothing)
//               old KEY N IS    not stored, as numbers of a key only grow: a write that its client gave up may come late
//   get KEY     is KEY N
//   fill N      N bytes         'a' + (bytes left) % 26 each, the last one a newline: a long answer, at most 1 MiB
//
// Anything else ends the connection. Beyond 64 connections the one that was silent longest is closed.
// Returns the server's pid, or -1 with errno. The server ends only when it fails, having said why on the console.
pid_t serve_start(uint32_t host);

#endif
