/* SPDX-License-Identifier: BSD-3-Clause */
/* The load generator's model and its sectors: single cases, for what chance meets too seldom. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fixtures/hammer/model.c"
#include "fixtures/hammer/sector.c"
#include "fixtures/hammer/state.c"
#include "fixtures/hammer/survive.c"

enum { OPS = 4, RUN = 77 };

/* Requests by number; seen is what a read needs. */
struct sector {
	struct model model;
	struct model_op ops[OPS];
	uint64_t seen[OPS][1];
};

static struct content content_of(uint64_t value)
{
	return (struct content){.kind = value ? CONTENT_DATA : CONTENT_ZERO, .seq = value};
}

static struct sector *new_sector(void)
{
	struct sector *s = calloc(1, sizeof(*s));

	assert_int_equal(model_init(&s->model, RUN, 0, 1, VALUE_ZERO), 0);
	return s;
}

static void free_sector(struct sector *s)
{
	model_free(&s->model);
	free(s);
}

static uint64_t begin_write(struct sector *s, unsigned i)
{
	s->ops[i] = (struct model_op){.count = 1, .kind = VALUE_DATA};
	assert_int_equal(model_change_begin(&s->model, &s->ops[i]), 0);
	return s->ops[i].seq;
}

static void end_write(struct sector *s, unsigned i)
{
	model_change_end(&s->model, &s->ops[i], true);
}

static void begin_read(struct sector *s, unsigned i)
{
	s->ops[i] = (struct model_op){.count = 1, .seen = s->seen[i]};
	assert_int_equal(model_read_begin(&s->model, &s->ops[i]), 0);
}

static bool end_read(struct sector *s, unsigned i, uint64_t value)
{
	struct content found = content_of(value);
	bool good = model_read_sector(&s->model, &s->ops[i], 0, &found);

	model_read_end(&s->model, &s->ops[i]);
	return good;
}

static bool read_now(struct sector *s, uint64_t value)
{
	begin_read(s, OPS - 1);
	return end_read(s, OPS - 1, value);
}

static void content_does_not_go_back_and_forth(void **state)
{
	struct sector *s = new_sector();
	uint64_t a = begin_write(s, 0), b = begin_write(s, 1);

	(void)state;
	assert_true(read_now(s, a));
	assert_true(read_now(s, b));
	assert_false(read_now(s, a));
	free_sector(s);
}

static void what_a_seen_write_replaced_is_gone_before_its_answer(void **state)
{
	struct sector *s = new_sector();
	uint64_t a = begin_write(s, 0), b;

	(void)state;
	begin_read(s, 2);
	end_write(s, 0);
	b = begin_write(s, 1);
	assert_true(end_read(s, 2, b));
	assert_false(read_now(s, a));
	assert_true(read_now(s, b));
	free_sector(s);
}

static void a_write_sent_again_may_come_back_even_to_a_read_in_flight(void **state)
{
	struct sector *s = new_sector();
	uint64_t a = begin_write(s, 0), b;

	(void)state;
	assert_true(read_now(s, a));
	b = begin_write(s, 1);
	end_write(s, 1);
	assert_false(read_now(s, a));
	begin_read(s, 2);
	assert_int_equal(model_change_resend(&s->model, &s->ops[0]), 0);
	assert_true(end_read(s, 2, a));
	assert_false(read_now(s, b));
	free_sector(s);
}

static void torn_sectors_are_bad_unless_tearing_is_allowed(void **state)
{
	uint64_t mixed[SECTOR_WORDS], other[SECTOR_WORDS];
	struct sector *s = new_sector();
	struct content found;

	(void)state;
	for (unsigned pass = 0; pass < 2; pass++) {
		uint64_t a = begin_write(s, 0), b;

		s->model.tearing = pass;
		end_write(s, 0);
		begin_read(s, 2);
		b = begin_write(s, 1);
		sector_fill(mixed, RUN, 0, a, 0);
		sector_fill(other, RUN, 0, b, 1);
		memcpy(mixed, other, SECTOR / 2);
		found = sector_look(mixed, RUN, 0);
		assert_int_equal(found.kind, CONTENT_OTHER);
		assert_int_equal(model_read_sector(&s->model, &s->ops[2], 0, &found), pass);
		mixed[SECTOR_WORDS - 1] ^= 1;
		assert_false(model_read_sector(&s->model, &s->ops[2], 0, &found));
		model_read_end(&s->model, &s->ops[2]);
		end_write(s, 1);
	}
	free_sector(s);
}

static void a_sector_tells_what_is_wrong_with_it(void **state)
{
	uint64_t sector[SECTOR_WORDS];
	char text[200];

	(void)state;
	sector_fill(sector, RUN, 5, 3, 1);
	assert_int_equal(sector_look(sector, RUN, 5).kind, CONTENT_DATA);
	assert_int_equal(sector_look(sector, RUN, 5).seq, 3);
	assert_int_equal(sector_look(sector, RUN, 6).kind, CONTENT_OTHER);
	assert_int_equal(sector_look(sector, RUN + 1, 5).kind, CONTENT_OTHER);
	assert_non_null(strstr(sector_describe(sector, RUN, 6, text, 200), "LBA 5"));
	assert_non_null(strstr(sector_describe(sector, RUN + 1, 5, text, 200), "another run"));
	for (unsigned i = 0; i < SECTOR_WORDS; i++) {
		sector[i] ^= UINT64_C(1) << i;
		assert_int_equal(sector_look(sector, RUN, 5).kind, CONTENT_OTHER);
		sector[i] ^= UINT64_C(1) << i;
	}
	sector[40]++;
	assert_non_null(strstr(sector_describe(sector, RUN, 5, text, 200), "byte 320"));
	memset(sector, 0, sizeof(sector));
	assert_int_equal(sector_look(sector, RUN, 5).kind, CONTENT_ZERO);
}

static void a_damaged_state_is_refused(void **state)
{
	char path[] = "/tmp/hammer-model-XXXXXX", *bytes;
	struct bm_error error = {0};
	struct sector *s = new_sector();
	struct model loaded;
	size_t size;
	FILE *file;

	(void)state;
	close(mkstemp(path));
	begin_write(s, 0);
	assert_int_equal(model_save(&s->model, path, &error), 0);
	file = fopen(path, "r");
	bytes = malloc(4096);
	size = fread(bytes, 1, 4096, file);
	fclose(file);
	for (size_t i = 0; i < size; i++) {
		bytes[i] ^= 0x40;
		file = fopen(path, "w");
		fwrite(bytes, 1, size, file);
		fclose(file);
		bytes[i] ^= 0x40;
		assert_true(model_load(&loaded, path, &error) < 0);
	}
	assert_int_equal(truncate(path, (off_t)size - 1), 0);
	assert_true(model_load(&loaded, path, &error) < 0);
	unlink(path);
	free(bytes);
	free_sector(s);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(content_does_not_go_back_and_forth),
		cmocka_unit_test(what_a_seen_write_replaced_is_gone_before_its_answer),
		cmocka_unit_test(a_write_sent_again_may_come_back_even_to_a_read_in_flight),
		cmocka_unit_test(torn_sectors_are_bad_unless_tearing_is_allowed),
		cmocka_unit_test(a_sector_tells_what_is_wrong_with_it),
		cmocka_unit_test(a_damaged_state_is_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
