/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * One end of the relay, and a test in the place of the other: it keeps to the order, and believes
 * nothing.
 */
#include "tests/unit/ram_relay_rig.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "blockmirror/ram/link.h"

static void say(int fd, struct bm_ram_header *header, const void *payload)
{
	uint8_t head[BM_RAM_HEADER];

	bm_ram_header_put(head, header, payload);
	assert_int_equal(send(fd, head, sizeof(head), 0), sizeof(head));
	assert_int_equal(send(fd, payload, header->length, 0), header->length);
}

static void say_hello(int fd, const struct bm_ram_hello *hello)
{
	struct bm_ram_header header = {
		.type = BM_RAM_FRAME_HELLO, .length = BM_RAM_HELLO, .plain = BM_RAM_HELLO};
	uint8_t at[BM_RAM_HELLO];

	bm_ram_hello_put(at, hello);
	say(fd, &header, at);
}

static void say_batch(int fd, uint64_t number, const char *bytes, uint64_t content)
{
	uint8_t at[100] = {BM_RAM_BYTES};
	size_t length = strlen(bytes);
	struct bm_ram_header header = {.type = BM_RAM_FRAME_BATCH,
				       .length = (uint32_t)length + 5,
				       .plain = (uint32_t)length + 5,
				       .weight = (uint32_t)length,
				       .number = number,
				       .content = content ? content : XXH3_64bits(bytes, length)};

	bm_put32(at + 1, (uint32_t)length);
	memcpy(at + 5, bytes, length);
	say(fd, &header, at);
}

static const struct bm_ram_hello good = {
	.id = "a move", .link = 0, .links = 2, .page_bits = 12, .slots = 1024};

static void receiver_alone(struct both *b)
{
	both_begin(b, 2, 65536);
	b->from.failed = 1;
	open_receiver(b);
}

static void receiver_fails(struct both *b, enum bm_code code, const char *text)
{
	turn_until(b, NULL, b->to.failed);
	assert_int_equal(b->to.error.code, code);
	if (!strstr(b->to.error.text, text))
		fail_msg("%s", b->to.error.text);
	assert_true(is_closed(b->to.qemu));
	for (unsigned i = 0; i < 2; i++)
		close(b->near[i].in);
	both_close(b);
}

static void batches_are_put_in_order(void **state)
{
	struct bm_ram_hello second = good;
	struct both b;

	(void)state;
	receiver_alone(&b);
	second.link = 1;
	say_hello(b.near[1].in, &second);
	say_hello(b.near[0].in, &good);
	say_batch(b.near[0].in, 1, "world", 0);
	say_batch(b.near[0].in, 3, "!", 0);
	turns(&b, NULL, 10);
	assert_int_equal(b.out.used, 0);
	say_batch(b.near[1].in, 0, "hello ", 0);
	say_batch(b.near[1].in, 2, " again", 0);
	turn_until(&b, NULL, b.out.used == 18);
	assert_memory_equal(b.out.data, "hello world again!", 18);
	for (unsigned i = 0; i < 2; i++)
		close(b.near[i].in);
	turn_until(&b, NULL, b.to.failed);
	both_close(&b);
}

static void a_batch_that_comes_out_differently_is_not_given_to_qemu(void **state)
{
	struct both b;

	(void)state;
	receiver_alone(&b);
	say_hello(b.near[0].in, &good);
	say_batch(b.near[0].in, 0, "right", 0);
	say_batch(b.near[0].in, 1, "wrong", 12345);
	turn_until(&b, NULL, b.to.failed);
	assert_int_equal(b.out.used, 5);
	receiver_fails(&b, BM_E_DIFFERED, "batch 1");
}

