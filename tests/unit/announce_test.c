/* SPDX-License-Identifier: BSD-3-Clause */
/* What is sent for a machine that has moved: each byte; and what no hook may have us send. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "blockmirror/machine/move_announce.h"

static int parse(const char *interface, const char *mac, const char *address,
		 struct announcement *a)
{
	struct bm_error error = {0};
	json_t *entry = json_pack("{s:s* s:s* s:s*}", "interface", interface, "mac", mac, "address",
				  address);
	int r = announce_parse(entry, a, &error);

	assert_int_equal(error.code, r ? BM_E_HOOK : 0);
	json_decref(entry);
	return r;
}

static void rarp_is_that_of_rfc_903(void **state)
{
	static const unsigned char wanted[ANNOUNCE_FRAME] = {
		0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x52, 0x54, 0, 0x77, 0x0a, 2, /* to, from */
		0x80, 0x35, 0,    1,    8,    0,    6,    4,    0, 3,  /* reverse request */
		0x52, 0x54, 0,    0x77, 0x0a, 2,    0,    0,    0, 0,  /* sender */
		0x52, 0x54, 0,    0x77, 0x0a, 2,    0,    0,    0, 0}; /* target */
	unsigned char frame[ANNOUNCE_FRAME];
	struct announcement a;

	(void)state;
	assert_int_equal(parse("br0", "52:54:00:77:0a:02", NULL, &a), 0);
	assert_string_equal(a.interface, "br0");
	assert_false(a.has_address);
	announce_rarp(&a, frame);
	assert_memory_equal(frame, wanted, sizeof(wanted));
}

static void arp_is_gratuitous(void **state)
{
	static const unsigned char
		wanted[ANNOUNCE_FRAME] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x52, 0x54,
					  0,    0x77, 0x0a, 2,    8,    6,    0,    1,
					  8,    0,    6,    4,    0,    1, /* request */
					  0x52, 0x54, 0,    0x77, 0x0a, 2,    10,   88,
					  0,    3, /* sender */
					  0,    0,    0,    0,    0,    0,    10,   88,
					  0,    3}; /* target: the same address */
	unsigned char frame[ANNOUNCE_FRAME];
	struct announcement a;

	(void)state;
	assert_int_equal(parse("br0", "52:54:00:77:0A:02", "10.88.0.3", &a), 0);
	assert_true(a.has_address);
	announce_arp(&a, frame);
	assert_memory_equal(frame, wanted, sizeof(wanted));
}

static void what_is_none_is_refused(void **state)
{
	static const char *const macs[] = {NULL,
					   "",
					   "52:54:00:77:0a",
					   "52:54:00:77:0a:02:03",
					   "52:54:00:77:0a:0g",
					   "52-54-00-77-0a-02",
					   "53:54:00:77:0a:02",
					   "ff:ff:ff:ff:ff:ff"};
	struct announcement a;

	(void)state;
	for (size_t i = 0; i < sizeof(macs) / sizeof(macs[0]); i++)
		assert_true(parse("br0", macs[i], NULL, &a) < 0);
	assert_true(parse(NULL, "52:54:00:77:0a:02", NULL, &a) < 0);
	assert_true(parse("", "52:54:00:77:0a:02", NULL, &a) < 0);
	assert_true(parse("sixteen-letters0", "52:54:00:77:0a:02", NULL, &a) < 0);
	assert_int_equal(parse("fifteen-letters", "52:54:00:77:0a:02", NULL, &a), 0);
	assert_true(parse("br0", "52:54:00:77:0a:02", "10.88.0", &a) < 0);
	assert_true(parse("br0", "52:54:00:77:0a:02", "fe80::1", &a) < 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(rarp_is_that_of_rfc_903),
		cmocka_unit_test(arp_is_gratuitous),
		cmocka_unit_test(what_is_none_is_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
