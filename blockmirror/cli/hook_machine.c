/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * hook relocate: a machine goes to another host, as migrate MACHINE --to HOST has it.
 *
 * The id is claimed first, durably; then blockmirrord is asked with it, which begins no move of an
 * id that it knows. What there is of a move is read from files: its plan, STATE/moves/MOVE/plan, as
 * long as it goes on, with its process beside, which tells how far it is; and behind that the
 * machine's own file, which has what became of it before the plan goes. So no daemon is needed to
 * be told, and a plan that is looked for first is not missed.
 *
 * A refusal leaves the id free: who is told of it drops the claim.
 */
#include <dirent.h>
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/file_util.h"
#include "blockmirror/base/requests.h"
#include "blockmirror/cli/hook_request.h"

#define AT_ONCE 3000000000ull  /* ns: longer nobody waits who does not want to */
#define ANSWER  30000000000ull /* who waits does so for the daemon, too */
enum {
	AGAIN_MS = 200,
	PATIENCE_MS = 60000, /* who waits does, when nobody answers */
	LOST_MS = 3000,
	DOUBT_MS = 10000,
	LARGEST = 4 << 20,
	LONGEST_HOST = 200
};

/* What is known of the request's move. */
struct known {
	json_t *report;   /* as its process has it, or had; NULL: it does not answer */
	char *move;       /* NULL: nothing is known */
	bool over, early; /* early: nothing has been changed yet */
};

static void forget(struct known *k)
{
	json_decref(k->report);
	free(k->move);
}
#define known_auto __attribute__((cleanup(forget)))

/* What is asked for */

char *hook_machine_target(const char *given, struct bm_error *error)
{
	bool named = given && !strchr(given, '/') && !strchr(given, ':');
	const char *rest = given && !strncmp(given, "bm://", 5) ? given + 5 : named ? given : "";
	size_t host = strcspn(rest, "/"), length = strlen(rest);
	char *target;

	if (!host || host > LONGEST_HOST || strpbrk(rest, ":?#")) {
		bm_fail(error, BM_E_USAGE,
			"target: of a machine it is bm://HOST, bm://HOST/FOLDER, or the name of a "
			"host");
		return NULL;
	}
	while (length && rest[length - 1] == '/')
		length--;
	if (asprintf(&target, "bm://%.*s", (int)length, rest) >= 0)
		return target;
	bm_fail_errno(error, ENOMEM, "target");
	return NULL;
}

/* As machine.migrate has it. */
static json_t *params_of(const struct hook_request *q)
{
	const char *rest = hook_request_text(q, "target") + 5, *into = strchr(rest, '/');
	json_t *options = json_deep_copy(json_object_get(q->asked, "options"));
	size_t host = strcspn(rest, "/");

	if (into)
		json_object_set_new(options, "into", json_string(into));
	return json_pack("{s:O s:s% s:o s:o}", "name", json_object_get(q->asked, "machine"), "to",
			 rest, host, "options", options, "request", hook_request_mark(q));
}

/* What is known */

/* The move that the id was noted to stand for, or "". */
static const char *began(const struct hook_request *q)
{
	return cli_text(json_object_get(q->claim.said, "began"), "move");
}

static json_t *read_json(const char *path)
{
	bm_free char *text = NULL;

	return bm_read_text(path, LARGEST, &text) < 0 ? NULL : json_loads(text, 0, NULL);
}

static bool is_of(const struct hook_request *q, const json_t *job)
{
	const char *id = bm_request_of(job);

	return id && !strcmp(id, q->id);
}

/* 1: it is q's, and k has it; 0: another one's; -errno: of this id, and of something else. */
static int take(const struct hook_request *q, const json_t *job, struct known *k,
		struct bm_error *error)
{
	if (!is_of(q, job) ||
	    strcmp(cli_text(job, "machine"), hook_request_text(q, "machine")) != 0)
		return 0;
	if (!hook_request_is(q, job))
		return bm_fail(error, BM_E_ID_REUSED,
			       "request %s of machine %s was another one: give each its own id",
			       q->id, hook_request_text(q, "machine"));
	k->move = strdup(cli_text(job, "move"));
	return k->move ? 1 : bm_fail_errno(error, ENOMEM, "request %s", q->id);
}

static bool has_begun(const json_t *plan)
{
	const json_t *disk;
	size_t i;

	json_array_foreach(json_object_get(plan, "disks"), i, disk)
		if (json_is_true(json_object_get(disk, "began")))
			return true;
	return false;
}

static int look_for_plan(const struct hook_request *q, struct known *k, struct bm_error *error)
{
	bm_free char *folder = NULL;
	struct dirent **entries = NULL;
	int n, r = 0;

	if (asprintf(&folder, "%s/moves", q->cli->state_dir) < 0)
		return bm_fail_errno(error, ENOMEM, "request %s", q->id);
	n = scandir(folder, &entries, NULL, NULL);
	for (int i = 0; i < n; i++) {
		bm_free char *path = NULL;
		json_t *plan;

		if (!r && entries[i]->d_name[0] != '.' &&
		    asprintf(&path, "%s/%s/plan", folder, entries[i]->d_name) >= 0) {
			plan = read_json(path);
			r = take(q, plan, k, error);
			k->early = !has_begun(plan);
			json_decref(plan);
		}
		free(entries[i]);
	}
	free(entries);
	return r;
}

