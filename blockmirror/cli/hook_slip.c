/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * hook relocate for a disk of a running QEMU: relocate --qmp by a process of its own, the runner,
 * that outlives the call. It has the claim's lock; so who asks while it lives asks it, and who asks
 * when it is dead starts another one, which goes on where that one was (docs/slip.md).
 *
 * The disk is ours for that time only, and so is its record. What is to outlive it is noted with
 * the id, before it is true of QEMU: that the job has begun before it may switch over, that the
 * disk has moved before QEMU gets it back. Then QEMU having a disk at the target, and nothing left
 * of ours, means that it has been moved.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/cli/hook_request.h"
#include "blockmirror/cli/slip_run.h"

enum { AT_ONCE_MS = 3000, STEP_MS = 100, BEGINS_MS = 30000, MOST_TRIES = 5 };

/* The runner's: what it was told by the way. */

struct runner {
	struct hook_request *q;
	int begun; /* a pipe to who started it: closed when the job runs */
};

static void note(struct runner *run, const char *key, json_t *value)
{
	struct bm_error error;

	/* Without it the same request might not be known again: better not to go on. */
	if (claim_note(&run->q->claim, key, value, &error) == 0)
		return;
	fprintf(stderr, "blockmirror: %s\n", error.text);
	_exit(1);
}

static void began(void *arg, const char *disk, const json_t *job)
{
	struct runner *run = arg;

	if (!json_object_get(run->q->claim.said, "began"))
		note(run, "began",
		     json_pack("{s:s s:O}", "disk", disk, "target",
			       json_object_get((json_t *)job, "target")));
	if (run->begun >= 0)
		close(bm_steal_fd(run->begun));
}

static void moved(void *arg)
{
	struct runner *run = arg;

	if (!json_object_get(run->q->claim.said, "moved"))
		note(run, "moved", json_true());
}

/* What it came to. status is that of relocate --qmp. */
static json_t *conclude(const struct hook_request *q, int status, int words)
{
	const json_t *said = q->claim.said;
	const char *target = hook_request_text(q, "target"), *state = "refused";
	bool begun = json_object_get(said, "began"), gone = json_object_get(said, "moved");
	struct bm_error error = {.code = BM_E_INTERNAL};
	json_t *job = NULL, *answer;

	slip_words(words, &job, &error);
	if (json_object_get(job, "held")) /* it was not switched over, and given up */
		json_object_set(job, "error", json_object_get(job, "held"));
	if (!status || gone || (begun && error.code == BM_E_SAME))
		state = "done";
	else if (!strcmp(cli_text(job, "state"), "cancelled"))
		state = "cancelled";
	else if (begun)
		state = "failed";
	/* The guest may be on our disk still: whoever asks again goes on. */
	if (cli_slip_is_left(q->cli, hook_request_text(q, "qmp"), hook_request_text(q, "drive")))
		state = "held";
	answer = hook_answer(q, state, job, !strcmp(state, "done") || job ? NULL : &error);
	if (!strcmp(state, "held") && error.code && !json_object_get(answer, "error"))
		json_object_set_new(answer, "error",
				    json_pack("{s:s s:s}", "code", bm_code_name(error.code),
					      "message", error.text));
	if (!strcmp(state, "done") && !json_object_get(answer, "target"))
		json_object_set_new(answer, "target", json_string(target));
	json_object_set_new(answer, "phase", json_string("ended"));
	json_decref(job);
	return answer;
}

__attribute__((noreturn)) static void run(struct hook_request *q, int begun)
{
	struct runner self = {.q = q, .begun = begun};
	const struct cli_witness witness = {began, moved, &self};
	struct cli cli = *q->cli;
	json_t *params = hook_request_params(q), *answer;
	bm_close int null = open("/dev/null", O_RDWR | O_CLOEXEC);
	bm_close int words = memfd_create("words", MFD_CLOEXEC);
	struct bm_error error;
	int status;

	setsid();
	signal(SIGHUP, SIG_IGN);
	dup2(null, STDIN_FILENO);
	dup2(words >= 0 ? words : null, STDOUT_FILENO);
	dup2(null, STDERR_FILENO);
	cli.json = true;
	cli.progress = PROGRESS_NONE;
	cli.witness = &witness;
	status = cli_relocate_slipped(&cli, hook_request_text(q, "qmp"),
				      hook_request_text(q, "drive"), hook_request_text(q, "target"),
				      params);
	fflush(stdout);
	answer = conclude(q, status, words);
	_exit(claim_note(&q->claim, "answer", answer, &error) < 0);
}

