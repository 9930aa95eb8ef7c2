#include "files.h"

#include <check.h>
#include <errno.h>
#include <grp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static struct mst_why why;

/* A file, and the sentence behind "FILE:" that refuses it. */
struct bad {
    enum kind kind;
    const char *text, *says;
};

#define NODE_HEAD  "cluster: lab\nnode: n1\nid: 1\naddress: 10.7.0.1\nmemory-mib: 16\nvcpus: 1\n" /* six lines */
#define NODE_COORD "coordinators: [{address: 10.7.0.101}]\n"
#define COORD_HEAD "cluster: lab\nid: 1\naddress: 10.7.0.101\n" /* three lines */
#define COORD_NODE "nodes: [{name: n1, id: 1, address: 10.7.0.1}]\n"
#define VM_HEAD    "name: web01\nmemory-mib: 16\n" /* two lines */
#define VM_BOOT    "boot: {kernel: /k}\n"
#define DRILL_HEAD "name: d\nvms: [{definition: a.yaml, name: a}]\n" /* two lines */

static const struct bad bads[] = {
    /* YAML itself */
    {NODE, "", "1: YAML: the file is empty, lines of KEY: VALUE are wanted"},
    {NODE, "\n# nothing\n", "1: YAML: the file is empty, lines of KEY: VALUE are wanted"},
    {NODE, "---\n", "1: YAML: the file is empty, lines of KEY: VALUE are wanted"},
    {NODE, "\nhello\n", "2: YAML: lines of KEY: VALUE are wanted"},
    {NODE, "- a\n- b\n", "1: YAML: lines of KEY: VALUE are wanted"},
    {NODE, "cluster: lab\nnode: [n1\nid: 1\n", "3: YAML: did not find expected ',' or ']'"},
    {NODE, "cluster: lab\n\tnode: n1\n", "2: YAML: found a tab character that violates indentation"},
    {NODE, "cluster: \"lab\nnode: n1\n", "3: YAML: found unexpected end of stream"},
    {NODE, "cluster: lab\nnode: \xff\n", "2: YAML: invalid leading UTF-8 octet"},
    {NODE, "cluster: lab\nnode: a\x01z\n", "2: YAML: control characters are not allowed"},
    {NODE, NODE_HEAD NODE_COORD "---\nx: y\n", "8: YAML: a second document (---) follows, one is allowed"},
    {NODE, NODE_HEAD "coordinators: &c [{address: 10.7.0.101}]\nrack: *c\n",
     "7: YAML: anchors and aliases (&, *) are not supported, write the value where it belongs"},
    {NODE, "cluster: &a [*a]\n", "1: YAML: anchors and aliases (&, *) are not supported, write the value where it belongs"},
    {NODE, "cluster: lab\nnode: *nobody\n",
     "2: YAML: anchors and aliases (&, *) are not supported, write the value where it belongs"},
    {NODE, "cluster: lab\nid: !!int 1\n", "2: YAML: tags (!...) are not supported, write the value alone"},
    {NODE, "cluster: lab\n[a, b]: c\n", "2: ?: is not a key, wanted are lines of KEY: VALUE"},
    {NODE, "cluster: lab\n? {a: b}\n: c\n", "2: ?: is not a key, wanted are lines of KEY: VALUE"},
    {NODE, "cluster: [[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]\n", "1: cluster: is a list, wanted is a text"},
    {NODE, "cluster:\n  [[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]\n",
     "2: YAML: lists and mappings are nested too deeply, allowed are 16 levels"},
    /* keys */
    {NODE, "cluster: lab\nnode: n1\ncluster: lab2\n", "3: cluster: is given twice, the first time in line 1"},
    {NODE, NODE_HEAD "adress: 10.0.0.1\n",
     "7: adress: is not a key, did you mean address; allowed: cluster, node, id, address, port, rack, coordinators, "
     "main-storage, "
     "memory-mib, vcpus, run-dir, state-dir, events-file, cgroup, agent, exec, qemu, accel, on-lease-lost, bridge, "
     "mirror-scrub-s, standby-memory-mib, watchdog, management"},
    {NODE, NODE_HEAD "memory_mib: 16\n",
     "7: memory_mib: is not a key, did you mean memory-mib; allowed: cluster, node, id, address, port, rack, coordinators, "
     "main-storage, memory-mib, vcpus, run-dir, state-dir, events-file, cgroup, agent, exec, qemu, accel, on-lease-lost, bridge, "
     "mirror-scrub-s, standby-memory-mib, watchdog, management"},
    {NODE, NODE_HEAD "mirror-scrub-s: 0\n", "7: mirror-scrub-s: 0 is out of range, allowed 1..86400"},
    {NODE, NODE_HEAD "coordinators:\n  - address: 10.0.0.1\n    prot: 1\n",
     "9: coordinators[0].prot: is not a key, did you mean port; allowed: address, port, management-address"},
    {NODE, NODE_HEAD "coordinators:\n  - address: 10.0.0.1\n    weight: 1\n",
     "9: coordinators[0].weight: is not a key; allowed: address, port, management-address"},
    {NODE, "node: n1\n", "1: cluster: is missing, it has to be given"},
    {NODE, NODE_HEAD, "1: coordinators: is missing, it has to be given"},
    {NODE, NODE_HEAD "coordinators:\n  - address: 10.0.0.1\n  - port: 7\n",
     "9: coordinators[1].address: is missing, it has to be given"},
    /* kinds of values */
    {NODE, "cluster:\nnode: n1\n", "1: cluster: has no value, wanted is a text"},
    {NODE, "cluster: ~\n", "1: cluster: has no value, wanted is a text"},
    {NODE, "cluster: null\n", "1: cluster: has no value, wanted is a text"},
    {NODE, "cluster: lab\nnode: [n1]\n", "2: node: is a list, wanted is a text"},
    {NODE, "cluster: lab\nnode: {n1: 1}\n", "2: node: is a mapping, wanted is a text"},
    {NODE, "cluster: lab\nid: [1]\n", "2: id: is a list, wanted is a whole number 1..1023"},
    {NODE, "cluster: lab\nid:\n", "2: id: has no value, wanted is a whole number 1..1023"},
    {NODE, "cluster: lab\ncoordinators: 10.0.0.1\n", "2: coordinators: is not a list, wanted is a list of 1..8 entries"},
    {NODE, "cluster: lab\ncoordinators: []\n", "2: coordinators: has 0 entries, allowed 1..8"},
    {NODE, "cluster: lab\ncoordinators: [1,2,3,4,5,6,7,8,9]\n", "2: coordinators: has 9 entries, allowed 1..8"},
    {NODE, "cluster: lab\ncoordinators: [10.0.0.1]\n", "2: coordinators[0]: is not a mapping, wanted are lines of KEY: VALUE"},
    {NODE, "cluster: \"a\\0b\"\n", "1: cluster: has a zero byte, wanted is a text"},
    {NODE, "cluster: lab\nrack: \"a\\nb\"\n", "2: rack: 'a?b' is not allowed, it has control characters or is not UTF-8"},
    /* numbers */
    {NODE, "id: one\n", "1: id: 'one' is not a whole number 1..1023"},
    {NODE, "id: -1\n", "1: id: '-1' is not a whole number 1..1023"},
    {NODE, "id: 1.5\n", "1: id: '1.5' is not a whole number 1..1023"},
    {NODE, "id: 0x10\n", "1: id: '0x10' is not a whole number 1..1023"},
    {NODE, "id: 010\n", "1: id: '010' is not a whole number 1..1023"},
    {NODE, "id: \"\"\n", "1: id: '' is not a whole number 1..1023"},
    {NODE, "id: 0\n", "1: id: 0 is out of range, allowed 1..1023"},
    {NODE, "id: 1024\n", "1: id: 1024 is out of range, allowed 1..1023"},
    {NODE, "id: 18446744073709551617\n", "1: id: 18446744073709551617 is out of range, allowed 1..1023"},
    {NODE, "port: 65536\n", "1: port: 65536 is out of range, allowed 1..65535"},
    {NODE, "port: 0\n", "1: port: 0 is out of range, allowed 1..65535"},
    {NODE, "memory-mib: 512M\n", "1: memory-mib: '512M' is not a whole number 1..16777216"},
    /* texts */
    {NODE, "cluster: Lab\n", "1: cluster: 'Lab' is not a name, allowed 1..63 of a-z 0-9 -, not starting with -"},
    {NODE, "cluster: -lab\n", "1: cluster: '-lab' is not a name, allowed 1..63 of a-z 0-9 -, not starting with -"},
    {NODE, "cluster: 0123456789012345678901234567890123456789012345678901234567890123\n",
     "1: cluster: '0123456789012345678901234567890123456789...' is not a name, allowed 1..63 of a-z 0-9 -, not starting with -"},
    {NODE, "address: localhost\n",
     "1: address: 'localhost' is not a numeric address, allowed are addresses like 10.7.0.1 and fd00::1"},
    {NODE, "address: 10.7.1\n", "1: address: '10.7.1' is not a numeric address, allowed are addresses like 10.7.0.1 and fd00::1"},
    {NODE, "address: 10.7.0.256\n",
     "1: address: '10.7.0.256' is not a numeric address, allowed are addresses like 10.7.0.1 and fd00::1"},
    {NODE, "qemu: qemu-system\n", "1: qemu: 'qemu-system' is not an absolute path, allowed are paths that start with /"},
    {NODE, "run-dir: /run/0123456789012345678901234567890123456789012345678901234567890123456789012345\n",
     "1: run-dir: '/run/01234567890123456789012345678901234...' has 81 bytes, allowed 1..80"},
    {NODE, "accel: kwm\n", "1: accel: 'kwm' is not known, did you mean kvm; allowed: auto, kvm, tcg"},
    {NODE, "on-lease-lost: runon\n", "1: on-lease-lost: 'runon' is not known, did you mean run-on; allowed: stop, run-on"},
    {NODE, "watchdog: /dev/watchdog0\n", "1: watchdog: is not a mapping, wanted are lines of KEY: VALUE"},
    {NODE, "watchdog: {device: /dev/watchdog0, timeout-s: 601}\n", "1: watchdog.timeout-s: 601 is out of range, allowed 1..600"},
    {NODE, NODE_HEAD NODE_COORD "watchdog: {device: /dev/watchdog0}\n", "8: watchdog.timeout-s: is missing, it has to be given"},
    {NODE, "watchdog: {device: /dev/watchdog0, timeout-s: 10, kind: software}\n",
     "1: watchdog.kind: 'software' is not known; allowed: hardware, softdog"},
    {NODE, "accel: hardware\n", "1: accel: 'hardware' is not known; allowed: auto, kvm, tcg"},
    {NODE, NODE_HEAD "coordinators:\n  - address: 10.0.0.1\n  - address: 10.0.0.1\n    port: 7470\n",
     "9: coordinators[1]: 10.0.0.1 port 7470 is listed twice, each coordinator is allowed once"},
    /* coordinator */
    {COORDINATOR, COORD_HEAD "nodes: [{name: n1, id: 1, address: 10.7.0.1, rack: \"\"}]\n",
     "4: nodes[0].rack: '' has 0 bytes, allowed 1..63"},
    {COORDINATOR, COORD_HEAD "mirror-lag-ms: 3999\n" COORD_NODE,
     "4: mirror-lag-ms: 3999 is too short, as mirrors are told of once a second; allowed are 0 and 4000..600000"},
    {COORDINATOR, COORD_HEAD "store: {}\n" COORD_NODE, "4: store.etcd: is missing, it has to be given"},
    {COORDINATOR, COORD_HEAD "store: {etcd: {prefix: /a}}\n" COORD_NODE,
     "4: store.etcd.endpoints: is missing, it has to be given"},
    {COORDINATOR, COORD_HEAD "store: {etcd: {endpoints: [10.0.0.1:2379]}}\n" COORD_NODE,
     "4: store.etcd.endpoints[0]: '10.0.0.1:2379' is no endpoint, allowed are http://HOST:PORT and https://HOST:PORT"},
    {COORDINATOR, COORD_HEAD "store: {etcd: {endpoints: [http://a:1/b]}}\n" COORD_NODE,
     "4: store.etcd.endpoints[0]: 'http://a:1/b' is no endpoint, allowed are http://HOST:PORT and https://HOST:PORT"},
    {COORDINATOR, COORD_HEAD "store: {etcd: {endpoints: [http://a:1, http://a:1]}}\n" COORD_NODE,
     "4: store.etcd.endpoints[1]: is endpoints[0] once more, each is allowed once"},
    {COORDINATOR, COORD_HEAD "store: {etcd: {endpoints: [http://a:1], ca-file: /ca}}\n" COORD_NODE,
     "4: store.etcd.endpoints[0]: 'http://a:1' is not encrypted, with ca-file allowed is https://HOST:PORT"},
    {COORDINATOR, COORD_HEAD "store: {etcd: {endpoints: [https://a:1], ca-file: /ca, key-file: /key}}\n" COORD_NODE,
     "4: store.etcd.key-file: stands alone, allowed are cert-file and key-file together, or none"},
    {COORDINATOR, COORD_HEAD "store: {etcd: {endpoints: [https://a:1], cert-file: /c, key-file: /key}}\n" COORD_NODE,
     "4: store.etcd.cert-file: stands without ca-file, allowed is with it"},
    {COORDINATOR, COORD_HEAD "store: {etcd: {endpoints: [http://a:1], lease-ms: 1000}}\n" COORD_NODE,
     "4: store.etcd.lease-ms: 1000 is out of range, allowed 2000..60000"},
    {COORDINATOR, COORD_HEAD "store: {etcd: {endpoints: [http://a:1], lease-ms: 2500}}\n" COORD_NODE,
     "4: store.etcd.lease-ms: 2500 is no whole number of seconds, which is all etcd has: 2000..60000"},
    {COORDINATOR, COORD_HEAD "store: {etcd: {endpoints: [http://a:1], prefix: a}}\n" COORD_NODE,
     "4: store.etcd.prefix: 'a' has no / at its beginning or has one at its end, allowed is /NAME/..."},
    {COORDINATOR, COORD_HEAD "store: {etcd: {endpoints: [http://a:1], ca-file: ca}}\n" COORD_NODE,
     "4: store.etcd.ca-file: 'ca' is not an absolute path, allowed are paths that start with /"},
    {COORDINATOR, COORD_HEAD "watch-interval-ms: 4\n", "4: watch-interval-ms: 4 is out of range, allowed 5..10000"},
    {COORDINATOR, COORD_HEAD "watch-interval-ms: 1000\n" COORD_NODE,
     "1: agent-silent-ms: 3000 is too short for watch-interval-ms 1000, allowed is more than 3 times as much: 3001..600000"},
    {COORDINATOR, COORD_HEAD "keeper-silent-ms: 150\n" COORD_NODE,
     "4: keeper-silent-ms: 150 is too short for watch-interval-ms 50, allowed is more than 3 times as much: 151..600000"},
    {COORDINATOR, COORD_HEAD "node-starts-max: 1\n", "4: node-starts-max: 1 is out of range, allowed 2..16"},
    {COORDINATOR, COORD_HEAD "fences-max: 0\n", "4: fences-max: 0 is out of range, allowed 1..64"},
    {COORDINATOR, COORD_HEAD "starts-max: 65\n", "4: starts-max: 65 is out of range, allowed 1..64"},
    {COORDINATOR, COORD_HEAD "mass-loss-percent: 101\n", "4: mass-loss-percent: 101 is out of range, allowed 1..100"},
    {COORDINATOR, COORD_HEAD "lease-ms: 300001\n", "4: lease-ms: 300001 is out of range, allowed 0..300000"},
    {COORDINATOR, COORD_HEAD "lease-ms: 5000\n" COORD_NODE,
     "4: lease-ms: 5000 is too short for keeper-silent-ms 3000 and watch-interval-ms 50, allowed are 0 and 6667..300000"},
    {COORDINATOR, COORD_HEAD "lease-ms: 4999\nkeeper-silent-ms: 1000\n" COORD_NODE,
     "4: lease-ms: 4999 is too short for keeper-silent-ms 1000 and watch-interval-ms 50, allowed are 0 and 5000..300000"},
    {COORDINATOR, COORD_HEAD "lease-ms: 0\nnodes: [{name: n1, id: 1, address: 10.7.0.1, watchdog-proof-ms: 10000}]\n",
     "5: nodes[0].watchdog-proof-ms: there are no leases (lease-ms is 0), so none can run out"},
    {COORDINATOR, COORD_HEAD "nodes: [{name: n1, id: 1, address: 10.7.0.1, watchdog-proof-ms: 999}]\n",
     "4: nodes[0].watchdog-proof-ms: 999 is out of range, allowed 1000..600000"},
    {COORDINATOR, COORD_HEAD "nodes: [{name: n1, id: 1, address: 10.7.0.1, management: {address: n1-mgmt}}]\n",
     "4: nodes[0].management.address: 'n1-mgmt' is not a numeric address, allowed are addresses like 10.7.0.1 and fd00::1"},
    {COORDINATOR, COORD_HEAD "nodes: [{name: n1, id: 1, address: 10.7.0.1, management: {port: 7472}}]\n",
     "4: nodes[0].management.address: is missing, it has to be given"},
    {COORDINATOR,
     COORD_HEAD "keeper-silent-ms: 1999\nnodes: [{name: n1, id: 1, address: 10.7.0.1, management: {address: 10.8.0.1}}]\n",
     "5: nodes[0].management: needs a keeper-silent-ms of 2000..600000, as it is asked every 1000 ms"},
    {COORDINATOR,
     COORD_HEAD "nodes:\n- {name: n1, id: 1, address: 10.7.0.1, management: {address: 10.8.0.1}}\n"
                "- {name: n2, id: 2, address: 10.7.0.2, management: {address: 10.8.0.1, port: 7472}}\n",
     "6: nodes[1].management: nodes[0] has the same address and port, allowed is one node for each"},
    {NODE, NODE_HEAD NODE_COORD "management: {address: 10.8.0.1, port: 0}\n",
     "8: management.port: 0 is out of range, allowed 1..65535"},
    {COORDINATOR, COORD_HEAD "fence-timeout-ms: 1\n", "4: fence-timeout-ms: 1 is out of range, allowed 1000..600000"},
    {COORDINATOR, COORD_HEAD "nodes: []\n", "4: nodes: has 0 entries, allowed 1..64"},
    {COORDINATOR,
     COORD_HEAD "nodes:\n  - name: n1\n    id: 1\n    address: 10.0.0.1\n  - name: n1\n    id: 2\n    address: 10.0.0.2\n",
     "8: nodes[1].name: nodes[0] has the same name, allowed is one node for each"},
    {COORDINATOR,
     COORD_HEAD "nodes:\n  - name: n1\n    id: 1\n    address: 10.0.0.1\n  - name: n2\n    id: 1\n    address: 10.0.0.2\n",
     "9: nodes[1].id: nodes[0] has the same id, allowed is one node for each"},
    {COORDINATOR,
     COORD_HEAD "nodes:\n  - name: n1\n    id: 1\n    address: 10.0.0.1\n  - name: n2\n    id: 2\n    address: 10.0.0.1\n",
     "10: nodes[1].address: nodes[0] has the same address and port, allowed is one node for each"},
    {COORDINATOR, COORD_HEAD "nodes: [{name: n1, id: 1, address: 10.7.0.101, port: 7470}]\n",
     "4: nodes[0].address: this coordinator itself listens there, allowed is another address or port"},
    {COORDINATOR, COORD_HEAD "nodes:\n- {name: n1, id: 1, address: 10.0.0.1, fence: fence_ipmilan}\n",
     "5: nodes[0].fence: is not a mapping, wanted are lines of KEY: VALUE"},
    {COORDINATOR, COORD_HEAD "nodes:\n- {name: n1, id: 1, address: 10.0.0.1, fence: {options: {}}}\n",
     "5: nodes[0].fence.agent: is missing, it has to be given"},
    {COORDINATOR, COORD_HEAD "nodes:\n- {name: n1, id: 1, address: 10.0.0.1, fence: {agent: a b}}\n",
     "5: nodes[0].fence.agent: 'a b' has characters that are not allowed, allowed are letters, digits and _-./"},
    {COORDINATOR, COORD_HEAD "nodes:\n- {name: n1, id: 1, address: 10.0.0.1, fence: {agent: ../x}}\n",
     "5: nodes[0].fence.agent: '../x' is a relative path, allowed are the name of a program and absolute paths"},
    {COORDINATOR,
     COORD_HEAD "nodes:\n- name: n1\n  id: 1\n  address: 10.0.0.1\n  fence:\n    agent: a\n    options:\n      - ip\n",
     "11: nodes[0].fence.options: is not a mapping, wanted are lines of KEY: VALUE"},
    {COORDINATOR,
     COORD_HEAD
     "nodes:\n- name: n1\n  id: 1\n  address: 10.0.0.1\n  fence:\n    agent: a\n    options:\n      ip: 1\n      ip: 2\n",
     "12: nodes[0].fence.options.ip: is given twice, the first time in line 11"},
    {COORDINATOR,
     COORD_HEAD "nodes:\n- name: n1\n  id: 1\n  address: 10.0.0.1\n  fence: {agent: a, options: {ip: \"1\\naction=off\"}}\n",
     "8: nodes[0].fence.options.ip: is not UTF-8, has control characters or more than 1023 bytes"},
    {COORDINATOR, COORD_HEAD "nodes:\n- name: n1\n  id: 1\n  address: 10.0.0.1\n  fence: {agent: a, options: {i=p: 1}}\n",
     "8: nodes[0].fence.options.i=p: 'i=p' has characters that are not allowed, allowed are letters, digits and _-"},
    {COORDINATOR, COORD_HEAD "nodes:\n- name: n1\n  id: 1\n  address: 10.0.0.1\n  fence: {agent: a, options: {ip: [1]}}\n",
     "8: nodes[0].fence.options.ip: is a list, wanted is a text"},
    /* VM definitions */
    {VM, "memory-mib: 16\n" VM_BOOT, "1: name: is missing, it has to be given"},
    {VM, "name: web01\n" VM_BOOT, "1: memory-mib: is missing, it has to be given"},
    {VM, VM_HEAD, "1: boot: is missing, it has to be given"},
    {VM, VM_HEAD "boot:\n", "3: boot: is not a mapping, wanted are lines of KEY: VALUE"},
    {VM, VM_HEAD "boot: {}\n", "3: boot: has neither kernel nor state, allowed is exactly one of them"},
    {VM, VM_HEAD "boot:\n  kernel: /k\n  state: /s\n",
     "5: boot.state: is given together with boot.kernel, allowed is exactly one of them"},
    {VM, VM_HEAD "boot:\n  state: /s\n  append: x\n", "5: boot.append: is given with boot.state, allowed only with boot.kernel"},
    {VM, VM_HEAD "boot:\n  initrd: /i\n  state: /s\n", "4: boot.initrd: is given with boot.state, allowed only with boot.kernel"},
    {VM, VM_HEAD "boot:\n  kernel: k\n", "4: boot.kernel: 'k' is not an absolute path, allowed are paths that start with /"},
    {VM, "name: web01\nmemory-mib: 0\n", "2: memory-mib: 0 is out of range, allowed 1..65536"},
    {VM, "name: web01\nmemory-mib: 65537\n", "2: memory-mib: 65537 is out of range, allowed 1..65536"},
    {VM, "name: web01\nmemory-mib: 16.5\n", "2: memory-mib: '16.5' is not a whole number 1..65536"},
    {VM, VM_HEAD "vcpus: 65\n", "3: vcpus: 65 is out of range, allowed 1..64"},
    {VM, VM_HEAD "machine: pc,accel=kvm\n",
     "3: machine: 'pc,accel=kvm' has characters that are not allowed, allowed are letters, digits and -._"},
    {VM, VM_HEAD "cpu: \"max x\"\n",
     "3: cpu: 'max x' has characters that are not allowed, allowed are letters, digits and -._,+="},
    {VM, VM_HEAD "protect: twice\n", "3: protect: 'twice' is not known; allowed: none, local, mirror"},
    {VM, VM_HEAD "protect: lokal\n", "3: protect: 'lokal' is not known, did you mean local; allowed: none, local, mirror"},
    {VM, VM_HEAD "protect: mirror\nmirror-apart: row\n", "4: mirror-apart: 'row' is not known; allowed: node, rack"},
    {VM, VM_HEAD VM_BOOT "protect: local\nmirror-apart: rack\n",
     "5: mirror-apart: is rack without protect: mirror, allowed only with it"},
    {VM, VM_HEAD "protect: 1\n", "3: protect: '1' is not known; allowed: none, local, mirror"},
    {VM, VM_HEAD "on-node-fault: resume-elsewhere\n",
     "3: on-node-fault: 'resume-elsewhere' is not known; allowed: resume, restart, hold, discard"},
    {VM, VM_HEAD "on-vm-fault: resume-elswhere\n",
     "3: on-vm-fault: 'resume-elswhere' is not known, did you mean resume-elsewhere; allowed: resume, resume-elsewhere, restart, "
     "hold, "
     "discard"},
    {VM, VM_HEAD "checkpoint-interval-ms: 4\n", "3: checkpoint-interval-ms: 4 is out of range, allowed 5..600000"},
    {VM, VM_HEAD "checkpoint-stall-max-percent: 0\n", "3: checkpoint-stall-max-percent: 0 is out of range, allowed 1..50"},
    {VM, VM_HEAD "checkpoint-stall-max-percent: 51\n", "3: checkpoint-stall-max-percent: 51 is out of range, allowed 1..50"},
    {VM, VM_HEAD "restarts-max: 0\n", "3: restarts-max: 0 is out of range, allowed 1..20"},
    {VM, VM_HEAD "restarts-window-s: 86401\n", "3: restarts-window-s: 86401 is out of range, allowed 1..86400"},
    {VM, VM_HEAD "priority: 1001\n", "3: priority: 1001 is out of range, allowed 0..1000"},
    {VM, VM_HEAD "allowed-nodes: n1\n", "3: allowed-nodes: is not a list, wanted is a list of 0..64 entries"},
    {VM, VM_HEAD "allowed-nodes:\n  - n1\n  - N2\n",
     "5: allowed-nodes[1]: 'N2' is not a name, allowed 1..63 of a-z 0-9 -, not starting with -"},
    {VM, VM_HEAD VM_BOOT "allowed-nodes:\n  - n1\n  - n2\n  - n1\n",
     "7: allowed-nodes[2]: 'n1' is listed twice, each node is allowed once"},
    {VM, VM_HEAD VM_BOOT "on_node_fault: hold\n",
     "4: on_node_fault: is not a key, did you mean on-node-fault; allowed: name, memory-mib, vcpus, machine, cpu, boot, protect, "
     "mirror-apart, checkpoint-interval-ms, checkpoint-stall-max-percent, on-node-fault, on-vm-fault, priority, restarts-max, "
     "restarts-window-s, network, output-commit, disks, allowed-nodes"},
    {VM, VM_HEAD VM_BOOT "network:\n  bridge: br0/1\n",
     "5: network.bridge: 'br0/1' has characters that are not allowed, allowed are letters, digits and -_."},
    {VM, VM_HEAD VM_BOOT "network:\n  bridge: a234567890123456\n",
     "5: network.bridge: 'a234567890123456' has 16 bytes, allowed 1..15"},
    {VM, VM_HEAD VM_BOOT "network: {bridge: \"..\"}\n",
     "4: network.bridge: '..' is no name of a network device: it begins with a letter or a digit"},
    {VM, VM_HEAD VM_BOOT "network: {mac: \"52:54:00:00:00:0g\"}\n",
     "4: network.mac: '52:54:00:00:00:0g' is not the address of one card: six pairs of 0-9 a-f with : between, the first one "
     "even"},
    {VM, VM_HEAD VM_BOOT "network: {mac: \"53:54:00:00:00:01\"}\n",
     "4: network.mac: '53:54:00:00:00:01' is not the address of one card: six pairs of 0-9 a-f with : between, the first one "
     "even"},
    {VM, VM_HEAD VM_BOOT "network: {mac: \"00:00:00:00:00:00\"}\n",
     "4: network.mac: '00:00:00:00:00:00' is not the address of one card: six pairs of 0-9 a-f with : between, the first one "
     "even"},
    {VM, VM_HEAD "boot: {state: /s}\nnetwork: {mac: \"52:54:00:00:00:01\"}\n",
     "4: network.mac: is given with boot.state, whose memory holds the address already; allowed only with boot.kernel"},
    {VM, VM_HEAD VM_BOOT "network: {model: e1000}\n", "4: network.model: is not a key; allowed: bridge, mac"},
    {VM, VM_HEAD VM_BOOT "output-commit: false\n",
     "4: output-commit: is given without mirrors to wait for, allowed only with protect: mirror"},
    {VM, VM_HEAD VM_BOOT "protect: local\noutput-commit: true\n",
     "5: output-commit: is given without mirrors to wait for, allowed only with protect: mirror"},
    {VM, VM_HEAD VM_BOOT "protect: mirror\noutput-commit: no\n", "5: output-commit: 'no' is not known; allowed: true, false"},
    {VM, VM_HEAD VM_BOOT "disks: /d\n", "4: disks: is not a list, wanted is a list of 0..4 entries"},
    {VM, VM_HEAD VM_BOOT "disks: [{}, {}, {}, {}, {}]\n", "4: disks: has 5 entries, allowed 0..4"},
    {VM, VM_HEAD VM_BOOT "disks: [{}]\n", "4: disks[0]: has neither path nor memory-mib, allowed is exactly one of them"},
    {VM, VM_HEAD VM_BOOT "disks: [{size: 3}]\n",
     "4: disks[0].size: is not a key; allowed: path, format, writable, memory-mib, image"},
    {VM, VM_HEAD VM_BOOT "disks:\n- path: /d\n  format: raw\n  memory-mib: 3\n",
     "7: disks[0].memory-mib: is given together with path, allowed is exactly one of them"},
    {VM, VM_HEAD VM_BOOT "disks:\n- path: d\n  format: raw\n",
     "5: disks[0].path: 'd' is not an absolute path, allowed are paths that start with /"},
    {VM, VM_HEAD VM_BOOT "disks:\n- path: /d\n",
     "5: disks[0].format: is missing, it has to be given with path: raw or qcow2; nothing looks into the file to find out"},
    {VM, VM_HEAD VM_BOOT "disks:\n- {path: /d, format: vmdk}\n", "5: disks[0].format: 'vmdk' is not known; allowed: raw, qcow2"},
    {VM, VM_HEAD VM_BOOT "disks:\n- {path: /d, format: raw, image: /i}\n",
     "5: disks[0].image: is given with path, allowed only with memory-mib"},
    {VM, VM_HEAD VM_BOOT "disks:\n- {path: /d, format: raw}\n- {path: /e, format: raw}\n- {path: /d, format: raw}\n",
     "7: disks[2].path: is the same as disks[0].path, allowed is one disk for each file"},
    {VM, VM_HEAD VM_BOOT "protect: local\ndisks:\n- {path: /d, format: raw, writable: true}\n",
     "6: disks[0].writable: is true under protect: local, but what is written to a file is not part of a checkpoint, so a "
     "takeover "
     "would find a disk from after it; allowed are writable: false, a disk with memory-mib, and protect: none"},
    {VM, VM_HEAD VM_BOOT "protect: mirror\ndisks:\n- {path: /r, format: raw}\n- {path: /d, format: qcow2, writable: true}\n",
     "7: disks[1].writable: is true under protect: mirror, but what is written to a file is not part of a checkpoint, so a "
     "takeover "
     "would find a disk from after it; allowed are writable: false, a disk with memory-mib, and protect: none"},
    {VM, VM_HEAD "boot: {state: /s}\ndisks:\n- {path: /d, format: raw, writable: true}\n",
     "5: disks[0].writable: is true with boot.state, whose memory knows the disk as it was then; allowed only with boot.kernel"},
    {VM, VM_HEAD VM_BOOT "disks:\n- {memory-mib: 3}\n",
     "5: disks[0].memory-mib: is given with protect: none, where nothing would keep it when QEMU ends; allowed with protect: "
     "local "
     "and mirror"},
    {VM, VM_HEAD VM_BOOT "protect: local\ndisks:\n- {memory-mib: 0}\n",
     "6: disks[0].memory-mib: 0 is out of range, allowed 1..65536"},
    {VM, VM_HEAD VM_BOOT "protect: local\ndisks:\n- {memory-mib: 65521}\n",
     "6: disks[0].memory-mib: 65521 and memory-mib 16 are more than the 65536 that are allowed together"},
    {VM, VM_HEAD VM_BOOT "protect: local\ndisks:\n- {memory-mib: 3}\n- {memory-mib: 4}\n",
     "7: disks[1].memory-mib: disks[0] is in main storage already, allowed is one such disk"},
    {VM, VM_HEAD VM_BOOT "protect: local\ndisks:\n- {memory-mib: 3, writable: true}\n",
     "6: disks[0].writable: is given with memory-mib, which is always writable; allowed only with path"},
    {VM, VM_HEAD VM_BOOT "protect: local\ndisks:\n- {memory-mib: 3, format: raw}\n",
     "6: disks[0].format: is given with memory-mib, allowed only with path"},
    {VM, VM_HEAD VM_BOOT "protect: local\ndisks:\n- {memory-mib: 3, image: i}\n",
     "6: disks[0].image: 'i' is not an absolute path, allowed are paths that start with /"},
    {VM, VM_HEAD "boot: {state: /s}\nprotect: local\ndisks:\n- {memory-mib: 3, image: /i}\n",
     "6: disks[0].image: is given with boot.state, which has the disk's content; allowed only with boot.kernel"},
    /* drills */
    {DRILL, "name: d\n", "1: vms: is missing, it has to be given"},
    {DRILL, "name: d\nvms: []\n", "2: vms: has 0 entries, allowed 1..1024"},
    {DRILL, "name: d\nvms:\n- node: n1\n", "3: vms[0].definition: is missing, it has to be given"},
    {DRILL, "name: d\nvms:\n- {definition: a, name: x}\n- {definition: b, name: x}\n",
     "4: vms[1].name: 'x' is the name of vms[0] too, each is allowed once"},
    {DRILL, "name: d\nvms:\n- definition: a\n  memory: keep\n",
     "4: vms[0].memory: 'keep' is not known, did you mean kept; allowed: kept, lost, any"},
    {DRILL, "name: d\nvms:\n- definition: a\n  method: resumed\n",
     "4: vms[0].method: 'resumed' is not known; allowed: none, booted, pulled-live, pulled-shadow, in-place, restarted"},
    {DRILL, "name: d\nvms:\n- definition: a\n  rto_ms: 1\n",
     "4: vms[0].rto_ms: is not a key, did you mean rto-ms; allowed: definition, name, node, rto-ms, rpo-ms, memory, method, "
     "placed, "
     "lost-beats-max, mirrored-ms"},
    {DRILL, DRILL_HEAD "faults:\n- {at-ms: 1, kind: qemu-kil, vm: a}\n",
     "4: faults[0].kind: 'qemu-kil' is not known, did you mean qemu-kill; allowed: qemu-kill, qemu-stop, agent-kill, agent-stop, "
     "keeper-kill, keeper-stop, machine-check, panic, power-off, cut, link-slow, coordinator-kill, coordinator-stop, etcd-kill, "
     "etcd-stop, "
     "power-on, heal, link-well, keeper-continue, agent-continue, coordinator-continue, etcd-continue"},
    {DRILL, DRILL_HEAD "faults:\n- kind: qemu-kill\n  node: n1\n",
     "4: faults[0].vm: is missing, qemu-kill strikes a VM and has to name it"},
    {DRILL, DRILL_HEAD "faults:\n- kind: cut\n  vm: a\n",
     "5: faults[0].vm: is given with cut, which strikes a whole node; allowed only with qemu-kill, qemu-stop"},
    {DRILL, DRILL_HEAD "faults:\n- kind: cut\n", "4: faults[0].node: is missing, cut strikes a node and has to name it"},
    {DRILL, DRILL_HEAD "faults:\n- {kind: qemu-kill, vm: b}\n",
     "4: faults[0].vm: 'b' is none of the drill's vms, allowed are their names"},
    {DRILL, DRILL_HEAD "faults:\n- {at-ms: 117000, kind: cut, node: n1}\n",
     "4: faults[0].at-ms: 117000 is too late, allowed is less than timeout-ms 120000 less settle-ms 3000"},
    {DRILL, DRILL_HEAD "undo:\n- {kind: cut, node: n1}\n",
     "4: undo[0].kind: 'cut' is not known; allowed: power-on, heal, link-well, keeper-continue, agent-continue, "
     "coordinator-continue, "
     "etcd-continue"},
    {DRILL, DRILL_HEAD "undo:\n- {at-ms: 1, kind: heal, node: n1}\n",
     "4: undo[0].at-ms: is not a key; allowed: kind, node, vm, mirror-of"},
    {DRILL, DRILL_HEAD "faults:\n- {kind: cut, node: n1, mirror-of: a}\n",
     "4: faults[0].mirror-of: is given with node, allowed is one of them"},
    {DRILL, DRILL_HEAD "faults:\n- {kind: cut, mirror-of: b}\n",
     "4: faults[0].mirror-of: 'b' is none of the drill's vms, allowed are their names"},
    {DRILL, DRILL_HEAD "timeout-ms: 6000\n",
     "3: timeout-ms: 6000 is too short, allowed is more than settle-ms 3000 and observe-ms 3000 together"},
    {DRILL, DRILL_HEAD "fence: ipmi\n", "3: fence: 'ipmi' is not known; allowed: keeper, power, watchdog, operator"},
};

