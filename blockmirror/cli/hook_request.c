/* SPDX-License-Identifier: BSD-3-Clause */
/* The objects of hook relocate. What comes in are foreign bytes: bounded, and known by name. */
#include "blockmirror/cli/hook_request.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/day_window.h"
#include "blockmirror/base/disk_name.h"
#include "blockmirror/base/requests.h"
#include "blockmirror/base/units.h"
#include "blockmirror/base/uri.h"
#include "blockmirror/cli/machine.h"

enum { LARGEST = 64 << 10, LONGEST_TEXT = 4096 };

enum kind { FLAG, SIZE, TIME, SPAN, LATENCY, LOSS, SOURCE, POLICY, WINDOW, SHARES };

/* What is to be moved: a disk that is served, one of a running QEMU, a machine. */
enum subject { DISK = 1, DRIVE = 2, MACHINE = 4 };

/* As the methods of a disk, and machine.migrate, have them (docs/protocol.md). */
static const struct {
	const char *name;
	enum kind kind;
	int goes_with;
	const char *wanted;
} options[] = {
	{"overwrite", FLAG, DISK | DRIVE | MACHINE, "true or false"},
	{"delete_source", FLAG, DISK | DRIVE, "true or false"},
	{"verify", FLAG, DISK | DRIVE, "true or false"},
	{"accept_repair", FLAG, DISK | DRIVE, "true or false"},
	{"manual", FLAG, DISK, "true or false"},
	{"rate", SIZE, DISK | DRIVE | MACHINE, "bytes a second, or a text like \"64M\""},
	{"undo_window", TIME, DISK, "nanoseconds, or a text like \"10m\""},
	{"target_deadline", TIME, DISK | DRIVE, "nanoseconds, or a text like \"2s\""},
	{"guest_latency", LATENCY, DISK | DRIVE,
	 "\"auto\", \"off\", nanoseconds, or a text like \"5ms\""},
	{"on_target_loss", LOSS, DISK | DRIVE,
	 "\"wait\", \"pause\", nanoseconds, or a text like \"10m\""},
	{"on_source_error", SOURCE, DISK, "\"stop\" or \"skip\""},
	{"rehearse", FLAG, MACHINE, "true or false"},
	{"dry_run", FLAG, MACHINE, "true or false"},
	{"copy_media", FLAG, MACHINE, "true or false"},
	{"pause_budget", SPAN, MACHINE, "nanoseconds, more than 0, or a text like \"300ms\""},
	{"timeout", SPAN, MACHINE, "nanoseconds, more than 0, or a text like \"10m\""},
	{"policy", POLICY, MACHINE, "\"wait\", \"cancel\", \"force\" or \"throttle\""},
	{"window", WINDOW, MACHINE, "times like \"22:00-06:00\""},
	{"shared", SHARES, MACHINE, "true, or an object of disks' names and where they are there"},
};
enum { OPTIONS = sizeof(options) / sizeof(options[0]) };

static bool is_one_of(const char *text, const char *a, const char *b)
{
	return text && (!strcmp(text, a) || !strcmp(text, b));
}

static json_t *number(const json_t *value, int (*parse)(const char *text, uint64_t *out))
{
	const char *text = json_string_value(value);
	uint64_t n = 0;

	if (text && (parse(text, &n) < 0 || n > INT64_MAX))
		return NULL;
	if (!text && (!json_is_integer(value) || json_integer_value(value) < 0))
		return NULL;
	return json_integer(text ? (json_int_t)n : json_integer_value(value));
}

static json_t *span(const json_t *value)
{
	json_t *n = number(value, bm_parse_duration);

	if (n && json_integer_value(n))
		return n;
	json_decref(n);
	return NULL;
}

static bool is_window(const char *text)
{
	struct bm_day_window window;

	return text && bm_day_window_parse(text, &window) >= 0;
}

/* true: all of them are reached by what they are here. */
static json_t *shares(json_t *value)
{
	const char *name;
	json_t *where;

	if (json_is_boolean(value))
		return json_is_true(value) ? json_pack("{s:s}", "*", "") : json_incref(value);
	json_object_foreach(value, name, where)
		if (!json_is_string(where))
			return NULL;
	return json_object_size(value) ? json_incref(value) : NULL;
}