static int look_for_end(const struct hook_request *q, struct known *k, struct bm_error *error)
{
	bm_free char *path = NULL;
	json_t *machine, *ended;
	int r;

	if (asprintf(&path, "%s/machines/%s.json", q->cli->state_dir,
		     hook_request_text(q, "machine")) < 0)
		return bm_fail_errno(error, ENOMEM, "request %s", q->id);
	machine = read_json(path);
	ended = bm_requests_find(json_object_get(machine, "requests"), q->id);
	/* Once: the id was free then, and may stand for another try. */
	if (json_is_true(json_object_get(ended, "refused")) &&
	    strcmp(began(q), cli_text(ended, "move")) != 0)
		ended = NULL;
	r = take(q, ended, k, error);
	k->over = r > 0;
	k->report = k->over ? json_incref(ended) : NULL;
	json_decref(machine);
	return r;
}

static int connect_move(const struct hook_request *q, const struct known *k,
			struct bm_client **client)
{
	bm_free char *path = NULL;
	int r;

	if (asprintf(&path, "%s/moves/%s.sock", q->cli->run_dir, k->move) < 0)
		return -ENOMEM;
	r = bm_client_connect(path, client, NULL);
	if (!r)
		bm_client_set_timeout(*client, AT_ONCE);
	return r;
}

/* Its process may come yet, or again: then the report is NULL. */
static void ask_process(const struct hook_request *q, struct known *k)
{
	struct bm_client *client = NULL;

	if (connect_move(q, k, &client) < 0)
		return;
	if (bm_client_call(client, "show", NULL, &k->report, NULL) < 0)
		k->report = NULL;
	if (k->report && q->cancel && !strcmp(cli_text(k->report, "state"), "running"))
		bm_client_call(client, "cancel", NULL, NULL, NULL);
	bm_client_close(client);
}

static int look(const struct hook_request *q, struct known *k, struct bm_error *error)
{
	int r = look_for_plan(q, k, error);

	if (!r)
		return look_for_end(q, k, error);
	if (r > 0)
		ask_process(q, k);
	return r;
}

/* The answer */

static bool is_early(const char *phase)
{
	return !strcmp(phase, "begins") || !strcmp(phase, "checking") ||
	       !strcmp(phase, "waits for its window");
}

static const char *state_of(const json_t *report, bool over)
{
	const char *state = cli_text(report, "state");

	if (!strcmp(state, "running"))
		return json_object_get(report, "doubt")      ? "held"
		       : is_early(cli_text(report, "phase")) ? "accepted"
							     : "running";
	if (strcmp(state, "aborted") != 0)
		return "done";
	if (json_is_true(json_object_get(report, "refused"))) /* the id is free when it is over */
		return over ? "refused" : "accepted";
	return !strcmp(cli_text(json_object_get(report, "error"), "code"),
		       bm_code_name(BM_E_CANCELLED))
		       ? "cancelled"
		       : "failed";
}

/* Bytes of its disks. */
static json_t *sums(const json_t *report)
{
	const json_t *disk;
	json_int_t total = 0, done = 0;
	size_t i;

	json_array_foreach(json_object_get(report, "disks"), i, disk) {
		total += (json_int_t)cli_number(disk, "total");
		done += (json_int_t)cli_number(disk, "done");
	}
	return total ? json_pack("{s:I s:I}", "total", total, "done", done) : NULL;
}

static json_t *tell(const struct hook_request *q, const struct known *k)
{
	static const char *const more[] = {"refusals", "forecast", "pause_ns", "took_ns"};
	const char *state = k->report  ? state_of(k->report, k->over)
			    : k->early ? "accepted"
				       : "running";
	bool told = strcmp(state, "accepted") != 0;
	json_t *job, *answer;
	struct bm_error doubt;

	job = json_pack("{s:s* s:O s:o* s:O*}", "phase",
			k->over     ? "ended"
			: k->report ? cli_text(k->report, "phase")
				    : NULL,
			"target", json_object_get(q->asked, "target"), "progress", sums(k->report),
			"error", told ? json_object_get(k->report, "error") : NULL);
	if (!strcmp(state, "held"))
		bm_fail(&doubt, BM_E_UNREACHABLE, "%s", cli_text(k->report, "doubt"));
	answer = hook_answer(q, state, job, strcmp(state, "held") != 0 ? NULL : &doubt);
	json_decref(job);
	json_object_set_new(answer, "move", json_string(k->move));
	for (size_t i = 0; told && i < sizeof(more) / sizeof(more[0]); i++)
		if (json_object_get(k->report, more[i]))
			json_object_set(answer, more[i], json_object_get(k->report, more[i]));
	return answer;
}

/* Nothing was heard: what was asked may have been done. */
static bool is_silence(int r)
{
	return r == -ECONNRESET || r == -ETIMEDOUT || r == -EINTR;
}