START_TEST(bad_file_is_refused_with_line_key_reason_and_what_is_allowed)
{
    const struct bad *bad = &bads[_i];
    const char *path = file_make("bad.yaml", bad->text, 0);
    char want[MST_WHY_BYTES * 2];

    why.text[0] = '\0';
    snprintf(want, sizeof(want), "%s:%s", path, bad->says);
    want[MST_WHY_BYTES - 1] = '\0';
    ck_assert_int_eq(load(bad->kind, path, &why), -EINVAL);
    ck_assert_str_eq(why.text, want);
    ck_assert_int_eq(load(bad->kind, path, NULL), -EINVAL);
}
END_TEST

START_TEST(missing_file_is_named)
{
    ck_assert_int_eq(load(_i, "/nowhere/x.yaml", &why), -ENOENT);
    ck_assert_str_eq(why.text, "/nowhere/x.yaml: cannot be read: No such file or directory");
}
END_TEST

START_TEST(unreadable_file_is_named)
{
    const char *path = file_make("secret.yaml", "cluster: lab\n", 0);
    char want[200];

    ck_assert_int_eq(chmod(path, 0), 0);
    if (geteuid() == 0) { /* root reads everything: become nobody; the test has a process of its own */
        ck_assert_int_eq(setgroups(0, NULL), 0);
        ck_assert_int_eq(seteuid(65534), 0);
    }
    int r = load(_i, path, &why);
    if (getuid() == 0)
        ck_assert_int_eq(seteuid(0), 0);
    ck_assert_int_eq(r, -EACCES);
    snprintf(want, sizeof(want), "%s: cannot be read: Permission denied", path);
    ck_assert_str_eq(why.text, want);
}
END_TEST

