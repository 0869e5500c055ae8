/* SPDX-License-Identifier: BSD-3-Clause */
/* Refusals; what the other host says; how far it is, and what a move there would take. */
#include "blockmirror/machine/preflight.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/log.h"
#include "blockmirror/base/memory.h"
#include "blockmirror/machine/graph.h"

#define CHECK 120000000000ull /* ns: two hooks */
/* What a pause has beside the last round: devices' state, two votes, the log, cont. A guess: the
 * forecast is one. */
#define FIXED     60000000.0
#define TRIPS     8 /* of a message, in the pause */
#define DIRTY_FOR 1 /* s that QEMU looks at what its guest changes */
enum { ROUNDS = 30 };

/* Refusals */

void preflight_refuse_error(json_t *list, const struct bm_error *why)
{
	json_array_append_new(list, json_pack("{s:s s:s}", "code", bm_code_name(why->code),
					      "message", why->text));
}

void preflight_refuse(json_t *list, enum bm_code code, const char *format, ...)
{
	struct bm_error why;
	char text[sizeof(why.text)];
	va_list args;

	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	bm_fail(&why, code, "%s", text);
	preflight_refuse_error(list, &why);
}

int preflight_result(struct move *m, const json_t *list, struct bm_error *error)
{
	const json_t *first = json_array_get(list, 0);

	for (size_t i = 0; i < json_array_size(list); i++)
		bm_log(BM_LOG_NOTICE, "%s: %s: %s", m->id,
		       graph_text(json_array_get(list, i), "code"),
		       graph_text(json_array_get(list, i), "message"));
	if (!first)
		return 0;
	move_tell(m, "refusals", json_deep_copy(list));
	return bm_fail(error, bm_code_by_name(graph_text(first, "code")), "%s",
		       graph_text(first, "message"));
}

/* The other host */

int preflight_there(struct source *s, struct bm_error *error)
{
	json_t *answer = NULL, *refusals;
	int r = source_call(s, "check",
			    json_pack("{s:O}", "need", json_object_get(s->m->plan, "need")), CHECK,
			    &answer, error);

	refusals = json_object_get(answer, "refusals");
	if (!r && !s->changed)
		shared_look(s, refusals);
	if (!r)
		r = preflight_result(s->m, refusals, error);
	json_decref(answer);
	return r;
}

int preflight_again(struct source *s, struct bm_error *error)
{
	json_t *list = json_array();
	int r;

	preflight_blockers(s, list);
	/* One that was shut down meanwhile refuses nothing. */
	r = source_may_go_on(s, error);
	if (!r)
		r = preflight_result(s->m, list, error);
	json_decref(list);
	return r ? r : preflight_there(s, error);
}

/* What it would take */

int preflight_measure(struct source *s, struct bm_error *error)
{
	json_t *way = NULL;
	int r = move_ask_daemon(s->m, "peer.check",
				json_pack("{s:s s:s* s:b}", "name", s->m->peer, "from",
					  s->options.bind, "briefly", (int)!s->options.dry_run),
				&way, error);

	if (!r)
		move_tell(s->m, "way",
			  json_pack("{s:O s:O}", "rtt_ns", json_object_get(way, "rtt_ns"),
				    "bandwidth", json_object_get(way, "bandwidth")));
	json_decref(way);
	return r;
}

static double number(const json_t *object, const char *key)
{
	return json_number_value(json_object_get(object, key));
}

/* Bytes a second that the guest changes of its memory; QEMU looks at a sample of it. */
static double dirty_rate(struct source *s)
{
	struct bm_error error;
	json_t *told = NULL;
	double rate = 0;

	if (vm_call(&s->vm, "calc-dirty-rate", json_pack("{s:i}", "calc-time", DIRTY_FOR), &error) <
	    0)
		return 0;
	for (int i = 0; i < DIRTY_FOR * 30; i++) {
		move_sleep(100000000ull);
		json_decref(told);
		told = NULL;
		if (bm_qmp_call(s->vm.qmp, "query-dirty-rate", NULL, &told, &error) < 0)
			break;
		if (!strcmp(graph_text(told, "status"), "measured")) {
			rate = number(told, "dirty-rate") * (1 << 20);
			break;
		}
	}
	json_decref(told);
	return rate;
}

/* Of its memory what is there at all: pages that were never touched take nine bytes. */
static double memory_bytes(struct source *s, double guest)
{
	char path[64];
	long long pages = 0;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/statm", (int)bm_qmp_peer(s->vm.qmp).pid);
	f = fopen(path, "re");
	if (f && fscanf(f, "%*d %lld", &pages) != 1)
		pages = 0;
	if (f)
		fclose(f);
	return pages && (double)pages * 4096 < guest ? (double)pages * 4096 : guest;
}

static double disk_bytes(const json_t *need)
{
	json_t *disk;
	double bytes = 0;
	size_t i;

	json_array_foreach(json_object_get(need, "disks"), i, disk)
		bytes += number(disk, "bytes");
	return bytes;
}

/* Round by round, as QEMU does it: what was changed while the last one was sent is the next one. */
static void reckon(struct source *s, double disks, double memory, double rate, json_t *forecast)
{
	const json_t *way = json_object_get(s->m->report, "way");
	double speed = number(way, "bandwidth"), most = (double)s->options.budget / 1e9 * 0.6,
	       sent = 0, round = memory, fixed = FIXED + TRIPS * number(way, "rtt_ns");
	int rounds = 0;

	speed = speed > 0 ? speed : 1;
	while (round / speed > most && rounds++ < ROUNDS) {
		double next = rate * round / speed;

		sent += round;
		round = next < memory ? next : memory;
	}
	json_object_set_new(forecast, "bytes", json_integer((json_int_t)(disks + sent + round)));
	json_object_set_new(
		forecast, "time_ns",
		json_integer((json_int_t)((disks + sent + round) / speed * 1e9 + fixed)));
	json_object_set_new(forecast, "pause_ns",
			    json_integer((json_int_t)(round / speed * 1e9 + fixed)));
	json_object_set_new(forecast, "converges", json_boolean(round / speed <= most));
}

void preflight_forecast(struct source *s)
{
	const json_t *need = json_object_get(s->m->plan, "need");
	double disks = disk_bytes(need), memory = memory_bytes(s, number(need, "guest")),
	       rate = dirty_rate(s);
	json_t *forecast =
		json_pack("{s:I s:I s:I}", "disk_bytes", (json_int_t)disks, "memory_bytes",
			  (json_int_t)memory, "dirty_rate", (json_int_t)rate);

	reckon(s, disks, memory, rate, forecast);
	move_tell(s->m, "forecast", forecast);
}
