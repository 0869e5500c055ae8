// SPDX-License-Identifier: BSD-3-Clause
/*
 * The source's rounds. Each: take what was written to, judge by that whether to stop the guest, and
 * if not, send it and wait until the target has it. A page is read after it was taken, never
 * before: what is written to it later is in the next take. The last round is made the same way,
 * with the guest stopped, and the state of its devices is behind its pages.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/ram/precopy_inside.h"
#include "blockmirror/ram/wire.h"

enum { PAGES_A_STEP = 256 };
#define REST 20000000ull /* ns between rounds of a machine that could be stopped at any time */

static void go_on(struct bm_precopy *p, enum bm_copy_phase phase)
{
	p->phase = phase;
	bm_loop_soon(p->loop, &p->step);
}

json_t *bm_precopy_describe(const struct bm_precopy *p)
{
	const struct bm_precopy_machine *m = &p->machine;
	json_t *regions = json_array();

	for (unsigned i = 0; i < m->count; i++)
		json_array_append_new(regions, json_pack("{s:s s:I}", "name", m->regions[i].name,
							 "size", (json_int_t)m->regions[i].size));
	return json_pack("{s:i s:s s:s s:i s:i s:o}", "v", 1, "move", p->move, "machine", m->name,
			 "version", (int)m->version, "page", (int)BM_RAM_PAGE, "regions", regions);
}

static uint64_t all_bytes(const struct bm_precopy *p)
{
	uint64_t bytes = 0;

	for (unsigned i = 0; i < p->machine.count; i++)
		bytes += p->machine.regions[i].size;
	return bytes;
}

static void begin_sending(struct bm_precopy *p)
{
	p->region = 0;
	p->word = p->pages = 0;
	p->began = bm_loop_now(p->loop);
	p->wire = bm_pipe_wire(p->pipe);
	go_on(p, BM_COPY_SEND);
}

/* Tracking begins before a byte is read; round 0 is all there is. */
static void first_round(struct bm_precopy *p)
{
	struct bm_error error;

	if (p->tracker->ops->start(p->tracker, &error)) {
		bm_precopy_end(p, &error);
		return;
	}
	for (unsigned i = 0; i < p->machine.count; i++) {
		uint64_t words = bm_ram_words(p->machine.regions[i].size);

		memset(p->bits[i], 0, words * sizeof(uint64_t));
		for (uint64_t w = 0; w < words; w++)
			atomic_store(&p->extra[i][w], 0);
		bm_ram_set(p->bits[i], 0, p->machine.regions[i].size / BM_RAM_PAGE);
	}
	p->left = all_bytes(p) / BM_RAM_PAGE;
	p->round = 0;
	bm_rule_begin(&p->rule, bm_loop_now(p->loop), all_bytes(p));
	begin_sending(p);
}

static void begin_pause(struct bm_precopy *p)
{
	p->stopped_at = bm_loop_now(p->loop);
	p->pause_bytes = 0;
	bm_timer_set(p->loop, &p->limit, p->stopped_at + p->pause_limit);
	bm_precopy_enter(p, BM_PRECOPY_PAUSING);
	p->ops->pause(p->arg);
}

static void give_up(struct bm_precopy *p, enum bm_verdict verdict)
{
	struct bm_error error;

	bm_fail(&error, BM_E_BUDGET,
		"the machine writes to its memory faster than it can be sent: after round %u %llu "
		"MiB are left at %llu MiB/s, %s",
		p->round, (unsigned long long)(p->left * BM_RAM_PAGE >> 20),
		(unsigned long long)(p->rule.bandwidth >> 20),
		verdict == BM_VERDICT_LATE ? "and the time is up"
					   : "and it does not get less: allow a longer pause, or "
					     "the policies throttle or force");
	bm_precopy_end(p, &error);
}

/* All regions were taken, and the guest runs. */
static void judge(struct bm_precopy *p)
{
	unsigned throttle = p->rule.throttle;
	enum bm_verdict verdict =
		bm_rule_judge(&p->rule, bm_loop_now(p->loop), p->left * BM_RAM_PAGE);
	bool may = p->automatic || p->ordered;

	p->converged = verdict == BM_VERDICT_PAUSE;
	if (verdict == BM_VERDICT_CANCEL || verdict == BM_VERDICT_LATE) {
		give_up(p, verdict);
		return;
	}
	if (throttle != p->rule.throttle && p->ops->throttle)
		p->ops->throttle(p->arg, p->rule.throttle);
	p->forced |= may && verdict == BM_VERDICT_FORCE;
	if (p->forced || (may && verdict == BM_VERDICT_PAUSE)) {
		begin_pause(p);
		return;
	}
	begin_sending(p);
}

/*
 * The last word on the pause, when it is known what it has to send. The fixed cost is also that of
 * stopping the guest; what it took more than that counts.
 */