/* One meaning, one spelling; NULL: it has none. */
static json_t *normal(enum kind kind, json_t *value)
{
	const char *text = json_string_value(value);

	switch (kind) {
	case FLAG:
		return json_is_boolean(value) ? json_incref(value) : NULL;
	case SIZE:
		return number(value, bm_parse_size);
	case LATENCY:
		return is_one_of(text, "auto", "off") ? json_incref(value)
						      : number(value, bm_parse_duration);
	case LOSS:
		return is_one_of(text, "wait", "pause") ? json_incref(value)
							: number(value, bm_parse_duration);
	case SOURCE:
		return is_one_of(text, "stop", "skip") ? json_incref(value) : NULL;
	case SPAN:
		return span(value);
	case POLICY:
		return is_one_of(text, "wait", "cancel") || is_one_of(text, "force", "throttle")
			       ? json_incref(value)
			       : NULL;
	case SHARES:
		return shares(value);
	case WINDOW:
		return is_window(text) ? json_incref(value) : NULL;
	default:
		return number(value, bm_parse_duration);
	}
}

static int read_options(json_t *given, enum subject subject, json_t *into, struct bm_error *error)
{
	const char *key;
	json_t *value;

	if (given && !json_is_object(given))
		return bm_fail(error, BM_E_USAGE, "options: an object is wanted");
	json_object_foreach(given, key, value) {
		json_t *meant = NULL;
		size_t i = 0;

		while (i < OPTIONS && strcmp(options[i].name, key) != 0)
			i++;
		if (i == OPTIONS)
			return bm_fail(error, BM_E_USAGE, "options: \"%.100s\" is not known", key);
		if (!(options[i].goes_with & subject))
			return bm_fail(error, BM_E_USAGE, "options: %s does not go with %s", key,
				       subject == DISK    ? "disk"
				       : subject == DRIVE ? "qmp and drive"
							  : "machine");
		meant = normal(options[i].kind, value);
		if (!meant)
			return bm_fail(error, BM_E_USAGE, "options: %s: %s is wanted", key,
				       options[i].wanted);
		if (json_is_false(meant))
			json_decref(meant);
		else
			json_object_set_new(into, key, meant);
	}
	if (json_object_get(into, "accept_repair"))
		json_object_set_new(into, "verify", json_true());
	return 0;
}

/* A text member; 0 also when it is not there. */
static int read_text(const json_t *given, const char *key, const char **text,
		     struct bm_error *error)
{
	const json_t *value = json_object_get(given, key);

	*text = json_string_value(value);
	if (value && (!*text || !**text || strlen(*text) > LONGEST_TEXT ||
		      strlen(*text) != json_string_length(value)))
		return bm_fail(error, BM_E_USAGE, "%s: a text of 1 to %d bytes is wanted", key,
			       LONGEST_TEXT);
	return 0;
}

static int read_flag(const json_t *given, const char *key, bool *flag, struct bm_error *error)
{
	const json_t *value = json_object_get(given, key);

	*flag = json_is_true(value);
	return value && !json_is_boolean(value)
		       ? bm_fail(error, BM_E_USAGE, "%s: true or false is wanted", key)
		       : 0;
}

/* Where the caller happens to be is not part of what it asks for. */
static bool is_whole(const char *target)
{
	size_t scheme = strcspn(target, ":/");

	return target[0] == '/' || target[scheme] == ':';
}

static int check_what(const char *disk, const char *machine, const char *qmp, const char *drive,
		      struct bm_error *error)
{
	if (!qmp != !drive || !!disk + !!machine + !!qmp != 1)
		return bm_fail(error, BM_E_USAGE,
			       "one of these is wanted: disk (the name of one that is served), "
			       "machine (the name of one that is known), qmp and drive (of a "
			       "running QEMU)");
	if (qmp && qmp[0] != '/')
		return bm_fail(error, BM_E_USAGE, "qmp: a path that begins with / is wanted");
	if (machine && bm_disk_name_check(machine, NULL) < 0)
		return bm_fail(error, BM_E_USAGE,
			       "\"%.100s\" is no name of a machine: letters, digits, and . _ -",
			       machine);
	return disk ? bm_disk_name_check(disk, error) : 0;
}

/* malloc()ed; NULL: there is none, or it makes no sense. */
static char *read_target(const char *given, enum subject subject, struct bm_error *error)
{
	char *target;

	if (subject == MACHINE)
		return hook_machine_target(given, error);
	if (!given || !is_whole(given)) {
		bm_fail(error, BM_E_USAGE,
			"target: a path that begins with /, or a URI, is wanted");
		return NULL;
	}
	target = bm_uri_absolute(given);
	if (!target)
		target = strdup(given);
	if (!target)
		bm_fail_errno(error, ENOMEM, "target");
	return target;
}

