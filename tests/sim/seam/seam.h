#ifndef SIM_SEAM_H
#define SIM_SEAM_H

/* Put before every file of the product that the simulator compiles (-include). What a process asks of the system goes to the simulator instead:
 * memory belongs to a simulated process and is gone when that is killed, at whatever point of whatever function; files, locks and priorities are
 * those of a simulated host. The larger seams need no macros: libuv, the fabric, Unix sockets, processes, cgroups, main storage, clock, random
 * numbers and the log are whole headers, and the simulator links its own functions for them. */

#define malloc             sim_malloc
#define calloc             sim_calloc
#define realloc            sim_realloc
#define free               sim_free
#define aligned_alloc      sim_aligned_alloc
#define mmap               sim_mmap
#define munmap             sim_munmap
#define malloc_usable_size sim_malloc_usable_size

#define open        sim_open
#define close       sim_close
#define flock       sim_flock
#define access      sim_access
#define rename      sim_rename
#define unlink      sim_unlink
#define fopen       sim_fopen
#define getrlimit   sim_getrlimit
#define setrlimit   sim_setrlimit
#define setpriority sim_setpriority
#define usleep      sim_usleep
#define _exit       sim_exit

/* protobuf-c takes its memory through an allocator; NULL means malloc(3), which is not ours. */
#define protobuf_c_message_unpack        sim_pb_unpack
#define protobuf_c_message_free_unpacked sim_pb_free

#endif
