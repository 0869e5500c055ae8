/* SPDX-License-Identifier: BSD-3-Clause */
/* The NBD server's handshake, byte by byte. "rule N" is reference/nbd.md's, names are proto.md's.
 */
#include "tests/unit/nbd_client.h"

static struct rig rig;

static int set_up(void **state)
{
	rig_open(&rig, NULL);
	*state = &rig;
	return 0;
}

static int set_up_hasty(void **state)
{
	const struct nbd_server_options options = {.handshake_ns = 100000000};

	rig_open(&rig, &options);
	*state = &rig;
	return 0;
}

static int tear_down(void **state)
{
	(void)state;
	rig_close(&rig);
	return 0;
}

/* "Newstyle negotiation", "Handshake flags" */
static void it_greets_with_fixed_newstyle_and_no_zeroes(void **state)
{
	struct client c = client_new(*state);

	start(&c, 3);
	client_close(&c);
}

/* "Client flags": the server MUST drop the connection; rule 2 */
static void an_unknown_client_flag_ends_it(void **state)
{
	struct client c = client_new(*state);

	start(&c, 4 | 3);
	expect_end(&c);
	client_close(&c);
}

static void a_wrong_option_magic_ends_it(void **state)
{
	struct client c = client_new(*state);

	start(&c, 3);
	put(&c, "IHAVEOPX\0\0\0\3\0\0\0\0", 16);
	expect_end(&c);
	client_close(&c);
}

/* What follows an option is read from where it should be: nothing was left over, nothing lost. */
static void expect_in_step(struct client *c)
{
	option(c, 99, "\1\2\3", 3);
	assert_int_equal(final_reply(c, 99), UNSUP);
}

struct row {
	const char *clause;
	uint32_t option;
	const char *data;
	uint32_t length;
	uint32_t reply;
};

#define ROW(clause, option, data, reply)                      \
	{                                                     \
		clause, option, data, sizeof(data) - 1, reply \
	}

static const struct row rows[] = {
	ROW("rule 3: unknown, with data", 77, "payload", UNSUP),
	ROW("rule 3: unknown", 77, "", UNSUP),
	ROW("Option types: PEEK_EXPORT is withdrawn", 4, "x", UNSUP),
	ROW("EXTENDED_HEADERS with data", EXTENDED, "\0", INVALID),
	ROW("rule 3: LIST with data", LIST, "x", INVALID),
	ROW("rule 3: STRUCTURED_REPLY with data", SR, "\0", INVALID),
	ROW("NOTLS mode", STARTTLS, "", UNSUP),
	ROW("rule 3: STARTTLS with data", STARTTLS, "x", INVALID),
	ROW("rule 5: INFO without data", INFO, "", INVALID),
	ROW("rule 5: INFO, length cut off", INFO, "\0\0\0", INVALID),
	ROW("rule 5: INFO, name longer than the option", INFO, "\0\0\0\3\0\0", INVALID),
	ROW("rule 5: CVE-2022-26495", INFO, "\377\377\377\377\0\0", INVALID),
	ROW("rule 5: CVE-2022-26495, wraps", GO, "\377\377\377\375\0\0", INVALID),
	ROW("rule 5: INFO without a count", INFO, "\0\0\0\0", INVALID),
	ROW("rule 5: fewer infos than counted", INFO, "\0\0\0\0\0\2\0\3", INVALID),
	ROW("rule 5: more infos than counted", INFO, "\0\0\0\0\0\0\0\3", INVALID),
	ROW("rule 5: one byte too many", GO, "\0\0\0\0\0\0\0", INVALID),
	ROW("rule 5: unknown export", INFO, "\0\0\0\1x\0\0", UNKNOWN),
	ROW("rule 5: unknown export", GO, "\0\0\0\1x\0\0", UNKNOWN),
	ROW("a name is all of it", GO, "\0\0\0\4smal\0\0", UNKNOWN),
	ROW("Conventions: a string has no NUL", GO, "\0\0\0\6small\0\0\0", UNKNOWN),
	ROW("rule 8: SET needs structured replies", SET_META, "\0\0\0\0\0\0\0\0", INVALID),
	ROW("rule 8: LIST_ needs structured replies", LIST_META, "\0\0\0\0\0\0\0\0", INVALID),
};

static void an_option_that_fails_takes_no_other_with_it(void **state)
{
	struct client c = client_new(*state);

	start(&c, 3);
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		uint8_t text[8192];
		uint32_t length;

		option(&c, rows[i].option, rows[i].data, rows[i].length);
		if (option_reply(&c, rows[i].option, text, &length) != rows[i].reply)
			fail_msg("%s", rows[i].clause);
		assert_true(length > 0); /* "Option reply types": a text for people */
		expect_in_step(&c);
	}
	option(&c, ABORT, NULL, 0);
	assert_int_equal(final_reply(&c, ABORT), ACK);
	client_close(&c);
}

