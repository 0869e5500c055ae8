/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The machine's memory, on the host that it leaves: QEMU's stream goes to the relay, round after
 * round, until QEMU stops its guest; then the rest has to be there, and the other host has to vote,
 * before the pause gets longer than it may. If it will not be, the stream is dropped, the guest
 *runs on, and it is tried again, as the policy has it:
 *
 *	wait      until it fits, however long that takes
 *	cancel    until the time-out, which ends the move
 *	force     from the time-out on the guest is stopped, however long that takes
 *	throttle  as cancel, and QEMU slows its guest down meanwhile
 *
 * QEMU stops the guest when it believes that the rest takes no longer than "downtime-limit". That
 *is little at first, since a short pause is better than what is allowed; and more as time goes by.
 */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/log.h"
#include "blockmirror/base/memory.h"
#include "blockmirror/base/record.h"
#include "blockmirror/base/tls_client.h"
#include "blockmirror/machine/graph.h"
#include "blockmirror/machine/move_source.h"

#define HEARTBEAT 500000000ull
#define SILENCE   1500000000ull    /* ns without an answer: the other side counts as dead */
#define RAISE     4000000000ull    /* ns after which the guest may be stopped for twice as long */
#define LOOK      500000000ull     /* ns between two looks at how far QEMU is */
#define AGAIN     1000000000ull    /* ns that the guest is left alone before the next try */
#define LEAST     1000000ull       /* ns: less than that QEMU cannot be told */
#define ANY       2000000000000ull /* ns: more than that it cannot, neither */
enum { TICK_MS = 20, COMPLETES_MS = 1, LINKS = 4, CONNECT_MS = 10000, ROUNDS = 32, HOLD_MS = 1000 };

/* Of a budget, what is kept for all that follows when the memory is there. */
static uint64_t for_memory(const struct source *s)
{
	return s->options.budget / 10 * 9;
}

static bool is_late(const struct source *s)
{
	return s->options.timeout && move_now() > s->begun + s->options.timeout;
}

/* Whether the pause may be as long as it gets. */
static bool is_forced(const struct source *s)
{
	return s->options.policy == POLICY_FORCE && is_late(s);
}

/* QEMU */

static int set_limit(struct source *s, uint64_t limit, struct bm_error *error)
{
	if (s->memory.limit == limit)
		return 0;
	s->memory.limit = limit;
	return vm_call(&s->vm, "migrate-set-parameters",
		       json_pack("{s:I}", "downtime-limit", (json_int_t)(limit / LEAST)), error);
}

/*
 * A round has begun: what it has to send is known now, and not what it will leave behind. Forced
 * before a first one was whole the guest would stand still for all of its memory.
 */
static int judge(struct source *s, struct bm_error *error)
{
	struct memory *m = &s->memory;
	struct bm_relay_stats stats;
	uint64_t now = move_now();
	double pause;

	if (is_forced(s))
		return set_limit(s, s->vm.round < 2 ? LEAST : ANY, error);
	for (; now > m->raised + RAISE && m->allowed < m->most; m->raised += RAISE)
		m->allowed = m->allowed * 2 < m->most ? m->allowed * 2 : m->most;
	bm_relay_stats(m->relay, &stats);
	if (s->vm.round < 2)
		return 0;
	if (!stats.steady)
		return set_limit(s, m->allowed, error); /* QEMU knows as much of it */
	pause = (double)m->remaining * 1e9 / (double)stats.steady;
	return set_limit(s, pause <= (double)m->allowed ? m->most : LEAST, error);
}

/* Called from within any call to QEMU, and at once: its guest has stopped. */
static void on_stop(void *arg)
{
	struct source *s = arg;
	uint64_t stood = move_now() - s->vm.stopped_at, most = for_memory(s);

	bm_relay_mark(s->memory.relay);
	disks_settle(s);
	if (!is_forced(s))
		bm_relay_deadline(s->memory.relay, stood < most ? most - stood : 1);
}

/* Connections */

static int listen_for_vm(const char *path, struct bm_error *error)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	bm_close int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd < 0 || strlen(path) >= sizeof(address.sun_path))
		return bm_fail(error, BM_E_INTERNAL, "no socket %s", path);
	snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
	unlink(path);
	if (bind(fd, (const struct sockaddr *)&address, sizeof(address)) < 0 || listen(fd, 1) < 0)
		return bm_fail_errno(error, errno, "cannot listen at %s", path);
	return bm_steal_fd(fd);
}