static void a_sender_that_does_not_keep_to_the_rules_is_refused(void **state)
{
	struct bm_ram_header back = {.type = BM_RAM_FRAME_BACK};
	struct bm_ram_hello bad = good;
	struct both b;

	(void)state;
	receiver_alone(&b);
	say_batch(b.near[0].in, 0, "early", 0);
	receiver_fails(&b, BM_E_UNREACHABLE, "out of turn");

	receiver_alone(&b);
	bad.id[0] ^= 1;
	say_hello(b.near[0].in, &bad);
	receiver_fails(&b, BM_E_UNREACHABLE, "another move");

	receiver_alone(&b);
	say_hello(b.near[0].in, &good);
	say_hello(b.near[1].in, &good);
	receiver_fails(&b, BM_E_UNREACHABLE, "another move");

	receiver_alone(&b);
	bad = good;
	bad.slots = 1025;
	say_hello(b.near[0].in, &bad);
	receiver_fails(&b, BM_E_UNREACHABLE, "too large");

	receiver_alone(&b);
	bad = good;
	bad.page_bits = 40;
	say_hello(b.near[0].in, &bad);
	receiver_fails(&b, BM_E_UNREACHABLE, "too large");

	receiver_alone(&b);
	say_hello(b.near[0].in, &good);
	say(b.near[0].in, &back, "");
	receiver_fails(&b, BM_E_UNREACHABLE, "out of turn");

	receiver_alone(&b);
	say_hello(b.near[0].in, &good);
	say_batch(b.near[0].in, 0, "once", 0);
	say_batch(b.near[0].in, 0, "again", 0);
	receiver_fails(&b, BM_E_UNREACHABLE, "out of turn");

	receiver_alone(&b);
	bad = good;
	bad.link = 1;
	say_hello(b.near[0].in, &good);
	say_hello(b.near[1].in, &bad);
	say_batch(b.near[0].in, 5, "far", 0);
	say_batch(b.near[1].in, 6, "farther", 0);
	receiver_fails(&b, BM_E_UNREACHABLE, "on none of them");

	receiver_alone(&b);
	assert_int_equal(send(b.near[0].in,
			      "GET / HTTP/1.1\r\nHost: some host or other\r\n\r\n......", 50, 0),
			 50);
	receiver_fails(&b, BM_E_UNREACHABLE, "does not speak our RAM protocol");
}

/* Both are silent; one that has greeted may be so for the time that was agreed on. */
static void silence_is_death(void **state)
{
	struct bm_ram_hello hello = good;
	struct both b;
	uint64_t begun = now_ns();

	(void)state;
	both_begin(&b, 2, 65536);
	b.setup.silence = 300 * MS;
	b.to.failed = 1;
	open_sender(&b);
	for (uint8_t i = 0; i < 2; i++) {
		hello.link = i;
		say_hello(b.far[i].in, &hello);
	}
	turn_until(&b, NULL, b.from.failed);
	assert_in_range(now_ns() - begun, 300 * MS, 5000 * MS);
	assert_non_null(strstr(b.from.error.text, "has said nothing for"));
	assert_true(is_closed(b.from.qemu));
	for (unsigned i = 0; i < 2; i++)
		close(b.far[i].in);
	both_close(&b);
}

/* TCP lets one of several wait on a way that has become slow; that is no death, for a while. */
static void one_silent_connection_beside_others_is_no_death_yet(void **state)
{
	struct bm_ram_header beat = {.type = BM_RAM_FRAME_BEAT};
	struct bm_ram_hello second = good;
	uint64_t begun = now_ns();
	struct both b;

	(void)state;
	both_begin(&b, 2, 65536);
	b.setup.silence = 300 * MS;
	b.from.failed = 1;
	open_receiver(&b);
	second.link = 1;
	say_hello(b.near[0].in, &good);
	say_hello(b.near[1].in, &second);
	while (!b.to.failed) {
		say(b.near[0].in, &beat, "");
		turns(&b, NULL, 50);
	}
	assert_in_range(now_ns() - begun, 1200 * MS, 5000 * MS);
	receiver_fails(&b, BM_E_UNREACHABLE, "connection 1: the other host has said nothing for");
}

/*
 * Its batch waits for the one that is to come by the other: nobody listens to it meanwhile. On a
 * way that has become slow all but one are so, and TCP may take seconds over that one.
 */
static void nor_is_one_beside_others_that_are_not_listened_to(void **state)
{
	struct bm_ram_hello second = good;
	uint64_t begun = now_ns();
	struct both b;

	(void)state;
	both_begin(&b, 2, 65536);
	b.setup.silence = 300 * MS;
	b.from.failed = 1;
	open_receiver(&b);
	second.link = 1;
	say_hello(b.near[0].in, &good);
	say_hello(b.near[1].in, &second);
	turns(&b, NULL, 20);
	say_batch(b.near[0].in, 1, "what comes later", 0);
	while (!b.to.failed)
		turns(&b, NULL, 50);
	assert_in_range(now_ns() - begun, 1200 * MS, 5000 * MS);
	receiver_fails(&b, BM_E_UNREACHABLE, "connection 1: the other host has said nothing for");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(batches_are_put_in_order),
		cmocka_unit_test(a_batch_that_comes_out_differently_is_not_given_to_qemu),
		cmocka_unit_test(a_sender_that_does_not_keep_to_the_rules_is_refused),
		cmocka_unit_test(silence_is_death),
		cmocka_unit_test(one_silent_connection_beside_others_is_no_death_yet),
		cmocka_unit_test(nor_is_one_beside_others_that_are_not_listened_to),
	};

	return cmocka_run_group_tests(tests, load, unload);
}