START_TEST(what_is_no_regular_file_is_refused_without_waiting)
{
    char path[100], want[200];

    ck_assert_int_eq(load(_i, "/dev/zero", &why), -EINVAL);
    ck_assert_str_eq(why.text, "/dev/zero: is not a regular file");
    ck_assert_int_eq(load(_i, folder, &why), -EINVAL);
    snprintf(path, sizeof(path), "%s/fifo", folder);
    ck_assert_int_eq(mkfifo(path, 0600), 0);
    ck_assert_int_eq(load(_i, path, &why), -EINVAL);
    snprintf(want, sizeof(want), "%s: is not a regular file", path);
    ck_assert_str_eq(why.text, want);
}
END_TEST

START_TEST(file_over_one_mebibyte_is_refused)
{
    size_t n = (1u << 20) + 1;
    char *text = malloc(n), want[200];
    const char *path;

    memset(text, '#', n);
    path = file_make("large.yaml", text, n);
    ck_assert_int_eq(load(_i, path, &why), -EFBIG);
    snprintf(want, sizeof(want), "%s: is larger than 1048576 bytes, which is all a configuration may have", path);
    ck_assert_str_eq(why.text, want);
    /* One byte less is read, and is a comment. */
    path = file_make("large.yaml", text, n - 1);
    ck_assert_int_eq(load(_i, path, &why), -EINVAL);
    free(text);
}
END_TEST

