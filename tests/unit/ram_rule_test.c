/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The stop rule under simulated time: a machine of so many bytes that dirties so many a second,
 * over a link of so many. The pause that comes of it is computed here, by its own way, and must be
 * within the budget; where none can be, the policy says what happens.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "blockmirror/ram/precopy_rule.h"

#define MS  1000000ull
#define S   (1000 * MS)
#define MIB (1ull << 20)

struct world {
	struct bm_rule rule;
	uint64_t now, ram, dirty_rate, link, fixed; /* bytes; bytes a second; ns */
	uint64_t hot;                               /* bytes that it writes to again and again */
	unsigned rounds;
	uint64_t left; /* bytes, when it ended */
};

static uint64_t time_of(uint64_t bytes, uint64_t rate)
{
	return (uint64_t)((double)bytes * 1e9 / (double)rate);
}

/* Rounds until the rule says something else than to go on, or most of them. */
static enum bm_verdict run(struct world *w, unsigned most)
{
	enum bm_verdict verdict = BM_VERDICT_GO_ON;
	uint64_t bytes = w->ram;

	bm_rule_begin(&w->rule, w->now, w->ram);
	for (w->rounds = 0; w->rounds < most && verdict == BM_VERDICT_GO_ON; w->rounds++) {
		uint64_t ns = time_of(bytes, w->link);
		double speed = (double)(100 - w->rule.throttle) / 100;

		w->now += ns;
		bm_rule_sent(&w->rule, bytes, ns);
		bytes = (uint64_t)((double)w->dirty_rate * speed * (double)ns / 1e9);
		if (bytes > w->hot)
			bytes = w->hot;
		verdict = bm_rule_judge(&w->rule, w->now, bytes);
	}
	w->left = bytes;
	return verdict;
}

static struct world world(uint64_t dirty_rate, uint64_t link, enum bm_precopy_policy policy)
{
	return (struct world){
		.rule = {.budget = 300 * MS, .fixed = 20 * MS, .policy = policy},
		.now = 77 * S,
		.ram = 4096 * MIB,
		.hot = 4096 * MIB,
		.dirty_rate = dirty_rate,
		.link = link,
		.fixed = 20 * MS,
	};
}

static uint64_t true_pause(const struct world *w)
{
	return time_of(w->left + w->rule.residue, w->link) + w->fixed;
}

static void a_calm_machine_stops_within_its_budget(void **state)
{
	struct world w = world(10 * MIB, 100 * MIB, BM_PRECOPY_WAIT);

	(void)state;
	assert_int_equal(run(&w, 100), BM_VERDICT_PAUSE);
	assert_true(true_pause(&w) <= 300 * MS);
	/* 4096, 409.6, 41, 4.1 MiB at 100 MiB/s: the fourth is left, or the third is too much. */
	assert_int_equal(w.rounds, 3);
}

static void any_that_converges_stops_within_its_budget(void **state)
{
	unsigned seed = (unsigned)time(NULL);

	(void)state;
	printf("# seed %u\n", seed);
	for (int i = 0; i < 2000; i++) {
		uint64_t link = (1 + (unsigned)rand_r(&seed) % 4000) * MIB;
		/* Up to 0.8 of the link: what gains less than a tenth a round is not told from what
		   gains nothing. */
		struct world w = world(link / 1000 * ((unsigned)rand_r(&seed) % 800), link,
				       BM_PRECOPY_CANCEL);
		uint64_t budget = (25 + (unsigned)rand_r(&seed) % 1000) * MS;

		w.rule.budget = budget;
		w.rule.residue = (unsigned)rand_r(&seed) % 3 ? 0 : time_of(link, S) * MS;
		if (time_of(w.rule.residue, link) + w.fixed > budget)
			w.rule.residue = 0;
		assert_int_equal(run(&w, 1000), BM_VERDICT_PAUSE);
		assert_true(true_pause(&w) <= budget + budget / 1000);
	}
}