/*
 * Starts one, and waits until its job runs, or it has ended; not long where nobody wants to. The
 * lock is its own then.
 */
static int start(struct hook_request *q, struct bm_error *error)
{
	bm_close int to_read = -1;
	int pipes[2], r = 0;
	pid_t pid;

	if (json_object_get(q->claim.said, "answer")) { /* of one that did not come to an end */
		json_object_del(q->claim.said, "answer");
		r = claim_note(&q->claim, "again", json_true(), error);
	}
	if (!r && pipe2(pipes, O_CLOEXEC) < 0)
		r = bm_fail_errno(error, errno, "cannot make a pipe");
	if (r < 0)
		return r;
	to_read = pipes[0];
	pid = fork();
	if (!pid) {
		close(to_read);
		run(q, pipes[1]);
	}
	r = pid < 0 ? bm_fail_errno(error, errno, "cannot start a process") : 0;
	close(pipes[1]);
	if (!r)
		poll(&(struct pollfd){.fd = to_read, .events = POLLIN}, 1,
		     q->wait || q->cancel ? -1 : AT_ONCE_MS);
	claim_leave(&q->claim);
	return r;
}

/* Who has the lock is at it. */
static json_t *look(const struct hook_request *q)
{
	const char *disk = cli_text(json_object_get(q->claim.said, "began"), "disk");
	struct bm_client *client = NULL;
	json_t *job = NULL, *answer, *shown;

	if (*disk && !cli_connect(q->cli, disk, &client, NULL))
		bm_client_call(client, "job.show", json_pack("{s:s}", "request", q->id), &job,
			       NULL);
	bm_client_close(client);
	shown = job ? hook_answer_job(q, job) : NULL;
	/* At its end it is not with QEMU again yet. */
	answer = shown && !hook_is_final(shown) && strcmp(cli_text(shown, "state"), "refused") != 0
			 ? json_incref(shown)
			 : hook_answer(q, *disk ? "running" : "accepted", NULL, NULL);
	json_decref(shown);
	json_decref(job);
	return answer;
}

/* What the last runner has left; NULL: none has. */
static json_t *concluded(struct hook_request *q)
{
	json_t *answer = json_object_get(q->claim.said, "answer");

	if (!answer)
		return NULL;
	/* Nothing has been changed: the id is free. */
	if (!strcmp(cli_text(answer, "state"), "refused") && claim_lock(&q->claim, false))
		claim_drop(&q->claim);
	return json_deep_copy(answer);
}

/* The runner's job is told to end, as soon as there is one. Whether it was. */
static bool cancel(struct hook_request *q, struct bm_error *error)
{
	for (int i = 0; i < BEGINS_MS / STEP_MS; i++) {
		struct bm_client *client = NULL;
		const char *disk;
		int r = -1;

		claim_look(&q->claim);
		disk = cli_text(json_object_get(q->claim.said, "began"), "disk");
		if (*disk && !cli_connect(q->cli, disk, &client, error))
			r = bm_client_call(client, "job.cancel",
					   json_pack("{s:s}", "request", q->id), NULL, error);
		bm_client_close(client);
		if (!r || claim_lock(&q->claim, false)) /* or it has ended */
			return true;
		if (*disk && error->code == BM_E_FINISHED)
			return true;
		poll(NULL, 0, STEP_MS);
	}
	return false;
}

json_t *hook_slip(struct hook_request *q)
{
	struct bm_error error = {0};
	json_t *answer = NULL;

	if (q->switches) {
		bm_fail(&error, BM_E_USAGE, "switch does not go with qmp and drive");
		return hook_answer(q, "unknown", NULL, &error);
	}
	for (int tries = 0; !answer && tries < MOST_TRIES; tries++) {
		if (q->claim.locked && start(q, &error) < 0)
			return hook_answer(q, "unknown", NULL, &error);
		if (q->cancel && !cancel(q, &error))
			return hook_answer(q, "unknown", NULL, &error);
		if (q->wait || q->cancel)
			claim_lock(&q->claim, true);
		claim_look(&q->claim);
		answer = concluded(q);
		if (!answer && !q->claim.locked) /* a runner lives */
			answer = look(q);
	}
	if (!answer)
		bm_fail(&error, BM_E_INTERRUPTED, "what carries it out is killed again and again");
	return answer ? answer : hook_answer(q, "unknown", NULL, &error);
}
