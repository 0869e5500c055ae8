/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * hook relocate: what a manager asks for, and what it is told (docs/hooks.md).
 *
 *   hook_request.c   the object on standard input, the object on standard output
 *   claim.c          what ids stand for
 *   hook_relocate.c  a disk of ours
 *   hook_slip.c      a disk of a running QEMU
 *   hook_machine.c   a machine
 */
#ifndef BM_CLI_HOOK_REQUEST_H
#define BM_CLI_HOOK_REQUEST_H

#include "blockmirror/cli/claim.h"
#include "blockmirror/cli/cli.h"

struct hook_request {
	struct cli *cli;
	json_t *given; /* as it was read; the texts are its */
	const char *id;
	json_t *asked; /* disk, or machine, or qmp and drive; target; options. NULL: the id alone */
	bool wait, cancel, switches;
	bool lost; /* a connection to the disk's process was, half way */
	struct claim claim;
};

/* Reads, and refuses what is not understood. */
int hook_request_read(struct hook_request *q, struct bm_error *error);
void hook_request_clear(struct hook_request *q);

/* What a disk's process, or a transient one, is asked: target, options, request. */
json_t *hook_request_params(const struct hook_request *q);
const char *hook_request_text(const struct hook_request *q, const char *key);
/* id and digest, as jobs and moves keep them; whether this one's (its "request") is of what is
 * asked.
 */
json_t *hook_request_mark(const struct hook_request *q);
bool hook_request_is(const struct hook_request *q, const json_t *job);

/*
 * The answers, to be printed: state is one of accepted, running, held, done, failed, cancelled,
 * undone, refused, unknown. job NULL: there is none. error NULL: that of job, if it has one.
 */
json_t *hook_answer(const struct hook_request *q, const char *state, const json_t *job,
		    const struct bm_error *error);
/* As the job is. */
json_t *hook_answer_job(const struct hook_request *q, const json_t *job);
/* Nothing will change it any more: it is kept with the id. */
bool hook_is_final(const json_t *answer);
/* Prints it, takes it over, and returns the exit code that goes with it. */
int hook_say(const struct hook_request *q, json_t *answer);

/* hook_slip.c, hook_machine.c: the answer. */
json_t *hook_slip(struct hook_request *q);
json_t *hook_machine(struct hook_request *q);

/* Of a machine: bm://HOST or bm://HOST/FOLDER, malloc()ed, of that or a host's name. NULL: E_USAGE.
 */
char *hook_machine_target(const char *given, struct bm_error *error);

#endif
