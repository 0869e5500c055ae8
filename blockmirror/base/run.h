/* SPDX-License-Identifier: BSD-3-Clause */
/* Other people's programs: what they say, and when they end. All functions block; any thread. */
#ifndef BM_BASE_RUN_H
#define BM_BASE_RUN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 * A descriptor that a program can write its errors to: it keeps the first few, and never fills up
 * in a way that the program would notice. -errno.
 */
int bm_words_new(void);

/*
 * What was written there last that begins with the program's name, without that: the line, and no
 * hints behind it. Else the last line of all. Returns out.
 */
char *bm_words_read(int fd, const char *program, char *out, size_t size);

/* Whether the process behind pidfd ends within ns; asks interrupted() (NULL is allowed) meanwhile.
 */
bool bm_process_ends(int pidfd, uint64_t ns, bool (*interrupted)(void *arg), void *arg);

/*
 * Runs the program that argv[0] names, in PATH, to its end. *output (malloc()ed; may be NULL:
 * nobody wants it) is what it printed, why its last word about what is wrong. It ends with us, and
 * when interrupted() says so (-EINTR). Returns its exit status (BM_SPAWN_NOT_FOUND: there is no
 * such program; 128 and more: a signal), or -errno.
 */
int bm_run(char *const argv[], bool (*interrupted)(void *arg), void *arg, char **output, char *why,
	   size_t size);

#endif