/* Limits: data up to 64 KiB is looked at, up to 32 MiB dropped, above that so is the client. */
static void long_options_are_dropped_and_longer_ones_end_it(void **state)
{
	struct client c = client_new(*state);
	uint8_t *data = calloc(1, MIB);

	start(&c, 3);
	option(&c, 77, data, 65536);
	assert_int_equal(final_reply(&c, 77), UNSUP);
	option(&c, INFO, data, 65537);
	assert_int_equal(final_reply(&c, INFO), TOO_BIG);
	option(&c, 77, data, MIB);
	assert_int_equal(final_reply(&c, 77), TOO_BIG);
	expect_in_step(&c);
	put(&c, "IHAVEOPT\0\0\0\7\2\0\0\1", 16); /* 32 MiB and 1 byte */
	expect_end(&c);
	client_close(&c);
	free(data);
}

static void options_may_come_byte_by_byte_or_all_together(void **state)
{
	static const char bytes[] = "\0\0\0\3IHAVEOPT\0\0\0\10\0\0\0\0IHAVEOPT\0\0\0\6\0\0\0\6"
				    "\0\0\0\0\0\0IHAVEOPT\0\0\0\2\0\0\0\0";
	uint8_t greeting[18];

	for (size_t step = 1; step < sizeof(bytes); step += sizeof(bytes) - 2) {
		struct client c = client_new(*state);

		get(&c, greeting, sizeof(greeting));
		for (size_t at = 0; at < sizeof(bytes) - 1; at += step) {
			put(&c, bytes + at, step);
			turns(&rig, 2);
		}
		assert_int_equal(final_reply(&c, SR), ACK);
		assert_int_equal(final_reply(&c, INFO), ACK);
		assert_int_equal(final_reply(&c, ABORT), ACK);
		expect_end(&c);
		client_close(&c);
	}
}

/* ABORT: the server MUST reply with ACK; its data is of no interest; rule 4 */
static void abort_is_acknowledged(void **state)
{
	struct client c = client_new(*state);

	start(&c, 3);
	option(&c, ABORT, "bye", 3);
	assert_int_equal(final_reply(&c, ABORT), ACK);
	expect_end(&c);
	client_close(&c);
}

/* ABORT: "closing the connection without waiting for a reply" is to be coped with; rule 4 */
static void a_client_may_go_without_waiting(void **state)
{
	struct client c = client_new(*state);

	start(&c, 3);
	option(&c, ABORT, NULL, 0);
	client_close(&c);
	assert_int_equal(nbd_server_clients(rig.server, NULL, 0), 0);
}

/* rule 9: 32 options, and 32 more per export */
static void options_are_counted(void **state)
{
	struct client c = client_new(*state);

	start(&c, 3);
	for (int i = 0; i < 32 * 4; i++) {
		option(&c, LIST, NULL, 0);
		assert_int_equal(final_reply(&c, LIST), ACK);
	}
	option(&c, LIST, NULL, 0);
	expect_end(&c);
	client_close(&c);
}

/* rule 9: CVE-2024-7409 */
static void the_handshake_has_to_end_in_time(void **state)
{
	struct client c = connected(*state, "", true), slow = client_new(*state);
	struct client silent = client_new(*state);
	uint8_t greeting[18];

	start(&slow, 3);
	option(&slow, LIST, NULL, 0);
	assert_int_equal(final_reply(&slow, LIST), ACK);
	expect_end(&slow);
	get(&silent, greeting, sizeof(greeting));
	expect_end(&silent);
	expect_silence(&c); /* an idle client in transmission stays */
	client_close(&slow), client_close(&silent), client_close(&c);
}

/* Choosing an export */

/* EXPORT_NAME; rule 6 */
static void export_name_answers_with_124_zeroes_or_without(void **state)
{
	for (unsigned flags = 1; flags <= 3; flags += 2) {
		struct client c = client_new(*state);
		uint8_t zeroes[124], none[124] = {0};

		start(&c, flags);
		option(&c, EXPORT_NAME, "small", 5);
		assert_int_equal(get64(&c), SMALL);
		assert_int_equal(get16(&c) & 3, 3); /* HAS_FLAGS, READ_ONLY */
		if (flags == 1) {
			get(&c, zeroes, sizeof(zeroes));
			assert_memory_equal(zeroes, none, sizeof(none));
		}
		request(&c, READ, 0, 7, 0, 512);
		expect_simple(&c, 7, 0);
		client_close(&c);
	}
}

/* EXPORT_NAME: MUST terminate the session; rule 6 */
static void export_name_of_no_export_ends_it(void **state)
{
	struct client c = client_new(*state), d = client_new(*state);

	start(&c, 3);
	option(&c, EXPORT_NAME, "nothing", 7);
	expect_end(&c);
	start(&d, 3);
	put(&d, "IHAVEOPT\0\0\0\1\0\1\0\1", 16); /* 64 KiB and 1 byte */
	expect_end(&d);
	client_close(&c), client_close(&d);
}

struct infos {
	uint64_t size;
	uint32_t flags, block[3];
	char name[64], description[64];
	unsigned count;
};

static uint16_t number16(const uint8_t *at)
{
	return (uint16_t)(at[0] << 8 | at[1]);
}

