/* SPDX-License-Identifier: BSD-3-Clause */
/* Program blockmirror-nbd: what its files share. */
#ifndef NBD_SERVER_MAIN_H
#define NBD_SERVER_MAIN_H

#include <stdbool.h>
#include <stdint.h>

#include "nbd-server/server.h"

/* main_args.c: what the user wants */

struct arguments {
	char *uri; /* the image's, with its passwords */
	const char *unix_path, *export_name, *pid_file, *acl, *run;
	char *host, *port; /* of --listen */
	bool stdio, read_only, insecure, fork;
	uint64_t create; /* bytes; 0: no */
	struct nbd_server_options limits;
	enum nbd_tls_mode tls_mode;
	struct bm_tls_options tls;
	int passed; /* sockets, from FIRST_PASSED_FD on */
};

/* Returns 0, 1 when all is done (--help), or -errno; error is without text when getopt said it. */
int arguments_parse(struct arguments *args, int argc, char **argv, struct bm_error *error);

/* main_start.c: how others start the program, and are told that it is there */

enum { FIRST_PASSED_FD = 3, MAX_PASSED_FDS = 16 };

/*
 * Socket activation, as sd_listen_fds(3) has it: how many sockets were passed to this very process.
 * Children do not inherit them or the word of them.
 */
int start_passed_sockets(void);

/* sd_notify(3): tells the service manager, if there is one, state: lines like "READY=1". */
void start_notify(const char *state);

/*
 * --fork: goes on in a child, with *release open. Returns the child's ID in the parent and 0 in the
 * child; -errno. The parent's only business is start_await().
 */
int start_fork(int *release);

/* In the parent: waits until clients may connect, or the child has ended. Returns an exit status.
 */
int start_await(int release, int child);

/* In the child: clients may connect. Lets the parent go, and its terminal. */
int start_release(int release, struct bm_error *error);

/* --run */
struct command {
	int pid;    /* 0: none runs */
	int status; /* its exit status, as a shell has it; once it has ended */
	struct bm_loop *loop;
	struct bm_watch watch;
	void (*ended)(struct command *command);
};

/* Runs text by the shell; then ended() is called from the loop. */
int command_start(struct command *command, struct bm_loop *loop, const char *text,
		  struct bm_error *error);

/*
 * What a client on this host needs: uri, and, where it says nbds, whom to trust and as whom to
 * come. malloc()ed, or NULL.
 */
char *command_uri(const char *uri, const struct bm_tls_options *tls);

#endif
