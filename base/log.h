#ifndef MST_BASE_LOG_H
#define MST_BASE_LOG_H

/* Log of the daemons: one line on stderr per event, `2026-11-23T14:05:01.123456Z LEVEL program[pid] key=value ... text`.
 * Daemons only: library code returns errors and does not log. Levels: error = something is broken and needs a person;
 * warning = something is wrong and is being dealt with; notice = something happened that a person wants to know afterwards
 * (every decision, every refusal); info = normal steps; debug. Any thread; a line is written by one write(2). */

enum mst_log_level { MST_LOG_ERROR, MST_LOG_WARNING, MST_LOG_NOTICE, MST_LOG_INFO, MST_LOG_DEBUG };

/* program: borrowed for the life of the process. Level from the environment variable MST_LOG (error..debug), info otherwise. */
void mst_log_init(const char *program);
void mst_log_level_set(enum mst_log_level level);
__attribute__((format(printf, 2, 3))) void mst_log(enum mst_log_level level, const char *fmt, ...);

#define log_error(...)   mst_log(MST_LOG_ERROR, __VA_ARGS__)
#define log_warning(...) mst_log(MST_LOG_WARNING, __VA_ARGS__)
#define log_notice(...)  mst_log(MST_LOG_NOTICE, __VA_ARGS__)
#define log_info(...)    mst_log(MST_LOG_INFO, __VA_ARGS__)
#define log_debug(...)   mst_log(MST_LOG_DEBUG, __VA_ARGS__)

#endif