/* Whatever it holds: refused, in little time. */
static void refused_soon(enum kind kind, const char *text, size_t n)
{
    const char *path = file_make("x.yaml", text, n);
    clock_t start = clock();

    why.text[0] = '\0';
    ck_assert_int_eq(load(kind, path, &why), -EINVAL);
    ck_assert_int_eq(strncmp(why.text, path, strlen(path)), 0);
    ck_assert_int_eq(why.text[strlen(path)], ':');
    ck_assert_msg((double)(clock() - start) / CLOCKS_PER_SEC < 10, "%.1f s for %s", (double)(clock() - start) / CLOCKS_PER_SEC,
                  why.text);
}

START_TEST(deep_nesting_is_refused_soon)
{
    static const char *const units[] = {"[", "{a: ", "- ", "? ", "a:\n", "&a [", "[a,", "!!x [", "'a': {"};
    size_t n = 1u << 20;
    char *text = malloc(n + 16);

    for (unsigned u = 0; u < sizeof(units) / sizeof(units[0]); u++) {
        size_t len = strlen(units[u]), at = 0;
        while (at + len <= n) {
            memcpy(text + at, units[u], len);
            at += len;
        }
        refused_soon(VM, text, at);
    }
    free(text);
}
END_TEST

START_TEST(many_keys_are_refused_soon)
{
    char *text = malloc(1u << 20);
    size_t at =
        (size_t)sprintf(text, "cluster: lab\nid: 1\naddress: 10.7.0.101\nnodes:\n- name: n1\n  id: 1\n  address: 10.0.0.1\n"
                              "  fence:\n    agent: a\n    options:\n");

    for (unsigned i = 0; at < (1u << 20) - 64; i++)
        at += (size_t)sprintf(text + at, "      k%u: 1\n", i);
    refused_soon(COORDINATOR, text, at);
    ck_assert_ptr_nonnull(strstr(why.text, ": nodes[0].fence.options: has more than 64 entries, which is all that is allowed"));
    free(text);
}
END_TEST