/* What one option alone does not tell. */
static int check_machine(const json_t *chosen, struct bm_error *error)
{
	if (json_object_get(chosen, "rehearse") && json_object_get(chosen, "dry_run"))
		return bm_fail(error, BM_E_USAGE,
			       "options: dry_run or rehearse, one of them is wanted");
	return machine_check_policy(json_string_value(json_object_get(chosen, "policy")),
				    cli_number(chosen, "timeout"), "", error);
}

static int read_asked(struct hook_request *q, struct bm_error *error)
{
	static const char *const keys[] = {"disk", "machine", "qmp", "drive", "target"};
	const char *text[] = {NULL, NULL, NULL, NULL, NULL};
	bool any = json_object_get(q->given, "options");
	bm_free char *target = NULL;
	enum subject subject;
	json_t *chosen;
	int r = 0;

	for (size_t i = 0; !r && i < sizeof(keys) / sizeof(keys[0]); i++) {
		r = read_text(q->given, keys[i], &text[i], error);
		any |= text[i] != NULL;
	}
	if (r < 0 || !any)
		return r;
	r = check_what(text[0], text[1], text[2], text[3], error);
	if (r < 0)
		return r;
	subject = text[0] ? DISK : text[1] ? MACHINE : DRIVE;
	target = read_target(text[4], subject, error);
	if (!target)
		return -EINVAL;
	chosen = json_object();
	q->asked = json_pack("{s:s* s:s* s:s* s:s* s:s s:o}", "disk", text[0], "machine", text[1],
			     "qmp", text[2], "drive", text[3], "target", target, "options", chosen);
	if (!q->asked)
		return bm_fail(error, BM_E_USAGE, "target: the name is not UTF-8");
	r = read_options(json_object_get(q->given, "options"), subject, chosen, error);
	return !r && subject == MACHINE ? check_machine(chosen, error) : r;
}

static int check_keys(const json_t *given, struct bm_error *error)
{
	static const char *const known[] = {"id",     "disk",    "machine", "qmp",    "drive",
					    "target", "options", "wait",    "cancel", "switch"};
	const char *key;
	json_t *value;

	json_object_foreach((json_t *)given, key, value) {
		size_t i = 0;

		while (i < sizeof(known) / sizeof(known[0]) && strcmp(known[i], key) != 0)
			i++;
		if (i == sizeof(known) / sizeof(known[0]))
			return bm_fail(error, BM_E_USAGE, "\"%.100s\" is not known", key);
	}
	return 0;
}

static int read_input(struct hook_request *q, struct bm_error *error)
{
	bm_free char *text = malloc(LARGEST + 1);
	size_t n = text ? fread(text, 1, LARGEST + 1, stdin) : 0;
	json_error_t why;

	if (!text)
		return bm_fail_errno(error, ENOMEM, "standard input");
	if (n > LARGEST)
		return bm_fail(error, BM_E_USAGE, "standard input: more than %d bytes", LARGEST);
	q->given = json_loadb(text, n, JSON_REJECT_DUPLICATES, &why);
	if (!q->given)
		return bm_fail(error, BM_E_USAGE,
			       "standard input: a JSON object is wanted (line %d: %s)", why.line,
			       why.text);
	return json_is_object(q->given)
		       ? 0
		       : bm_fail(error, BM_E_USAGE, "standard input: a JSON object is wanted");
}

int hook_request_read(struct hook_request *q, struct bm_error *error)
{
	const char *id;
	int r = read_input(q, error);

	if (!r)
		r = check_keys(q->given, error);
	if (!r)
		r = read_text(q->given, "id", &id, error);
	if (!r && !id)
		r = bm_fail(error, BM_E_USAGE,
			    "id: a text is wanted, another one for each "
			    "relocation");
	if (!r)
		r = bm_request_check_id(id, error);
	if (r < 0)
		return r;
	q->id = id;
	r = read_flag(q->given, "wait", &q->wait, error);
	if (!r)
		r = read_flag(q->given, "cancel", &q->cancel, error);
	if (!r)
		r = read_flag(q->given, "switch", &q->switches, error);
	if (!r && q->cancel && q->switches)
		r = bm_fail(error, BM_E_USAGE, "cancel and switch contradict each other");
	return r ? r : read_asked(q, error);
}

void hook_request_clear(struct hook_request *q)
{
	claim_close(&q->claim);
	json_decref(q->asked);
	json_decref(q->given);
}