static void take_info(struct infos *i, const uint8_t *at, uint32_t length)
{
	i->count++;
	switch (number16(at)) {
	case 0:
		assert_int_equal(length, 12);
		memcpy(&i->size, at + 2, 8);
		i->size = be64toh(i->size);
		i->flags = number16(at + 10);
		break;
	case 1:
		memcpy(i->name, at + 2, length - 2);
		break;
	case 2:
		memcpy(i->description, at + 2, length - 2);
		break;
	case 3:
		assert_int_equal(length, 14);
		memcpy(i->block, at + 2, 12);
		break;
	default:
		fail();
	}
}

/* INFO or GO of name; asks for all infos there are, and one there is not. */
static struct infos ask(struct client *c, uint32_t number, const char *name, bool for_more)
{
	static const uint16_t wanted[] = {0x0100, 0x0200, 0x0300, 0x3412};
	struct infos infos = {0};
	uint8_t data[300], reply[8192];
	uint32_t type, length;
	size_t size = info_data(data, name);

	if (for_more) {
		data[size - 1] = 4;
		memcpy(data + size, wanted, sizeof(wanted));
		size += sizeof(wanted);
	}
	option(c, number, data, size);
	while ((type = option_reply(c, number, reply, &length)) == REP_INFO)
		take_info(&infos, reply, length);
	assert_int_equal(type, ACK);
	return infos;
}

/* INFO, GO: rules 5 and 25; no data follows GO's ACK */
static void info_and_go_tell_the_same(void **state)
{
	struct client c = client_new(*state);
	struct infos bare, info, chosen;

	start(&c, 3);
	bare = ask(&c, INFO, "", false);
	assert_int_equal(bare.size, DISK);
	assert_int_equal(bare.count, 2); /* the sizes */
	info = ask(&c, INFO, "", true);
	assert_int_equal(info.size, DISK);
	assert_int_equal(info.count, 4);
	assert_string_equal(info.name, "");
	assert_string_equal(info.description, "the default one");
	assert_int_equal(be32toh(info.block[0]), 1);
	assert_int_equal(be32toh(info.block[1]), 4096);
	assert_int_equal(be32toh(info.block[2]), 32 * MIB);
	chosen = ask(&c, GO, "", true);
	assert_memory_equal(&info, &chosen, sizeof(info));
	expect_silence(&c);
	client_close(&c);
}

/* "Transmission flags"; rule 10: SEND_DF belongs to sessions with structured replies */
static void flags_are_those_of_the_session(void **state)
{
	enum {
		HAS = 1,
		RO = 2,
		SEND_FLUSH = 4,
		SEND_FUA = 8,
		SEND_TRIM = 32,
		WZ = 64,
		SEND_DF = 128,
		MULTI = 256,
		SEND_CACHE = 1024,
		FAST = 2048
	};
	struct client c = client_new(*state);
	uint32_t both = HAS | SEND_FLUSH | SEND_FUA | MULTI | SEND_CACHE;

	start(&c, 3);
	assert_int_equal(ask(&c, INFO, "", false).flags, both | SEND_TRIM | WZ | FAST);
	assert_int_equal(ask(&c, INFO, "small", false).flags, both | RO);
	option(&c, SR, NULL, 0);
	assert_int_equal(final_reply(&c, SR), ACK);
	assert_int_equal(ask(&c, GO, "", false).flags, both | SEND_TRIM | WZ | FAST | SEND_DF);
	client_close(&c);
}

/* LIST */
static void list_names_every_export(void **state)
{
	static const char *const replies[] = {"\0\0\0\0the default one", "\0\0\0\5small",
					      "\0\0\0\4slow"};
	static const uint32_t lengths[] = {4 + 15, 4 + 5, 4 + 4};
	struct client c = client_new(*state);
	uint8_t reply[8192];
	uint32_t length;

	start(&c, 3);
	option(&c, LIST, NULL, 0);
	for (int i = 0; i < 3; i++) {
		assert_int_equal(option_reply(&c, LIST, reply, &length), REP_SERVER);
		assert_int_equal(length, lengths[i]);
		assert_memory_equal(reply, replies[i], length);
	}
	assert_int_equal(option_reply(&c, LIST, reply, &length), ACK);
	assert_int_equal(length, 0);
	client_close(&c);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
	const struct CMUnitTest tests[] = {
		TEST(it_greets_with_fixed_newstyle_and_no_zeroes),
		TEST(an_unknown_client_flag_ends_it),
		TEST(a_wrong_option_magic_ends_it),
		TEST(an_option_that_fails_takes_no_other_with_it),
		TEST(long_options_are_dropped_and_longer_ones_end_it),
		TEST(options_may_come_byte_by_byte_or_all_together),
		TEST(abort_is_acknowledged),
		TEST(a_client_may_go_without_waiting),
		TEST(options_are_counted),
		cmocka_unit_test_setup_teardown(the_handshake_has_to_end_in_time, set_up_hasty,
						tear_down),
		TEST(export_name_answers_with_124_zeroes_or_without),
		TEST(export_name_of_no_export_ends_it),
		TEST(info_and_go_tell_the_same),
		TEST(flags_are_those_of_the_session),
		TEST(list_names_every_export),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
