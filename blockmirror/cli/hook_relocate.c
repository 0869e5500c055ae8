/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * hook relocate: a manager's one way to have a disk moved, to ask how far that is, and to give it
 * up. Here for disks that are served; hook_slip.c has those of a running QEMU, hook_machine.c
 * machines.
 *
 * The id is claimed first, durably. Then the disk's process is asked with the id; it knows whether
 * it has a job of that already (disk/request.c). So this command may die at any moment, and be
 * called again, by whomever.
 */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/record.h"
#include "blockmirror/base/requests.h"
#include "blockmirror/cli/hook.h"
#include "blockmirror/cli/hook_request.h"

#define AT_ONCE 3000000000ull /* ns: longer nobody waits who does not want to */
enum { AGAIN_MS = 300, PATIENCE_MS = 60000, LOST_AGAIN_MS = 50, LOST_MS = 3000 };

/* Nothing was heard: what was asked may have been done. An error that was told is an answer. */
static bool is_silence(int r)
{
	return r == -ECONNRESET || r == -ETIMEDOUT || r == -EINTR;
}

/* lost: its process ended, or made place for another one, between the connection and the answer. */
static int call(struct hook_request *q, struct bm_client *client, const char *method,
		json_t *params, json_t **job, struct bm_error *error)
{
	int r = bm_client_call(client, method, params, job, error);

	if (is_silence(r))
		q->lost = r == -ECONNRESET;
	return r;
}

/*
 * Nobody serves the disk. What its folder says: the job runs, and goes on when the disk is served
 * again, or has ended; NULL: of this request nothing came.
 */
static json_t *answer_from_files(const struct hook_request *q)
{
	bm_record_auto struct bm_record record = {0};
	const char *name = hook_request_text(q, "disk"), *of;
	bm_free char *folder = NULL, *id = NULL;
	json_t *jobs = NULL, *job, *answer = NULL;

	if (asprintf(&folder, "%s/disks/%s", q->cli->state_dir, name) < 0)
		return NULL;
	if (bm_record_read(folder, &record, NULL) < 0)
		return NULL;
	of = bm_request_of(record.job);
	if (bm_requests_read(folder, &jobs, NULL) < 0)
		jobs = NULL;
	job = of && !strcmp(of, q->id) ? record.job : bm_requests_find(jobs, q->id);
	if (job && !hook_request_is(q, job)) {
		struct bm_error error;

		bm_fail(&error, BM_E_ID_REUSED,
			"request %s of disk %s was another one: give each its own id", q->id, name);
		if (q->claim.locked)
			claim_drop(&q->claim);
		answer = hook_answer(q, "refused", NULL, &error);
	} else if (job && asprintf(&id, "%s.%lld", name,
				   json_integer_value(json_object_get(job, "number"))) >= 0) {
		json_object_set_new(job, "id", json_string(id));
		if (strcmp(cli_text(job, "state"), "running") != 0)
			json_object_set_new(job, "phase", json_string("ended"));
		json_object_del(job, "source"); /* may have passwords in it */
		json_object_del(job, "target");
		answer = hook_answer_job(q, job);
	}
	json_decref(jobs);
	return answer;
}

static json_t *by_id(const struct hook_request *q)
{
	return json_pack("{s:s}", "request", q->id);
}

/* A look at it, by whoever of the disk answers now. NULL: nothing is seen. */
static json_t *look(const struct hook_request *q)
{
	struct bm_client *client = NULL;
	json_t *job = NULL, *answer;

	if (cli_connect(q->cli, hook_request_text(q, "disk"), &client, NULL) < 0)
		return NULL;
	bm_client_set_timeout(client, AT_ONCE);
	answer = bm_client_call(client, "job.show", by_id(q), &job, NULL) < 0
			 ? NULL
			 : hook_answer_job(q, job);
	json_decref(job);
	bm_client_close(client);
	return answer;
}

/* The disk's process does not know it, or does not answer, or (client NULL) is not there. */
static json_t *answer_failure(struct hook_request *q, struct bm_client *client, int r,
			      const struct bm_error *error)
{
	bool silent = client ? is_silence(r) : error->code == BM_E_UNREACHABLE;
	json_t *answer = client && error->code != BM_E_ID_REUSED ? look(q) : NULL;

	if (!client)
		answer = answer_from_files(q);
	if (answer)
		return answer;
	/* Where it was asked for before, somebody may still have it begun. */
	if (silent || (!client && !q->claim.made))
		return hook_answer(q, "unknown", NULL, error);
	if (q->claim.locked)
		claim_drop(&q->claim);
	return hook_answer(q, "refused", NULL, error);
}

/* Asks for it, or, where somebody else just does, looks. */
static json_t *ask(struct hook_request *q, struct bm_client *client)
{
	struct bm_error error;
	json_t *job = NULL, *answer;
	int r;

	if (q->claim.locked)
		r = call(q, client, "relocate", hook_request_params(q), &job, &error);
	else
		r = call(q, client, "job.show", by_id(q), &job, &error);
	if (r < 0 && !q->claim.locked && error.code == BM_E_NOT_FOUND)
		return hook_answer(q, "accepted", NULL, NULL);
	if (r < 0)
		return answer_failure(q, client, r, &error);
	answer = hook_answer_job(q, job);
	json_decref(job);
	return answer;
}