const char *hook_request_text(const struct hook_request *q, const char *key)
{
	return json_string_value(json_object_get(q->asked, key));
}

json_t *hook_request_mark(const struct hook_request *q)
{
	char digest[BM_REQUEST_DIGEST];

	bm_request_digest(q->asked, digest);
	return json_pack("{s:s s:s}", "id", q->id, "digest", digest);
}

bool hook_request_is(const struct hook_request *q, const json_t *job)
{
	json_t *mark = hook_request_mark(q);
	bool is = json_equal(json_object_get(job, "request"), mark);

	json_decref(mark);
	return is;
}

json_t *hook_request_params(const struct hook_request *q)
{
	json_t *params = json_deep_copy(json_object_get(q->asked, "options"));

	json_object_set(params, "target", json_object_get(q->asked, "target"));
	json_object_set_new(params, "request", hook_request_mark(q));
	return params;
}

json_t *hook_answer(const struct hook_request *q, const char *state, const json_t *job,
		    const struct bm_error *error)
{
	const json_t *progress = json_object_get(job, "progress");
	json_t *answer = json_pack(
		"{s:i s:s* s:s s:O* s:O* s:s* s:O* s:O* s:O* s:O* s:O*}", "v", 1, "id", q->id,
		"state", state, "disk", json_object_get(q->asked, "disk"), "machine",
		json_object_get(q->asked, "machine"), "job",
		json_string_value(json_object_get(job, "id")), "phase",
		json_object_get(job, "phase"), "source", json_object_get(job, "source"), "target",
		json_object_get(job, "target"), "total", json_object_get(progress, "total"),
		"copied", json_object_get(progress, "done"));

	if (error)
		json_object_set_new(answer, "error",
				    json_pack("{s:s s:s}", "code", bm_code_name(error->code),
					      "message", error->text));
	else if (json_object_get(job, "error"))
		json_object_set(answer, "error", json_object_get(job, "error"));
	return answer;
}

json_t *hook_answer_job(const struct hook_request *q, const json_t *job)
{
	const char *state = cli_text(job, "state"), *phase = cli_text(job, "phase");
	const json_t *held = cli_held(job) ? json_object_get(job, "held") : NULL;
	struct bm_error error = {0};

	if (cli_left_out(job))
		bm_fail(&error, BM_E_IO,
			"%llu bytes of the source cannot be read, all else is copied; the disk "
			"stays where it is until they were written anew, or cancel",
			(unsigned long long)cli_number(job, "unreadable_bytes"));
	else if (held)
		bm_fail(&error, bm_code_by_name(cli_text(held, "code")), "%s",
			cli_text(held, "message"));
	if (error.code)
		state = "held";
	else if (!strcmp(state, "running") || !strcmp(state, "paused"))
		state = !strcmp(phase, "undo-window") ? "done"
			: !strcmp(phase, "preparing") ? "accepted"
						      : "running";
	else if (!strcmp(state, "interrupted"))
		state = "failed";
	return hook_answer(q, state, job, error.code ? &error : NULL);
}

bool hook_is_final(const json_t *answer)
{
	static const char *const final[] = {"done", "failed", "cancelled", "undone"};
	const char *state = cli_text(answer, "state"), *phase = cli_text(answer, "phase");
	bool ends = false;

	for (size_t i = 0; i < sizeof(final) / sizeof(final[0]); i++)
		ends |= !strcmp(state, final[i]);
	return ends && (!*phase || !strcmp(phase, "ended"));
}

int hook_say(const struct hook_request *q, json_t *answer)
{
	static const char *const good[] = {"accepted", "running", "done"};
	const json_t *error = json_object_get(answer, "error");
	const char *state = cli_text(answer, "state");
	int status = 1; /* a job that did not do it, whatever for */

	for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++)
		if (!strcmp(state, good[i])) /* an error: it was told something, and did not */
			status = error ? bm_code_exit(bm_code_by_name(cli_text(error, "code"))) : 0;
	if (!strcmp(state, "refused") || !strcmp(state, "unknown") || !strcmp(state, "held"))
		status = bm_code_exit(bm_code_by_name(cli_text(error, "code")));
	if (q->cancel && !strcmp(state, "cancelled"))
		status = 0;
	if (q->cancel && !strcmp(state, "done"))
		status = bm_code_exit(BM_E_FINISHED);
	json_dumpf(answer, stdout, JSON_COMPACT);
	putchar('\n');
	json_decref(answer);
	return fflush(stdout) ? 1 : status;
}