static int accept_vm(int door, struct bm_error *error)
{
	struct pollfd p = {.fd = door, .events = POLLIN};
	int fd = poll(&p, 1, CONNECT_MS) > 0 ? accept4(door, NULL, NULL, SOCK_CLOEXEC) : -1;

	return fd >= 0 ? fd
		       : bm_fail(error, BM_E_QMP, "the machine's VMM does not send its memory");
}

static int open_link(struct source *s, const char *stream, int i, struct bm_transport *link,
		     struct bm_error *error)
{
	struct bm_client *client = NULL;
	int r = source_connect(s, &client, error);

	if (!r)
		r = bm_client_call(
			client, "ram",
			json_pack("{s:s s:i s:i}", "stream", stream, "link", i, "links", LINKS),
			NULL, error);
	if (r < 0) {
		bm_client_close(client);
		return r;
	}
	return bm_client_become_transport(client, link, error);
}

static int open_links(struct source *s, const char *stream, struct bm_transport *links,
		      struct bm_error *error)
{
	for (int i = 0; i < LINKS; i++) {
		int r = open_link(s, stream, i, &links[i], error);

		if (r < 0) {
			while (i--)
				bm_transport_close(&links[i]);
			return r;
		}
	}
	return 0;
}

static int start_relay(struct source *s, const char *stream, int vm,
		       const struct bm_transport *links, struct bm_error *error)
{
	struct bm_relay_setup setup = {
		.qemu = vm, .links = LINKS, .cache = MOVE_CACHE, .gate = true, .cap = s->cap};

	memcpy(setup.id, stream, BM_RAM_ID);
	return bm_relay_start(true, &setup, links, &s->memory.relay, error);
}

/* The machine's stream goes to the target from here on. */
static int begin(struct source *s, struct bm_error *error)
{
	bm_free char *path = NULL, *uri = NULL;
	struct bm_transport links[LINKS];
	bm_close int door = -1;
	char stream[33];
	int fd = -1, r;

	if (asprintf(&path, "%s/moves/%s.ram", s->m->run, s->m->id) < 0 ||
	    asprintf(&uri, "unix:%s", path) < 0)
		bm_need(NULL);
	bm_identity(stream);
	s->vm.round = 0;
	s->memory.judged = 0;
	s->memory.allowed = s->options.budget / 8;
	if (s->memory.allowed > s->memory.most)
		s->memory.allowed = s->memory.most;
	s->memory.raised = move_now();
	door = listen_for_vm(path, error);
	r = door < 0 ? door : vm_set_up_sender(&s->vm, s->options.policy == POLICY_THROTTLE, error);
	s->memory.limit = LEAST; /* that is set up */
	if (!r)
		r = open_links(s, stream, links, error);
	if (r < 0)
		return r;
	r = vm_call(&s->vm, "migrate", json_pack("{s:s}", "uri", uri), error);
	if (!r)
		r = fd = accept_vm(door, error);
	unlink(path);
	for (int i = 0; r < 0 && i < LINKS; i++)
		bm_transport_close(&links[i]);
	if (r >= 0)
		r = start_relay(s, stream, fd, links, error);
	s->vm.on_stop = r < 0 ? NULL : on_stop;
	s->vm.arg = s;
	return r;
}

/* Rounds */

/* The round that is over becomes one of those that are told of. */
static void note_round(struct source *s, const struct bm_relay_stats *stats)
{
	struct memory *m = &s->memory;
	uint64_t now = move_now();

	if (m->round)
		json_array_append_new(
			m->rounds, json_pack("{s:i s:I s:I s:I s:I}", "try", m->tries, "round",
					     (json_int_t)m->round, "bytes",
					     (json_int_t)(stats->stream - m->last.stream),
					     "wire_bytes", (json_int_t)(stats->wire - m->last.wire),
					     "took_ns", (json_int_t)(now - m->round_at)));
	if (json_array_size(m->rounds) > ROUNDS)
		json_array_remove(m->rounds, 0);
	m->round = s->vm.round;
	m->round_at = now;
	m->last = *stats;
}

static json_int_t as_number(uint64_t bytes)
{
	return (json_int_t)bytes;
}