static bool fits_budget(const struct bm_precopy *p)
{
	uint64_t gone = bm_loop_now(p->loop) - p->stopped_at, fixed = p->rule.fixed;
	uint64_t all = bm_rule_predict(&p->rule, p->left * BM_RAM_PAGE);
	uint64_t more = gone > fixed ? gone - fixed : 0;

	return p->forced || (all <= p->rule.budget && more <= p->rule.budget - all);
}

/* The guest runs on, and so do the rounds: it wrote more than was foreseen, or stopped slowly. */
static void retreat(struct bm_precopy *p)
{
	uint64_t now = bm_loop_now(p->loop);

	bm_rule_retreat(&p->rule, now, now - p->stopped_at);
	bm_timer_clear(p->loop, &p->limit);
	p->ops->resume(p->arg);
	bm_precopy_enter(p, BM_PRECOPY_COPYING);
	begin_sending(p);
}

/* What the round before has left is known now. */
static void note_left(struct bm_precopy *p)
{
	struct bm_precopy_round *last = &p->rounds[(p->kept - 1) % BM_ROUNDS_KEPT];

	last->left = p->left;
	last->predicted = bm_rule_predict(&p->rule, p->left * BM_RAM_PAGE);
}

static void took_all(struct bm_precopy *p)
{
	p->left = 0;
	for (unsigned i = 0; i < p->machine.count; i++)
		for (uint64_t w = 0; w < bm_ram_words(p->machine.regions[i].size); w++)
			p->left += (unsigned)__builtin_popcountll(p->bits[i][w]);
	p->round++;
	note_left(p);
	if (p->state == BM_PRECOPY_COPYING) {
		judge(p);
	} else if (fits_budget(p)) {
		p->pause_bytes = p->left * BM_RAM_PAGE;
		begin_sending(p);
	} else {
		retreat(p);
	}
}

static void take_region(struct bm_precopy *p)
{
	uint64_t words = bm_ram_words(p->machine.regions[p->region].size);
	struct bm_error error;

	if (p->tracker->ops->take(p->tracker, p->region, p->bits[p->region], &error)) {
		bm_precopy_end(p, &error);
		return;
	}
	for (uint64_t w = 0; w < words; w++)
		if (atomic_load_explicit(&p->extra[p->region][w], memory_order_relaxed))
			p->bits[p->region][w] |= atomic_exchange(&p->extra[p->region][w], 0);
	if (++p->region < p->machine.count)
		bm_loop_soon(p->loop, &p->step);
	else
		took_all(p);
}

static void say(struct bm_precopy *p, uint8_t kind, const void *data, size_t length)
{
	struct bm_error error;
	int r = bm_pipe_message(p->pipe, kind, data, length);

	if (r < 0) {
		bm_fail_errno(&error, r, "the machine's state of %zu bytes", length);
		bm_precopy_end(p, &error);
		return;
	}
	bm_pipe_push(p->pipe);
}

static void send_state(struct bm_precopy *p)
{
	bm_free void *state = NULL;
	bm_free uint8_t *message = NULL;
	struct bm_error error;
	size_t length = 0;
	int r = p->ops->save(p->arg, &state, &length);

	if (!r && length > BM_PIPE_MESSAGE - 4)
		r = -EFBIG;
	message = r ? NULL : malloc(length + 4);
	if (!message) {
		bm_fail_errno(&error, r ? r : ENOMEM, "the state of the machine's devices");
		bm_precopy_end(p, &error);
		return;
	}
	bm_put32(message, p->machine.version);
	memcpy(message + 4, state, length);
	p->phase = BM_COPY_STATE;
	say(p, BM_SAY_STATE, message, length + 4);
}

static void sent_all(struct bm_precopy *p)
{
	uint8_t number[4];

	bm_put32(number, p->round);
	p->phase = BM_COPY_ANSWER;
	if (p->state == BM_PRECOPY_PAUSED)
		send_state(p);
	else
		say(p, BM_SAY_ROUND, number, sizeof(number));
}

/* The next page; false: the pipe is full, or there is none. */
static bool send_page(struct bm_precopy *p)
{
	const struct bm_ram_region *region = &p->machine.regions[p->region];
	uint64_t *bits = p->bits[p->region];
	uint64_t page;

	while (p->word < bm_ram_words(region->size) && !bits[p->word])
		p->word++;
	if (p->word == bm_ram_words(region->size)) {
		p->word = 0;
		return ++p->region < p->machine.count;
	}
	page = p->word * 64 + (unsigned)__builtin_ctzll(bits[p->word]);
	if (!bm_pipe_page(p->pipe, p->region, page, region->host + page * BM_RAM_PAGE))
		return false;
	bits[p->word] &= bits[p->word] - 1;
	p->left--;
	p->pages++;
	return true;
}

static void send_some(struct bm_precopy *p)
{
	bool more = true;

	for (int i = 0; more && i < PAGES_A_STEP; i++)
		more = send_page(p);
	if (p->region == p->machine.count)
		sent_all(p);
	else if (more)
		bm_loop_soon(p->loop, &p->step);
}