/* Half of what the budget has room for is the disks'. */
static void disks_and_memory_share_the_budget(void **state)
{
	struct bm_rule rule = {.budget = 120 * MS, .fixed = 20 * MS, .policy = BM_PRECOPY_WAIT};

	(void)state;
	bm_rule_begin(&rule, 0, 1000 * MIB);
	bm_rule_sent(&rule, 1000 * MIB, 10 * S); /* 100 MiB/s: 10 MiB in 100 ms */
	assert_int_equal(bm_rule_judge(&rule, 10 * S, 10 * MIB), BM_VERDICT_PAUSE);
	assert_int_equal(bm_rule_judge(&rule, 10 * S, 10 * MIB + 4096), BM_VERDICT_GO_ON);
	rule.residue = 5 * MIB;
	assert_int_equal(bm_rule_judge(&rule, 10 * S, 5 * MIB), BM_VERDICT_PAUSE);
	assert_int_equal(bm_rule_judge(&rule, 10 * S, 5 * MIB + 4096), BM_VERDICT_GO_ON);
	rule.residue = 11 * MIB;
	assert_int_equal(bm_rule_judge(&rule, 10 * S, 0), BM_VERDICT_GO_ON);
	rule.residue = 0;
	rule.fixed = 121 * MS;
	assert_int_equal(bm_rule_judge(&rule, 10 * S, 0), BM_VERDICT_GO_ON);
}

/* It dirties twice what the link takes. */
static void what_does_not_converge_is_the_policys(void **state)
{
	struct world w = world(200 * MIB, 100 * MIB, BM_PRECOPY_WAIT);

	(void)state;
	assert_int_equal(run(&w, 500), BM_VERDICT_GO_ON);
	assert_int_equal(w.rule.throttle, 0);
	w = world(200 * MIB, 100 * MIB, BM_PRECOPY_CANCEL);
	assert_int_equal(run(&w, 500), BM_VERDICT_CANCEL);
	assert_int_equal(w.rounds, 2);
	w = world(200 * MIB, 100 * MIB, BM_PRECOPY_FORCE);
	assert_int_equal(run(&w, 500), BM_VERDICT_FORCE);
	assert_int_equal(w.rounds, 2);
	assert_true(true_pause(&w) > 300 * MS);
}

static void throttling_makes_it_converge(void **state)
{
	struct world w = world(200 * MIB, 100 * MIB, BM_PRECOPY_THROTTLE);

	(void)state;
	assert_int_equal(run(&w, 500), BM_VERDICT_PAUSE);
	assert_true(true_pause(&w) <= 300 * MS);
	/* Below half of its speed it dirties less than the link takes. */
	assert_true(w.rule.throttle >= 50 && w.rule.throttle <= 70);
	/* Another one that no throttling helps: at most, and it goes on. */
	w = world(200000 * MIB, 100 * MIB, BM_PRECOPY_THROTTLE);
	assert_int_equal(run(&w, 100), BM_VERDICT_GO_ON);
	assert_int_equal(w.rule.throttle, 99);
	/* The next copy begins without. */
	bm_rule_begin(&w.rule, w.now, w.ram);
	assert_int_equal(w.rule.throttle, 0);
}

static void the_time_that_is_allowed_ends(void **state)
{
	static const enum bm_verdict expected[] = {BM_VERDICT_LATE, BM_VERDICT_CANCEL,
						   BM_VERDICT_FORCE, BM_VERDICT_LATE};

	(void)state;
	for (enum bm_precopy_policy p = BM_PRECOPY_WAIT; p <= BM_PRECOPY_THROTTLE; p++) {
		/* A tenth less in each round is a gain: no stall, and not soon an end. */
		struct world w = world(89 * MIB, 100 * MIB, p);

		w.rule.budget = 21 * MS;
		w.rule.timeout = 100 * S;
		assert_int_equal(run(&w, 500),
				 p == BM_PRECOPY_CANCEL ? BM_VERDICT_LATE : expected[p]);
		assert_true(w.now >= 177 * S && w.now < 230 * S);
	}
}

/* It writes to 200 MiB again and again, faster than they can be sent; they fit a longer pause. */
static void a_budget_that_is_raised_is_met_at_once(void **state)
{
	struct world w = world(5000 * MIB, 100 * MIB, BM_PRECOPY_WAIT);

	(void)state;
	w.hot = 200 * MIB;
	assert_int_equal(run(&w, 50), BM_VERDICT_GO_ON);
	w.rule.budget = 2030 * MS;
	assert_int_equal(bm_rule_judge(&w.rule, w.now, w.left), BM_VERDICT_PAUSE);
}