/* info: what QEMU says of its migration. NULL: as before. */
static void tell(struct source *s, const json_t *info)
{
	struct memory *m = &s->memory;
	const json_t *ram = json_object_get(info, "ram");
	struct bm_relay_stats stats;
	json_int_t page;

	bm_relay_stats(m->relay, &stats);
	if (s->vm.round != m->round)
		note_round(s, &stats);
	if (ram) {
		page = json_integer_value(json_object_get(ram, "page-size"));
		m->total = json_integer_value(json_object_get(ram, "total"));
		m->remaining = json_integer_value(json_object_get(ram, "remaining"));
		m->dirty = json_integer_value(json_object_get(ram, "dirty-pages-rate")) * page;
		m->throttle = json_integer_value(json_object_get(info, "cpu-throttle-percentage"));
	}
	move_tell(s->m, "memory",
		  json_pack("{s:i s:I s:I s:I s:I s:I s:I s:I s:I s:i s:O}", "tries", m->tries,
			    "round", (json_int_t)m->round, "total", m->total, "remaining",
			    m->remaining, "dirty_rate", m->dirty, "rate", (json_int_t)stats.rate,
			    "bytes", as_number(m->before.stream + stats.stream), "wire_bytes",
			    as_number(m->before.wire + stats.wire), "rest_bytes",
			    (json_int_t)stats.marked, "throttle", (int)m->throttle, "rounds",
			    m->rounds));
}

/* Why the relay has ended, if it has; before the gate was opened that is never well. */
static int relay_goes(struct source *s, struct bm_error *error)
{
	struct bm_error why;

	if (bm_relay_wait(s->memory.relay, BM_RELAY_OVER, 0, &why) != BM_RELAY_OVER)
		return 0;
	if (why.code == BM_E_CANCELLED || !why.code) /* QEMU has, or somebody told it to */
		return bm_fail(error, BM_E_QMP,
			       "the machine's memory did not get there: its VMM has ended that");
	*error = why;
	return bm_fail(NULL, why.code, "%s", why.text);
}

/*
 * What the relay knows is that the other end has let go. If the VMM there would not have the state,
 * the target can say so; a link that was cut has no answer, or another one.
 */
static void ask_why(struct source *s, struct bm_error *error)
{
	struct bm_error none;
	json_t *result = NULL;
	const char *refused;

	if (source_call(s, "alive", NULL, SILENCE, &result, &none) < 0)
		return;
	refused = json_string_value(json_object_get(result, "refused"));
	if (refused)
		bm_fail(error, BM_E_QMP, "%s", refused);
	json_decref(result);
}

static int tick(struct source *s, struct bm_error *error)
{
	int r = bm_qmp_listen(s->vm.qmp, TICK_MS, error);

	if (!r)
		r = source_may_go_on(s, error);
	if (!r)
		r = disks_alive(s, error);
	if (!r && s->memory.relay) {
		r = relay_goes(s, error);
		if (r < 0 && error->code == BM_E_UNREACHABLE)
			ask_why(s, error);
	}
	if (!r && move_now() > s->memory.heard + HEARTBEAT) {
		r = source_call(s, "alive", NULL, SILENCE, NULL, error);
		s->memory.heard = move_now();
	}
	return r;
}

/* How far QEMU is; and when it has begun a round, whether that is the last one. */
static int look(struct source *s, struct bm_error *error)
{
	unsigned round = s->vm.round;
	json_t *info = NULL;
	bm_free char *state = vm_migration(&s->vm, &info, error);
	int r = state ? 0 : -ENOTCONN;

	s->memory.looked = move_now();
	tell(s, info);
	json_decref(info);
	if (r || s->vm.stopped || (round == s->memory.judged && !is_forced(s)))
		return r;
	s->memory.judged = round;
	return judge(s, error);
}

/* Until QEMU has stopped its guest. */
static int send_rounds(struct source *s, struct bm_error *error)
{
	int r = 0;

	while (!r && !s->vm.stopped) {
		r = tick(s, error);
		if (!r && !s->vm.stopped &&
		    (s->vm.round != s->memory.judged || move_now() > s->memory.looked + LOOK))
			r = look(s, error);
	}
	tell(s, NULL);
	return r;
}

/* Until the target has loaded and voted; it says all the time that it lives. */
static int await_vote(struct source *s, struct bm_error *error)
{
	struct bm_error why;
	int id, r = bm_client_send(s->talk, "vote", NULL, &id, error);

	bm_client_set_timeout(s->talk, SILENCE);
	while (!r) {
		json_t *event = NULL;

		r = bm_client_wait(s->talk, id, NULL, &event, error);
		json_decref(event);
		if (!r)
			r = move_may_go_on(s->m, error);
	}
	/* There is nothing to vote for when we have dropped it, or lost it on the way. */
	if (r < 0 && relay_goes(s, &why) < 0 &&
	    (why.code == BM_E_BUDGET || why.code == BM_E_UNREACHABLE)) {
		bm_log(BM_LOG_NOTICE, "%s: %s", s->m->id, error->text);
		*error = why;
		if (why.code == BM_E_UNREACHABLE)
			ask_why(s, error);
	}
	return r < 0 ? r : 0;
}