void bm_precopy_step(struct bm_task *task)
{
	struct bm_precopy *p = bm_container(task, struct bm_precopy, step);

	switch (p->phase) {
	case BM_COPY_HELLO: /* answered */
		first_round(p);
		break;
	case BM_COPY_TAKE:
		take_region(p);
		break;
	case BM_COPY_SEND:
		send_some(p);
		break;
	default:
		break;
	}
}

void bm_precopy_rested(struct bm_timer *timer)
{
	struct bm_precopy *p = bm_container(timer, struct bm_precopy, rest);

	p->region = 0;
	go_on(p, BM_COPY_TAKE);
}

void bm_precopy_last_round(struct bm_precopy *p)
{
	p->region = 0;
	go_on(p, BM_COPY_TAKE);
}

static void note_round(struct bm_precopy *p)
{
	struct bm_precopy_round *round = &p->rounds[p->kept++ % BM_ROUNDS_KEPT];
	uint64_t ns = bm_loop_now(p->loop) - p->began;

	*round = (struct bm_precopy_round){
		.round = p->round,
		.pages = p->pages,
		.wire = bm_pipe_wire(p->pipe) - p->wire,
		.ns = ns,
		.bandwidth = p->rule.bandwidth,
		.throttle = p->rule.throttle,
	};
}

/* The target has a round. What was written to meanwhile is the next one. */
static void round_done(struct bm_precopy *p)
{
	bool hurry = !p->converged || p->ordered || p->automatic;

	bm_rule_sent(&p->rule, p->pages * BM_RAM_PAGE, bm_loop_now(p->loop) - p->began);
	note_round(p);
	bm_precopy_tell(p);
	p->region = 0;
	if (hurry) {
		go_on(p, BM_COPY_TAKE);
		return;
	}
	p->phase = BM_COPY_REST;
	bm_timer_set(p->loop, &p->rest, bm_loop_now(p->loop) + REST);
}

/* The time that loading takes is no measure of the link. */
static void loaded(struct bm_precopy *p)
{
	p->loaded = bm_loop_now(p->loop) - p->stopped_at;
	p->phase = BM_COPY_LOADED;
	note_round(p);
	bm_rule_learn(&p->rule, p->pause_bytes, p->loaded);
	bm_precopy_tell(p);
}

static int refused(const uint8_t *data, size_t length, struct bm_error *error)
{
	char text[sizeof(error->text)] = "", *space;

	memcpy(text, data, length < sizeof(text) ? length : sizeof(text) - 1);
	space = strchr(text, ' ');
	if (space)
		*space = 0;
	return bm_fail(error, bm_code_by_name(text), "the target refuses: %s",
		       space ? space + 1 : "it does not say why");
}

static int answer(void *arg, uint8_t kind, const uint8_t *data, size_t length,
		  struct bm_error *error)
{
	struct bm_precopy *p = arg;

	if (kind == BM_ANSWER_REFUSED)
		return refused(data, length, error);
	if (kind == BM_ANSWER_MACHINE && p->phase == BM_COPY_HELLO)
		bm_loop_soon(p->loop, &p->step);
	else if (kind == BM_ANSWER_ROUND && p->phase == BM_COPY_ANSWER && length == 4 &&
		 bm_get32(data) == p->round)
		round_done(p);
	else if (kind == BM_ANSWER_LOADED && p->phase == BM_COPY_STATE)
		loaded(p);
	else
		return bm_fail(error, BM_E_UNREACHABLE,
			       "the target answers %u, and was not asked that", kind);
	return 0;
}

static void ready(void *arg)
{
	struct bm_precopy *p = arg;

	if (p->phase == BM_COPY_SEND)
		bm_loop_soon(p->loop, &p->step);
}

static void failed(void *arg, const struct bm_error *error)
{
	bm_precopy_end(arg, error);
}

int bm_precopy_begin(struct bm_precopy *p, const char *path, unsigned connections,
		     struct bm_error *error)
{
	static const struct bm_pipe_ops ops = {ready, NULL, answer, failed};
	int r = bm_pipe_open(p->loop, path, connections, p->move, true, &ops, p, &p->pipe, error);
	json_t *description = NULL;
	bm_free char *text = NULL;

	if (r < 0)
		return r;
	bm_pipe_cap(p->pipe, p->cap);
	description = bm_precopy_describe(p);
	text = json_dumps(description, JSON_COMPACT);
	json_decref(description);
	p->phase = BM_COPY_HELLO;
	p->ordered = p->forced = p->converged = p->ending = false;
	p->kept = p->round = 0;
	p->loaded = p->stopped_at = 0;
	p->arrived = false;
	p->error = (struct bm_error){0};
	bm_precopy_enter(p, BM_PRECOPY_COPYING);
	say(p, BM_SAY_MACHINE, text, text ? strlen(text) : 0);
	return 0;
}