static void note(struct hook_request *q, const char *move)
{
	struct bm_error error;

	if (claim_note(&q->claim, "began", json_pack("{s:s}", "move", move), &error) < 0)
		fprintf(stderr, "blockmirror: %s\n", error.text);
}

/* NULL: a move has begun. */
static json_t *begin(struct hook_request *q)
{
	struct bm_client *client = NULL;
	struct bm_error error;
	json_t *result = NULL;
	int r = 0;

	if (!cli_daemon(q->cli, &client)) {
		bm_fail(&error, BM_E_UNREACHABLE, "no blockmirrord runs (looked in %s)",
			q->cli->run_dir);
		return hook_answer(q, "unknown", NULL, &error);
	}
	bm_client_set_timeout(client, q->wait ? ANSWER : AT_ONCE);
	r = bm_client_call(client, "machine.migrate", params_of(q), &result, &error);
	bm_client_close(client);
	q->lost = r == -ECONNRESET;
	if (r < 0)
		return hook_answer(q, is_silence(r) ? "unknown" : "refused", NULL, &error);
	note(q, cli_text(result, "move"));
	json_decref(result);
	return NULL;
}

/* Of the id nothing is known but that it is one. */
static json_t *without_move(struct hook_request *q)
{
	struct bm_error error;

	if (*began(q))
		bm_fail(&error, BM_E_NOT_FOUND,
			"nothing is known any more of move %s: machine %s was removed, or has had "
			"%d requests since",
			began(q), hook_request_text(q, "machine"), BM_REQUESTS_KEPT);
	else if (!claim_is_there(&q->claim)) {
		bm_fail(&error, BM_E_BUSY, "request %s: another caller was told why not: ask again",
			q->id);
		return hook_answer(q, "refused", NULL, &error);
	} else if (!q->claim.locked)
		return hook_answer(q, "accepted", NULL, NULL);
	else if (q->cancel)
		bm_fail(&error, BM_E_NOT_FOUND, "request %s: nothing came of it", q->id);
	else
		return NULL;
	return hook_answer(q, "unknown", NULL, &error);
}

/* What others have noted; of a claim that was dropped the last that was seen. */
static void refresh(struct hook_request *q)
{
	json_t *before = json_incref(q->claim.said);

	claim_look(&q->claim);
	if (q->claim.said)
		json_decref(before);
	else
		q->claim.said = before;
}

static json_t *once(struct hook_request *q)
{
	known_auto struct known k = {0};
	struct bm_error error;
	json_t *answer;
	int r;

	q->lost = false;
	refresh(q);
	r = look(q, &k, &error);
	if (!r) {
		answer = without_move(q);
		if (!answer)
			answer = begin(q);
		if (answer)
			return answer;
		r = look(q, &k, &error);
	}
	if (!r)
		return hook_answer(q, "accepted", NULL, NULL);
	/* Who had it begun has died before he noted that. */
	if (r > 0 && q->claim.locked && !*began(q))
		note(q, k.move);
	return r < 0 ? hook_answer(q, "refused", NULL, &error) : tell(q, &k);
}

static bool is(const json_t *answer, const char *state)
{
	return !strcmp(cli_text(answer, "state"), state);
}

/* How long it has been so goes off what is left. */
static bool spend(int *left, int ms)
{
	*left -= ms;
	return *left > 0;
}

struct patience {
	int silence, doubt; /* ms that are left */
};

/* What wait, and cancel, are for. */
static bool comes_further(const struct hook_request *q, const json_t *answer, struct patience *p)
{
	bool silent = is(answer, "unknown") || !json_object_get(answer, "phase");

	if (is(answer, "refused") || hook_is_final(answer))
		return false;
	if (!q->wait && !q->cancel)
		return q->lost && spend(&p->silence, AGAIN_MS);
	if (is(answer, "unknown") && *began(q))
		return false;
	if (silent)
		return spend(&p->silence, AGAIN_MS);
	p->silence = PATIENCE_MS;
	if (is(answer, "held"))
		return spend(&p->doubt, AGAIN_MS);
	p->doubt = DOUBT_MS;
	return true;
}

json_t *hook_machine(struct hook_request *q)
{
	struct patience p = {q->wait || q->cancel ? PATIENCE_MS : LOST_MS, DOUBT_MS};
	struct bm_error error;
	json_t *answer;

	if (q->switches) {
		bm_fail(&error, BM_E_USAGE, "switch does not go with machine");
		return hook_answer(q, "unknown", NULL, &error);
	}
	answer = once(q);
	while (comes_further(q, answer, &p)) {
		bool settled = json_object_get(answer, "move");

		json_decref(answer);
		/* Others may be told, too; or be who has it begun, and have died. */
		if (settled)
			claim_unlock(&q->claim);
		poll(NULL, 0, AGAIN_MS);
		if (!settled)
			claim_lock(&q->claim, false);
		answer = once(q);
	}
	if (is(answer, "refused") && claim_lock(&q->claim, false))
		claim_drop(&q->claim);
	return answer;
}