static int within_budget(const struct source *s, struct bm_error *error)
{
	uint64_t so_far = move_now() - s->vm.stopped_at;

	if (is_forced(s) || so_far <= s->options.budget)
		return 0;
	return bm_fail(error, BM_E_BUDGET,
		       "the machine's pause would have been longer than its budget: it was stopped "
		       "for %llu ms when its memory had arrived",
		       (unsigned long long)(so_far / 1000000u));
}

/* What the pause had in it so far: the rest of the RAM, the devices' state, and the vote. */
static void tell_parts(struct source *s)
{
	struct bm_relay_stats stats;
	uint64_t stop = s->vm.stopped_at, device, held;

	bm_relay_stats(s->memory.relay, &stats);
	held = stats.held_at > stop ? stats.held_at : stop;
	device = stats.device_at > stop && stats.device_at < held ? stats.device_at : held;
	source_part_until(s, "ram_ns", device);
	source_part_until(s, "device_ns", held);
	source_part(s, "vote_ns");
}

static int try_once(struct source *s, struct bm_error *error)
{
	int r = begin(s, error);

	s->memory.tries++;
	move_step(s->m, "streaming");
	if (!r)
		r = send_rounds(s, error);
	if (!r) {
		move_step(s->m, "stopped");
		r = await_vote(s, error);
		tell(s, NULL);
	}
	if (r)
		return r;
	s->memory.voted = true;
	(void)bm_relay_wait(s->memory.relay, BM_RELAY_HOLDS, HOLD_MS, NULL);
	tell_parts(s);
	return within_budget(s, error);
}

/*
 * The guest was stopped in vain: QEMU believed that the rest is less than it was, or what follows
 * took longer. So it gets half the time to stop it for; and the target a new machine, since one
 * whose memory ends in the middle is of no use.
 */
static int try_again(struct source *s, const struct bm_error *why, struct bm_error *error)
{
	uint64_t end = move_now() + AGAIN;
	int r = 0;

	bm_log(BM_LOG_NOTICE, "%s: %s; again", s->m->id, why->text);
	memory_close(s);
	vm_go_on(&s->vm);
	s->memory.most /= 2;
	s->part = 0;
	move_tell(s->m, "pause", json_object());
	while (!r && move_now() < end)
		r = tick(s, error);
	if (!r)
		r = source_call(s, "prepare", NULL, PREPARE, NULL, error);
	/* It has voted, and we have not heard it in time: that is over. */
	if (r < 0 && error->code == BM_E_NOT_READY)
		*error = *why;
	return r;
}

int memory_pass(struct source *s, struct bm_error *error)
{
	int r;

	s->memory.most = for_memory(s) / 3 * 2;
	s->memory.rounds = json_array();
	for (;;) {
		struct bm_error why;

		r = try_once(s, error);
		if (r >= 0 || error->code != BM_E_BUDGET || s->memory.voted ||
		    s->options.rehearse || source_may_go_on(s, &why) < 0)
			return r;
		why = *error;
		r = try_again(s, &why, error);
		if (r < 0)
			return r;
	}
}

/* That it is "postmigrate", QEMU does not say by an event; it is so soon after "completed". */
int memory_let_go(struct source *s, struct bm_error *error)
{
	uint64_t end = move_now() + GATE;
	int r = 0;

	bm_relay_open_gate(s->memory.relay);
	while (!r && move_now() < end) {
		bm_free char *status = vm_status(&s->vm, error);

		if (!status)
			return -ENOTCONN;
		if (!strcmp(status, "postmigrate"))
			return 0;
		if (!strcmp(s->vm.migration, "failed") || !strcmp(s->vm.migration, "cancelled"))
			return bm_fail(error, BM_E_QMP, "the machine runs on: its VMM says \"%s\"",
				       s->vm.migration);
		r = bm_qmp_listen(s->vm.qmp, COMPLETES_MS, error);
	}
	return r ? r : bm_fail(error, BM_E_QMP, "the machine's VMM does not complete");
}

void memory_close(struct source *s)
{
	struct bm_relay_stats stats;

	s->vm.on_stop = NULL;
	if (!s->memory.relay)
		return;
	bm_relay_stats(s->memory.relay, &stats);
	s->memory.before.stream += stats.stream;
	s->memory.before.wire += stats.wire;
	s->memory.round = 0;
	bm_relay_stop(s->memory.relay);
	s->memory.relay = NULL;
}