static bool is(const json_t *answer, const char *state)
{
	return !strcmp(cli_text(answer, "state"), state);
}

/* A job of that request is known: it is told to switch, or to end; then waited for. */
static json_t *go_on(struct hook_request *q, struct bm_client *client, json_t *answer)
{
	bool manual = json_is_true(json_object_get(json_object_get(q->asked, "options"), "manual"));
	const char *method = q->cancel ? "job.cancel" : q->switches ? "switch" : NULL;
	json_t *params = by_id(q), *job = NULL;
	struct bm_error error;
	int r = 0;

	if (method)
		r = call(q, client, method, json_incref(params), &job, &error);
	if (!r && q->wait && !q->cancel) {
		json_object_set_new(params, "for",
				    json_string(manual && !q->switches ? "in-sync" : "done"));
		json_decref(job);
		job = NULL;
		r = call(q, client, "job.wait", json_incref(params), &job, &error);
	}
	json_decref(params);
	if (r < 0 && !is_silence(r)) {
		json_object_set_new(answer, "error",
				    json_pack("{s:s s:s}", "code", bm_code_name(error.code),
					      "message", error.text));
	} else if (r < 0 || job) {
		json_decref(answer);
		answer = r < 0 ? hook_answer(q, "unknown", NULL, &error) : hook_answer_job(q, job);
	}
	json_decref(job);
	return answer;
}

static json_t *once(struct hook_request *q)
{
	struct bm_client *client = NULL;
	struct bm_error error;
	json_t *answer;
	int r = cli_connect(q->cli, hook_request_text(q, "disk"), &client, &error);

	if (r < 0)
		return answer_failure(q, NULL, r, &error);
	/* Hooks, and a target that is far away, take their time. */
	bm_client_set_timeout(client, q->wait ? 0 : AT_ONCE);
	answer = q->cancel || q->switches ? NULL : ask(q, client);
	bm_client_set_timeout(client, 0);
	if (!answer) {
		json_t *job = NULL;

		if (call(q, client, "job.show", by_id(q), &job, &error) < 0)
			answer = hook_answer(q, "unknown", NULL, &error);
		else
			answer = hook_answer_job(q, job);
		json_decref(job);
	}
	if (!is(answer, "refused") && !is(answer, "unknown") && !hook_is_final(answer)) {
		claim_unlock(&q->claim);
		if (q->wait || q->cancel || q->switches)
			answer = go_on(q, client, answer);
	}
	bm_client_close(client);
	return answer;
}

/*
 * What wait is for: the disk's process may end and come again, as often as it likes. Who does not
 * wait is not told "unknown" by a connection that was lost: another one may be had at once, or the
 * files have the answer.
 */
static bool comes_further(const struct hook_request *q, const json_t *answer, int *left)
{
	bool waits = q->wait && (is(answer, "unknown") || is(answer, "accepted") ||
				 (is(answer, "running") && !json_object_get(answer, "copied")));
	bool lost = q->lost && is(answer, "unknown");
	int pause = lost ? LOST_AGAIN_MS : AGAIN_MS;

	if ((!waits && !lost) || *left <= 0)
		return false;
	poll(NULL, 0, pause);
	*left -= pause;
	return true;
}

static json_t *relocate_disk(struct hook_request *q)
{
	int left = q->wait ? PATIENCE_MS : LOST_MS;
	json_t *answer = once(q);

	while (comes_further(q, answer, &left)) {
		json_decref(answer);
		q->claim.made = false;
		claim_lock(&q->claim, q->wait);
		answer = once(q);
	}
	return answer;
}

/* The id stands for something. */
static json_t *carry_out(struct hook_request *q)
{
	const json_t *before = json_object_get(q->claim.said, "answer");
	struct bm_error error;
	json_t *answer;

	if (!q->asked)
		q->asked = json_incref(json_object_get(q->claim.said, "asked"));
	if (hook_is_final(before))
		return json_deep_copy(before);
	answer = hook_request_text(q, "disk")      ? relocate_disk(q)
		 : hook_request_text(q, "machine") ? hook_machine(q)
						   : hook_slip(q);
	/* So it is known when the disk is no more, or has had many others since. */
	if (hook_is_final(answer) && !hook_is_final(json_object_get(q->claim.said, "answer")) &&
	    claim_note(&q->claim, "answer", json_incref(answer), &error) < 0)
		fprintf(stderr, "blockmirror: %s\n", error.text);
	return answer;
}

int hook_relocate(struct cli *cli, int argc, char **argv)
{
	struct hook_request q = {.cli = cli, .claim = {.fd = -1}};
	struct bm_error error;
	json_t *answer;
	int r;

	(void)argv;
	if (argc)
		return cli_usage(cli, "hook relocate takes an object on standard input, and no "
				      "arguments");
	r = hook_request_read(&q, &error);
	if (!r)
		r = claim_open(&q.claim, cli->state_dir, q.id, q.asked,
			       q.asked && !q.cancel && !q.switches, q.wait, &error);
	if (r == -ENOENT)
		r = bm_fail(&error, BM_E_NOT_FOUND, "nothing was asked for with id %s", q.id);
	answer = r < 0 ? hook_answer(&q, "refused", NULL, &error) : carry_out(&q);
	r = hook_say(&q, answer);
	hook_request_clear(&q);
	return r;
}
