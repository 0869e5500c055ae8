/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What the way to the other host takes, and two things that follow from it: whether batches are
 * compressed, and how much may be under way in here. Time is the caller's (ns); nothing else
 * happens here.
 *
 * Compressing is worth it unless the codec is what everything waits for, the source and the link.
 * It begins with it, since who compresses in vain loses less than who does not. Both are measured:
 * the link while something waits for it, the codec by batches that are compressed, one now and then
 * for a sample when the rest is not.
 */
#ifndef BM_RAM_PACE_H
#define BM_RAM_PACE_H

#include <stdbool.h>
#include <stdint.h>

enum bm_pace_mode { BM_PACE_AUTO, BM_PACE_NEVER, BM_PACE_ALWAYS };

struct bm_pace {
	enum bm_pace_mode mode;
	unsigned workers;
	uint64_t begun; /* of the interval that is being measured */
	uint64_t at;    /* to where times are added up */
	bool link_waited, codec_waited;
	uint64_t link_busy, codec_busy; /* ns of it that they were waited for */
	uint64_t wire, weight;          /* bytes of it that were sent */
	uint64_t sample_at, quiet_until;
	bool compress;
	/* Smoothed; 0: not known yet. */
	double link_rate, raw_rate; /* bytes/s of the wire, and of what they stood for */
	double steady;              /* the same as raw_rate, of the last two seconds or so */
	unsigned samples;           /* that are in it */
	double codec_rate;          /* bytes/s of one worker */
};

void bm_pace_init(struct bm_pace *p, enum bm_pace_mode mode, unsigned workers, uint64_t now);

/*
 * From now on there is something that waits for the link; or a codec that the link waits for, and
 * the source, too: what is given to it no faster is not held up by it.
 */
void bm_pace_waits(struct bm_pace *p, uint64_t now, bool for_link, bool for_codec);

/* A batch has left, or was compressed (in any case, also when it got no smaller). */
void bm_pace_sent(struct bm_pace *p, uint64_t wire, uint64_t weight);
void bm_pace_compressed(struct bm_pace *p, uint64_t bytes, uint64_t ns);

/* Whether to compress the next batch. */
bool bm_pace_compress(struct bm_pace *p, uint64_t now);

/*
 * Bytes/s of what is sent that can be reckoned with: a run of pages that the codec makes nothing of
 * is no link that got faster. 0: the link was not waited for yet.
 */
double bm_pace_steady(const struct bm_pace *p);

/*
 * How many bytes may be under way: what the link takes in 20 ms, within bounds. As long as
 * that is not known, and nothing has waited for it in this interval, what keeps the codec busy.
 */
uint64_t bm_pace_window(const struct bm_pace *p);

#endif