START_TEST(binary_file_is_refused)
{
    char noise[4096];

    srandom(7);
    for (unsigned i = 0; i < 200; i++) {
        for (size_t b = 0; b < sizeof(noise); b++)
            noise[b] = (char)random();
        refused_soon((enum kind)(i % 4), noise, 1 + (size_t)random() % sizeof(noise));
    }
    refused_soon(NODE,
                 "\x7f"
                 "ELF\x02\x01\x01\0\0\0\0",
                 12);
    refused_soon(NODE, "\0\0\0\0", 4);
    refused_soon(NODE,
                 "\xff\xfe"
                 "c\0:\0 \0",
                 8); /* UTF-16 */
}
END_TEST

/* A good file with one byte changed, dropped or doubled, thousands of times: loaded or refused, never worse. */
START_TEST(damaged_files_never_break_the_loader)
{
    static const char *const good[] = {
        [NODE] = SOURCE_DIR "/deploy/config/node.yaml",
        [COORDINATOR] = SOURCE_DIR "/deploy/config/coordinator.yaml",
        [VM] = SOURCE_DIR "/deploy/config/vm-protected.yaml",
        [DRILL] = SOURCE_DIR "/deploy/config/drill.yaml",
    };
    static const char likely[] = "{}[]:,-#&*!|>'\"%@`\n\t 0~?\\";
    char text[8192], damaged[8400];
    unsigned loaded = 0, refused = 0;
    FILE *file = fopen(good[_i], "r");
    size_t n = fread(text, 1, sizeof(text), file);

    fclose(file);
    ck_assert_uint_gt(n, 300);
    srandom((unsigned)_i + 1);
    for (unsigned i = 0; i < 2500; i++) {
        size_t len = n, at;
        memcpy(damaged, text, n);
        for (long times = 1 + random() % 3; times > 0; times--) {
            at = (size_t)random() % len;
            switch (random() % 4) {
            case 0:
                damaged[at] = (char)random();
                break;
            case 1:
                damaged[at] = likely[(size_t)random() % (sizeof(likely) - 1)];
                break;
            case 2:
                memmove(damaged + at, damaged + at + 1, len - at - 1);
                len--;
                break;
            default:
                memmove(damaged + at + 1, damaged + at, len - at);
                len++;
            }
        }
        char path[100];
        snprintf(path, sizeof(path), "%s/x.yaml", folder);
        file = fopen(path, "w");
        fwrite(damaged, 1, len, file);
        fclose(file);
        why.text[0] = '\0';
        int r = load((enum kind)_i, path, &why);
        ck_assert(r == 0 || r == -EINVAL);
        ck_assert_int_eq(r == 0, why.text[0] == '\0');
        ck_assert_msg(!strstr(why.text, ":1: YAML: LibCYAML"), "a gap in conf/walk.c: %s", why.text);
        if (r == 0)
            loaded++;
        else
            refused++;
    }
    ck_assert_uint_gt(loaded, 100);
    ck_assert_uint_gt(refused, 100);
}
END_TEST

