/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What the target of a native machine is told by the source, behind the frames and the codec:
 * messages, in pieces, and pages. The first byte says what load() answers. Then one byte each: 0 a
 * page (region 1, index 2 and bits), else a piece of so many bytes of messages. A machine of two
 * regions, "ram" of 3 pages and "rom" of 1.
 */
#include <string.h>

#include "blockmirror/ram/pipe_inside.h"
#include "blockmirror/ram/precopy_target.c"
#include "tests/fuzz/fuzz.h"

enum { RAM_PAGES = 3, ROM_PAGES = 1 };

static unsigned loads, answer;

static int load(void *arg, uint32_t version, const void *state, size_t length,
		struct bm_error *error)
{
	uint8_t sum = 0;

	(void)arg;
	loads++;
	for (size_t i = 0; i < length; i++) /* all of it can be read */
		sum ^= ((const uint8_t *)state)[i];
	return answer ? bm_fail(error, BM_E_IO, "version %u, sum %u", version, sum) : 0;
}

static void give_page(struct bm_precopy *p, struct input *in)
{
	uint8_t data[BM_RAM_PAGE];
	unsigned region = input_u8(in);
	uint64_t index = input_u16(in);
	struct bm_error error;

	/* The highest bits, too: what is multiplied may come round. */
	index |= (uint64_t)input_u8(in) << 52;
	memset(data, input_u8(in), sizeof(data));
	if (!page(p, region, index, data, &error))
		demand(p->fits && region < 2 && index < (region ? ROM_PAGES : RAM_PAGES) &&
		       p->machine.regions[region].host[index * BM_RAM_PAGE] == *data);
}

static void run(struct bm_precopy *p, struct input *in)
{
	struct bm_error error = {0};
	int r = 0;

	answer = input_u8(in) & 1;
	while (in->left && !r) {
		size_t length = input_u8(in);

		if (!length) {
			give_page(p, in);
		} else {
			const uint8_t *piece = input_take(in, &length);

			r = bm_pipe_hear(p->pipe, piece, length, &error);
			demand(!r || (error.code && *error.text));
		}
		demand(p->state == BM_PRECOPY_RECEIVING || p->state == BM_PRECOPY_LOADED);
		demand(p->state != BM_PRECOPY_LOADED || (loads && !answer && p->fits));
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const struct bm_pipe_ops pipe_ops = {NULL, page, message, failed};
	static const struct bm_precopy_ops ops = {.load = load};
	struct input in = {data, size};
	struct bm_ram_region region[] = {
		{"ram", calloc(RAM_PAGES, BM_RAM_PAGE), RAM_PAGES * BM_RAM_PAGE, 0},
		{"rom", calloc(ROM_PAGES, BM_RAM_PAGE), ROM_PAGES * BM_RAM_PAGE, 1}};
	struct bm_precopy *p = calloc(1, sizeof(*p));
	struct bm_pipe *pipe = calloc(1, sizeof(*pipe));

	demand(p && pipe && region[0].host && region[1].host);
	*pipe = (struct bm_pipe){.ops = &pipe_ops, .arg = p, .dead = true}; /* it leads nowhere */
	p->machine = (struct bm_precopy_machine){"thing", 3, 2, region, 2};
	p->ops = &ops;
	p->pipe = pipe;
	p->state = BM_PRECOPY_RECEIVING;
	strcpy(p->move, "m");
	loads = 0;
	run(p, &in);
	free(pipe->out.data);
	free(pipe->in.data);
	free(pipe);
	free(p);
	free(region[0].host);
	free(region[1].host);
	return 0;
}