/* Rounds of a page or two measure the round trip. */
static void tiny_rounds_do_not_spoil_the_estimate(void **state)
{
	struct bm_rule rule = {.budget = 300 * MS};

	(void)state;
	assert_true(bm_rule_predict(&rule, 1) == UINT64_MAX);
	assert_int_equal(bm_rule_predict(&rule, 0), 0);
	bm_rule_begin(&rule, 0, 100 * MIB);
	bm_rule_sent(&rule, 100 * MIB, S);
	for (int i = 0; i < 20; i++)
		bm_rule_sent(&rule, 4096, MS);
	assert_int_equal(rule.bandwidth, 100 * MIB);
	/* A link that has become slow is believed when it has been so for a while. */
	for (int i = 0; i < 10; i++)
		bm_rule_sent(&rule, 100 << 10, 10 * MS);
	assert_true(rule.bandwidth < 10 * MIB && rule.bandwidth > 5 * MIB);
	/* Faster again: by and by. */
	bm_rule_sent(&rule, 100 * MIB, S);
	assert_true(rule.bandwidth > 50 * MIB && rule.bandwidth < 60 * MIB);
}

static void what_a_pause_cost_is_learned(void **state)
{
	struct bm_rule rule = {.budget = 300 * MS, .fixed = 20 * MS};

	(void)state;
	bm_rule_begin(&rule, 0, 100 * MIB);
	bm_rule_sent(&rule, 100 * MIB, S);
	for (int i = 0; i < 20; i++)
		bm_rule_learn(&rule, 10 * MIB, 150 * MS); /* 100 of it for the bytes */
	assert_in_range(rule.fixed, 49 * MS, 50 * MS);
	/* One that was slow is not the end of it. */
	bm_rule_learn(&rule, 0, 5 * S);
	assert_int_equal(bm_rule_judge(&rule, S, 0), BM_VERDICT_PAUSE);
	for (int i = 0; i < 40; i++)
		bm_rule_learn(&rule, 10 * MIB, 90 * MS);
	assert_int_equal(rule.fixed / MS, 0);
}

/* It stops in 100 ms, and may take 40: it is tried, and each time it is longer until it is again.
 */
static void a_pause_that_fails_is_not_tried_at_once_again(void **state)
{
	struct bm_rule rule = {.budget = 40 * MS};
	uint64_t now = 0, last = 0, tries = 0;

	(void)state;
	bm_rule_begin(&rule, now, 100 * MIB);
	bm_rule_sent(&rule, 100 * MIB, S);
	for (now = S; now < 101 * S; now += 10 * MS) {
		if (bm_rule_judge(&rule, now, 4096) != BM_VERDICT_PAUSE)
			continue;
		assert_true(!last || now - last >= 100 * MS << (tries - 1 < 7 ? tries - 1 : 7));
		tries++;
		last = now;
		bm_rule_retreat(&rule, now, 100 * MS);
	}
	assert_in_range(tries, 10, 18);
	assert_int_equal(rule.retreats, tries);
	rule.budget = 200 * MS;
	assert_int_equal(bm_rule_judge(&rule, now + 20 * S, 4096), BM_VERDICT_PAUSE);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_calm_machine_stops_within_its_budget),
		cmocka_unit_test(any_that_converges_stops_within_its_budget),
		cmocka_unit_test(disks_and_memory_share_the_budget),
		cmocka_unit_test(what_does_not_converge_is_the_policys),
		cmocka_unit_test(throttling_makes_it_converge),
		cmocka_unit_test(the_time_that_is_allowed_ends),
		cmocka_unit_test(a_budget_that_is_raised_is_met_at_once),
		cmocka_unit_test(tiny_rounds_do_not_spoil_the_estimate),
		cmocka_unit_test(what_a_pause_cost_is_learned),
		cmocka_unit_test(a_pause_that_fails_is_not_tried_at_once_again),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