/* ---------------------------------------------------------------- definitions that come as messages */

static Mainstay__VmDefinition def;
static char *nodes[MST_NODES_MAX + 1];

static void definition_is_refused(const char *says)
{
    why.text[0] = '\0';
    ck_assert_int_eq(mst_vm_definition_check(&def, &why), -EINVAL);
    ck_assert_str_eq(why.text, says);
}

static void definition_make(void)
{
    mainstay__vm_definition__init(&def);
    def.name = (char *)"web01";
    def.memory_mib = 16;
    def.boot_kernel = (char *)"/k";
    ck_assert_int_eq(mst_vm_definition_check(&def, &why), 0);
}

START_TEST(definition_from_a_peer_is_held_to_the_same_limits)
{
    definition_make();
    def.memory_mib = 0;
    definition_is_refused("memory-mib: 0 is out of range, allowed 1..65536");
    definition_make();
    def.name = NULL;
    definition_is_refused("name: is missing, it has to be given");
    definition_make();
    def.name = (char *)"Web";
    definition_is_refused("name: 'Web' is not a name, allowed 1..63 of a-z 0-9 -, not starting with -");
    definition_make();
    def.vcpus = 0;
    definition_is_refused("vcpus: 0 is out of range, allowed 1..64");
    definition_make();
    def.machine = (char *)"pc,x=y";
    definition_is_refused("machine: 'pc,x=y' has characters that are not allowed, allowed are letters, digits and -._");
    definition_make();
    def.boot_state = (char *)"/s";
    definition_is_refused("boot.state: is given together with boot.kernel, allowed is exactly one of them");
    definition_make();
    def.boot_kernel = NULL;
    definition_is_refused("boot: has neither kernel nor state, allowed is exactly one of them");
    definition_make();
    def.boot_append = (char *)"a\nb";
    definition_is_refused("boot.append: 'a?b' is not allowed, it has control characters or is not UTF-8");
    definition_make();
    def.protect = (Mainstay__Protect)9;
    definition_is_refused("protect: value 9 is not allowed here; allowed: none, local, mirror");
    definition_make();
    def.on_node_fault = MAINSTAY__ON_FAULT__ON_FAULT_RESUME_ELSEWHERE;
    definition_is_refused("on-node-fault: value 4 is not allowed here; allowed: resume, restart, hold, discard");
    definition_make();
    def.checkpoint_interval_ms = 1;
    definition_is_refused("checkpoint-interval-ms: 1 is out of range, allowed 5..600000");
    definition_make();
    def.checkpoint_stall_max_percent = 60;
    definition_is_refused("checkpoint-stall-max-percent: 60 is out of range, allowed 1..50");
    definition_make();
    def.allowed_nodes = nodes;
    def.n_allowed_nodes = MST_NODES_MAX + 1;
    definition_is_refused("allowed-nodes: has 65 entries, allowed 0..64");
    def.n_allowed_nodes = 2;
    nodes[0] = nodes[1] = (char *)"n1";
    definition_is_refused("allowed-nodes[1]: 'n1' is listed twice, each node is allowed once");
}
END_TEST

