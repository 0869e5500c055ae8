/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Starting programs of ours, which are next to the calling program or in PATH, and helpers, which
 * are in PATH. What is started gets a session of its own and nothing that is its caller's: no lock,
 * pipe, signal mask or working directory.
 */
#ifndef BM_BASE_SPAWN_H
#define BM_BASE_SPAWN_H

#include <stdbool.h>
#include <sys/types.h>

#include "blockmirror/error.h"

#define BM_DISK_PROGRAM "blockmirror-disk"
#define BM_MOVE_PROGRAM "blockmirror-move"
enum { BM_SPAWN_FDS = 4, BM_SPAWN_FIRST_FD = 3, BM_SPAWN_NOT_FOUND = 127 };

struct bm_spawn {
	char *const *argv;
	const char *log; /* where it writes errors; NULL: where we do */
	bool append;     /* to the log, until that is long; else it begins anew */
	int *output;     /* what it prints can be read here; NULL: nobody wants to */
	const int *fds;  /* that it has as BM_SPAWN_FIRST_FD and on; at most BM_SPAWN_FDS */
	unsigned n_fds;
	int input;                /* its standard input; 0: nothing */
	char *const *environment; /* all of it; NULL: ours */
	bool group;               /* all that it has started ends with it, by the lifeline */
	const char *fd_names; /* they are listening sockets (sd_listen_fds(3)): "a:b"; or NULL */
	/*
	 * NULL, or two descriptors that are made. It ends with us: when the second one is closed it
	 * gets SIGKILL, or the signal that fcntl(F_SETSIG) has chosen for the first one, once it
	 * has done something that shows that it runs.
	 */
	int *lifeline;
};

/* The program that argv[0] names, one of ours. Its pid, or -errno. */
int bm_spawn_disk(const struct bm_spawn *spawn);

/*
 * The same for the program that argv[0] names; it writes errors to that descriptor (-1: where we
 * do). One that is not there ends with status BM_SPAWN_NOT_FOUND.
 */
int bm_spawn_helper(const struct bm_spawn *spawn, int errors);

/*
 * Why one ended: what waitpid(2) says, and the last line that it wrote. Its own error, where that
 * can be told. Blocks.
 */
void bm_spawn_failure(const char *log, int status, struct bm_error *error);

#endif
