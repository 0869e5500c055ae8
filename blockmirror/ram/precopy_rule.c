// SPDX-License-Identifier: BSD-3-Clause
/*
 * The rule. Bandwidth is bytes of RAM a second until the peer had them: what the codec saves, what
 * a cap takes and what a slow receiver costs is in it. Rounds of a few pages measure the round trip
 * and not the link, so they are added up until they make a sample.
 */
#include "blockmirror/ram/precopy_rule.h"

#define SAMPLE_NS 50000000ull
#define BACK_OFF  100000000ull /* ns after the first pause that was given up; then twice that … */
enum {
	BACK_OFF_MOST = 7, /* … so many times */
	SAMPLE_BYTES = 1 << 20,
	STALLS = 2, /* rounds in a row that gain less than a tenth */
	THROTTLE_FIRST = 20,
	THROTTLE_STEP = 10,
	THROTTLE_MOST = 99
};

void bm_rule_begin(struct bm_rule *rule, uint64_t now, uint64_t bytes)
{
	rule->began = now;
	rule->left = bytes;
	rule->bandwidth = rule->sample_bytes = rule->sample_ns = 0;
	rule->stalls = rule->throttle = rule->retreats = 0;
	rule->not_before = 0;
}

static uint64_t per_second(uint64_t bytes, uint64_t ns)
{
	double rate = (double)bytes * 1e9 / (double)(ns ? ns : 1);

	return rate < 1 ? 1 : rate > 1e18 ? (uint64_t)1e18 : (uint64_t)rate;
}

void bm_rule_sent(struct bm_rule *rule, uint64_t bytes, uint64_t ns)
{
	uint64_t sample;

	rule->sample_bytes += bytes;
	rule->sample_ns += ns;
	if (!rule->sample_bytes ||
	    (rule->bandwidth && rule->sample_bytes < SAMPLE_BYTES && rule->sample_ns < SAMPLE_NS))
		return;
	sample = per_second(rule->sample_bytes, rule->sample_ns);
	/* A link that got slower is believed at once, one that got faster by and by. */
	if (!rule->bandwidth || sample < rule->bandwidth)
		rule->bandwidth = sample;
	else
		rule->bandwidth += (sample - rule->bandwidth) / 2;
	rule->sample_bytes = rule->sample_ns = 0;
}

static uint64_t time_for(const struct bm_rule *rule, uint64_t bytes)
{
	double ns = rule->bandwidth ? (double)bytes * 1e9 / (double)rule->bandwidth : 1e18;

	return ns > 1e18 ? (uint64_t)1e18 : (uint64_t)ns;
}

uint64_t bm_rule_predict(const struct bm_rule *rule, uint64_t bytes)
{
	uint64_t all = bytes + rule->residue;

	if (!rule->bandwidth && all)
		return UINT64_MAX;
	return (all ? time_for(rule, all) : 0) + rule->fixed;
}

static enum bm_verdict by_policy(struct bm_rule *rule)
{
	switch (rule->policy) {
	case BM_PRECOPY_CANCEL:
		return BM_VERDICT_CANCEL;
	case BM_PRECOPY_FORCE:
		return BM_VERDICT_FORCE;
	case BM_PRECOPY_THROTTLE:
		rule->throttle = rule->throttle ? rule->throttle + THROTTLE_STEP : THROTTLE_FIRST;
		if (rule->throttle > THROTTLE_MOST)
			rule->throttle = THROTTLE_MOST;
		return BM_VERDICT_GO_ON;
	default:
		return BM_VERDICT_GO_ON;
	}
}

enum bm_verdict bm_rule_judge(struct bm_rule *rule, uint64_t now, uint64_t bytes)
{
	bool gained = (double)bytes <= (double)rule->left * 0.9;

	rule->left = bytes;
	if (bm_rule_predict(rule, bytes) <= rule->budget) {
		rule->stalls = 0;
		return now < rule->not_before ? BM_VERDICT_GO_ON : BM_VERDICT_PAUSE;
	}
	if (rule->timeout && now - rule->began >= rule->timeout)
		return rule->policy == BM_PRECOPY_FORCE ? BM_VERDICT_FORCE : BM_VERDICT_LATE;
	if (gained) {
		rule->stalls = 0;
		return BM_VERDICT_GO_ON;
	}
	if (++rule->stalls < STALLS)
		return BM_VERDICT_GO_ON;
	return by_policy(rule);
}

/*
 * By half, and never more than half of the budget: one pause that was slow, on a host that was
 * busy, would else be the last one that is ever tried.
 */
static void learn(struct bm_rule *rule, uint64_t fixed)
{
	fixed = rule->fixed / 2 + fixed / 2;
	rule->fixed = fixed < rule->budget / 2 ? fixed : rule->budget / 2;
}

void bm_rule_learn(struct bm_rule *rule, uint64_t bytes, uint64_t ns)
{
	uint64_t sending = bytes ? time_for(rule, bytes) : 0;

	learn(rule, ns > sending ? ns - sending : 0);
}

void bm_rule_retreat(struct bm_rule *rule, uint64_t now, uint64_t ns)
{
	unsigned times = rule->retreats < BACK_OFF_MOST ? rule->retreats : BACK_OFF_MOST;

	rule->retreats++;
	rule->not_before = now + (BACK_OFF << times);
	if (ns > rule->fixed)
		learn(rule, ns);
}