START_TEST(disk_from_a_peer_is_held_to_the_same_limits)
{
    Mainstay__VmDisk disk = MAINSTAY__VM_DISK__INIT, *disks[MST_DISKS_MAX + 1] = {&disk};

    definition_make();
    def.disks = disks;
    def.n_disks = MST_DISKS_MAX + 1;
    definition_is_refused("disks: has 5 entries, allowed 0..4");
    def.n_disks = 1;
    definition_is_refused("disks[0]: has neither path nor memory-mib, allowed is exactly one of them");
    disk.path = (char *)"d";
    definition_is_refused("disks[0].path: 'd' is not an absolute path, allowed are paths that start with /");
    disk.path = (char *)"/d";
    disk.has_format = 1;
    disk.format = (Mainstay__DiskFormat)7;
    definition_is_refused("disks[0].format: value 7 is not allowed here; allowed: raw, qcow2");
    disk.format = MAINSTAY__DISK_FORMAT__DISK_QCOW2;
    ck_assert_int_eq(mst_vm_definition_check(&def, &why), 0);
    disk.has_writable = disk.writable = 1;
    ck_assert_int_eq(mst_vm_definition_check(&def, &why), 0);
    def.protect = MAINSTAY__PROTECT__PROTECT_MIRROR;
    ck_assert_int_eq(mst_vm_definition_check(&def, &why), -EINVAL);
    ck_assert_uint_eq(mst_vm_area_mib(&def), 16);
    mainstay__vm_disk__init(&disk);
    disk.has_memory_mib = 1;
    disk.memory_mib = UINT32_MAX;
    definition_is_refused("disks[0].memory-mib: 4294967295 is out of range, allowed 1..65536");
    disk.memory_mib = 65536 - 16;
    ck_assert_int_eq(mst_vm_definition_check(&def, &why), 0);
    ck_assert_uint_eq(mst_vm_disk_mib(&def), 65520);
    ck_assert_uint_eq(mst_vm_area_mib(&def), 65536);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("conf/refuse");
    TCase *tcase = tcase_create("refuse");
    SRunner *runner;
    int failed;

    tcase_set_timeout(tcase, 100);
    tcase_add_checked_fixture(tcase, folder_make, folder_remove);
    tcase_add_loop_test(tcase, bad_file_is_refused_with_line_key_reason_and_what_is_allowed, 0, sizeof(bads) / sizeof(bads[0]));
    tcase_add_loop_test(tcase, missing_file_is_named, 0, 4);
    tcase_add_loop_test(tcase, unreadable_file_is_named, 0, 4);
    tcase_add_loop_test(tcase, what_is_no_regular_file_is_refused_without_waiting, 0, 4);
    tcase_add_loop_test(tcase, file_over_one_mebibyte_is_refused, 0, 4);
    tcase_add_test(tcase, deep_nesting_is_refused_soon);
    tcase_add_test(tcase, many_keys_are_refused_soon);
    tcase_add_test(tcase, binary_file_is_refused);
    tcase_add_loop_test(tcase, damaged_files_never_break_the_loader, 0, 4);
    tcase_add_test(tcase, definition_from_a_peer_is_held_to_the_same_limits);
    tcase_add_test(tcase, disk_from_a_peer_is_held_to_the_same_limits);
    suite_add_tcase(suite, tcase);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? 1 : 0;
}
