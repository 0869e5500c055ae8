/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The NBD server under TLS: its modes, how it begins, what it carries, how it ends. "rule N" is
 * reference/nbd.md's, names are proto.md's.
 */
#include "tests/unit/nbd_tls_rig.h"

#include <sys/stat.h>

static bool only_1_3;
static struct rig rig;
static char folder[64], keys[96];
static const struct manner mirror = {.user = "mirror", .key = KEY_1};

static int set_up_mode(void **state, enum nbd_tls_mode mode, const struct nbd_server_options *o)
{
	const struct bm_tls_options tls = {.psk = keys, .only_1_3 = only_1_3};

	strcpy(folder, "/tmp/nbd_tls_test.XXXXXX");
	if (!mkdtemp(folder))
		return -1;
	snprintf(keys, sizeof(keys), "%s/keys", folder);
	write_text(folder, "keys", "mirror:" KEY_1 "\nother:" KEY_2 "\n");
	chmod(keys, 0600);
	rig_open(&rig, o);
	*state = &rig;
	return nbd_server_set_tls(rig.server, mode, &tls, NULL);
}

static int set_up(void **state)
{
	return set_up_mode(state, NBD_TLS_REQUIRE, NULL);
}

static int set_up_offered(void **state)
{
	return set_up_mode(state, NBD_TLS_ON, NULL);
}

static int set_up_1_3(void **state)
{
	int r;

	only_1_3 = true;
	r = set_up(state);
	only_1_3 = false;
	return r;
}

static int set_up_hasty(void **state)
{
	const struct nbd_server_options options = {.handshake_ns = 300000000};

	return set_up_mode(state, NBD_TLS_REQUIRE, &options);
}

static int tear_down(void **state)
{
	(void)state;
	rig_close(&rig);
	remove_folder(folder);
	return 0;
}

static unsigned clients(void)
{
	return nbd_server_clients(rig.server, NULL, 0);
}

/* Modes */

/* "FORCEDTLS mode": every option but STARTTLS and ABORT; the stream stays in step */
static void required_tls_comes_before_all_else(void **state)
{
	static const uint32_t options[] = {LIST, INFO, GO, SR, LIST_META, SET_META, 4, 11, 77, 0};
	struct client c = client_new(*state);
	uint8_t *data = calloc(1, MIB), text[8192];
	uint32_t length;

	start(&c, 3);
	for (size_t i = 0; i < sizeof(options) / sizeof(options[0]); i++)
		for (size_t size = 0; size <= 70000; size = size * 100 + 7) {
			option(&c, options[i], data, size);
			assert_int_equal(option_reply(&c, options[i], text, &length), TLS_REQD);
			assert_true(length > 0);
		}
	option(&c, STARTTLS, "x", 1);
	assert_int_equal(final_reply(&c, STARTTLS), INVALID);
	option(&c, ABORT, "x", 1);
	assert_int_equal(final_reply(&c, ABORT), ACK);
	expect_end(&c);
	client_close(&c);
	free(data);
}

/* "FORCEDTLS mode": EXPORT_NAME MUST terminate the session */
static void required_tls_ends_who_names_an_export(void **state)
{
	for (unsigned flags = 0; flags <= 3; flags += 3) {
		struct client c = client_new(*state);

		start(&c, flags);
		option(&c, EXPORT_NAME, "", 0);
		expect_end(&c);
		client_close(&c);
	}
}

/* "Server-side requirements": NOTLS without fixed newstyle */
static void tls_needs_fixed_newstyle(void **state)
{
	struct client c = client_new(*state);

	start(&c, 2);
	option(&c, STARTTLS, NULL, 0);
	assert_int_equal(final_reply(&c, STARTTLS), POLICY);
	option(&c, ABORT, NULL, 0);
	assert_int_equal(final_reply(&c, ABORT), ACK);
	client_close(&c);
}

/* "SELECTIVETLS mode": never TLS_REQD, there is no export that needs it */
static void offered_tls_is_a_choice(void **state)
{
	struct client c = connected(*state, "", STRUCTURED_REPLIES), d;
	struct bridge *b;

	request(&c, READ, 0, 1, 0, 512);
	expect_chunk(&c, 1, DATA, 8 + 512);
	assert_false(last_client(*state).tls);
	d = secured(*state, &mirror, &b, "", STRUCTURED_REPLIES);
	request(&d, READ, 0, 1, 0, 512);
	expect_chunk(&d, 1, DATA, 8 + 512);
	assert_true(last_client(*state).tls);
	assert_string_equal(last_client(*state).identity, "psk:mirror");
	secure_close(&d, b);
	client_close(&c);
}

/* A second STARTTLS -> INVALID; nothing is TLS_REQD any more */
static void tls_is_begun_once(void **state)
{
	struct bridge *b;
	struct client c = new_secure_client(*state, &mirror, &b);

	option(&c, STARTTLS, NULL, 0);
	assert_int_equal(final_reply(&c, STARTTLS), INVALID);
	option(&c, LIST, NULL, 0);
	assert_int_equal(final_reply(&c, LIST), ACK);
	option(&c, 77, "x", 1);
	assert_int_equal(final_reply(&c, 77), UNSUP);
	go(&c, "");
	secure_close(&c, b);
}

/* rule 7, CVE-2021-3716: what was negotiated in the clear an attacker may have negotiated */
static void tls_forgets_what_was_said_before(void **state)
{
	static const uint32_t modes[] = {SR, EXTENDED};

	for (size_t i = 0; i < 2; i++) {
		struct client c = client_new(*state);
		struct bridge *b;
		unsigned found;
		uint32_t id;

		start(&c, 3);
		option(&c, modes[i], NULL, 0);
		assert_int_equal(final_reply(&c, modes[i]), ACK);
		assert_int_equal(meta(&c, SET_META, "", "base:allocation", &found, &id), ACK);
		assert_int_equal(found, 1);
		b = secure(&c, &mirror, NULL);
		assert_int_equal(meta(&c, SET_META, "", "base:allocation", &found, &id), INVALID);
		go(&c, "");
		request(&c, READ, DF, 1, 0, 512);
		expect_simple(&c, 1, EINVAL);
		request(&c, STATUS, 0, 2, 0, 512);
		expect_simple(&c, 2, EINVAL);
		secure_close(&c, b);
	}
}

/* What was selected before must not come back with what is negotiated after. */
static void contexts_do_not_outlive_starttls(void **state)
{
	struct client c = client_new(*state);
	struct bridge *b;
	unsigned found;
	uint32_t id;

	start(&c, 3);
	choose_mode(&c, STRUCTURED_REPLIES);
	assert_int_equal(meta(&c, SET_META, "", "base:allocation", &found, &id), ACK);
	assert_int_equal(found, 1);
	b = secure(&c, &mirror, NULL);
	choose_mode(&c, STRUCTURED_REPLIES);
	go(&c, "");
	request(&c, STATUS, 0, 1, 0, 512);
	expect_error(&c, 1, EINVAL);
	secure_close(&c, b);
}

/* rule 7, CVE-2021-3716: plain text behind STARTTLS is not taken for what came under TLS */
static void plain_text_behind_starttls_ends_it(void **state)
{
	static const char *const behind[] = {"IHAVEOPT\0\0\0\3\0\0\0\0", "\26\3\1\0\5hello", "I"};
	static const size_t lengths[] = {16, 10, 1};

	for (size_t i = 0; i < 3; i++) {
		struct client c = client_new(*state);
		uint8_t bytes[64] = "IHAVEOPT\0\0\0\5\0\0\0\0";

		start(&c, 3);
		memcpy(bytes + 16, behind[i], lengths[i]);
		put(&c, bytes, 16 + lengths[i]);
		expect_end(&c);
		client_close(&c);
	}
}

/* Options that were sent ahead of it are answered first, in the clear. */
static void starttls_waits_for_earlier_answers(void **state)
{
	static const char bytes[] =
		"IHAVEOPT\0\0\0\3\0\0\0\0IHAVEOPT\0\0\0\115\0\0\0\1xIHAVEOPT\0\0\0"
		"\5\0\0\0";
	struct client c = client_new(*state);
	struct bridge *b;

	start(&c, 3);
	put(&c, bytes, sizeof(bytes));
	assert_int_equal(final_reply(&c, LIST), ACK);
	assert_int_equal(final_reply(&c, 77), UNSUP);
	assert_int_equal(final_reply(&c, STARTTLS), ACK);
	b = bridge_new(&c, &mirror);
	assert_int_equal(bridge_handshake(b), 0);
	bridge_open(b, &c);
	go(&c, "");
	secure_close(&c, b);
}

/* The handshake of TLS */

static void what_is_no_tls_ends_it(void **state)
{
	static const char *const words[] = {
		"IHAVEOPT\0\0\0\3\0\0\0\0", /* plain NBD */
		"\200\56\1\0\2\0\0\0",      /* SSL 2 */
		"\26\3\1\377\377",          /* a record longer than any */
		"\26\3\1\0\4\1\0\0\0",      /* a handshake message that is none */
		"\27\3\3\0\5hello",         /* data before the handshake */
		"\25\3\3\0\2\2\50",         /* a fatal alert */
		"\30\3\3\0\3\1\100\0",      /* a heartbeat */
	};
	static const size_t lengths[] = {16, 8, 5, 9, 10, 7, 8};

	for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++) {
		struct client c = client_new(*state);
		uint8_t alert[64];

		start(&c, 3);
		ask_for_tls(&c);
		put(&c, words[i], lengths[i]);
		while (try_get(&c, alert, 1)) /* it may be told why */
			;
		client_close(&c);
		assert_int_equal(clients(), 0);
	}
}

/* rule 9: the limit covers TLS */
static void the_handshake_of_tls_has_to_end_in_time(void **state)
{
	struct client silent = client_new(*state), half = client_new(*state), late;
	struct bridge *b, *c;
	uint8_t byte;

	start(&silent, 3);
	ask_for_tls(&silent);
	start(&half, 3);
	ask_for_tls(&half);
	b = bridge_new(&half, &mirror);
	assert_int_equal(gnutls_handshake(b->session), GNUTLS_E_AGAIN); /* a ClientHello */
	late = new_secure_client(*state, &mirror, &c);
	assert_int_equal(clients(), 3);
	expect_end(&silent);
	while (try_get(&half, &byte, 1)) /* its answer to that */
		;
	expect_end(&late); /* it chooses no export */
	assert_int_equal(clients(), 0);
	client_close(&silent);
	secure_close(&late, c);
	bridge_close(b);
}

static void a_client_may_vanish_in_the_midst_of_it(void **state)
{
	for (int step = 0; step < 3; step++) {
		struct client c = client_new(*state);
		struct bridge *b;

		start(&c, 3);
		ask_for_tls(&c);
		b = bridge_new(&c, &mirror);
		if (step == 1)
			put(&c, "\26\3\1\1\0", 5);
		if (step == 2)
			assert_int_equal(gnutls_handshake(b->session), GNUTLS_E_AGAIN);
		turns(&rig, 3);
		bridge_close(b);
		turns(&rig, 5);
		assert_int_equal(clients(), 0);
	}
}

static void the_server_may_stop_in_the_midst_of_it(void **state)
{
	struct client c = client_new(*state), d = client_new(*state);

	start(&c, 3);
	ask_for_tls(&c);
	start(&d, 3);
	option(&d, STARTTLS, NULL, 0);
	rig_stop(*state);
	expect_end(&c), expect_end(&d);
	client_close(&c), client_close(&d);
}

/* "TLS versions": 1.2 and later */
static void versions_before_1_2_are_refused(void **state)
{
	static const struct {
		const char *priority;
		gnutls_protocol_t version; /* 0: refused */
	} rows[] = {
		{NORMAL, GNUTLS_TLS1_3},
		{NORMAL ":-VERS-ALL:+VERS-TLS1.2", GNUTLS_TLS1_2},
		{NORMAL ":-VERS-ALL:+VERS-TLS1.1", 0},
		{NORMAL ":-VERS-ALL:+VERS-TLS1.0", 0},
	};

	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		struct manner m = mirror;
		struct client c = client_new(*state);
		struct bridge *b;
		int r;

		m.priority = rows[i].priority;
		start(&c, 3);
		b = secure(&c, &m, &r);
		assert_int_equal(r == 0, rows[i].version != 0);
		if (r) {
			bridge_close(b);
			turns(&rig, 5);
			continue;
		}
		assert_int_equal(gnutls_protocol_get_version(b->session), rows[i].version);
		go(&c, "");
		request(&c, READ, 0, 1, 0, 512);
		expect_simple(&c, 1, 0);
		secure_close(&c, b);
	}
	assert_int_equal(clients(), 0);
}

static void a_wrong_key_and_an_unknown_user_are_refused_alike(void **state)
{
	static const struct manner wrong[] = {
		{.user = "mirror", .key = KEY_2},
		{.user = "nobody", .key = KEY_1},
		{.user = "mirror ", .key = KEY_1},
		{.user = "mirro", .key = KEY_1},
		{.priority = "NORMAL"}, /* no key at all */
	};
	int result[5];

	for (size_t i = 0; i < 5; i++) {
		struct client c = client_new(*state);
		struct bridge *b;

		start(&c, 3);
		b = secure(&c, &wrong[i], &result[i]);
		assert_true(result[i] < 0);
		bridge_close(b);
		turns(&rig, 5);
		assert_int_equal(clients(), 0);
	}
	assert_int_equal(result[0], result[1]);
}

/* io-libraries.md 0.3: ChaCha20 costs two thirds of the throughput where there is AES */
static void a_client_that_has_both_gets_aes(void **state)
{
	struct manner m = mirror;
	struct bridge *b;
	struct client c = secured(*state, &m, &b, "", STRUCTURED_REPLIES);

#ifdef __x86_64__
	if (__builtin_cpu_supports("aes"))
		assert_int_equal(gnutls_cipher_get(b->session), GNUTLS_CIPHER_AES_128_GCM);
#endif
	secure_close(&c, b);
	m.priority = NORMAL ":-CIPHER-ALL:+CHACHA20-POLY1305";
	c = secured(*state, &m, &b, "",
		    STRUCTURED_REPLIES); /* one that has nothing else may come, too */
	assert_int_equal(gnutls_cipher_get(b->session), GNUTLS_CIPHER_CHACHA20_POLY1305);
	secure_close(&c, b);
}

/* As hosts are to each other: no less than 1.3, and the cipher is chosen as without that. */
static void where_only_1_3_will_do(void **state)
{
	struct manner old = mirror;
	struct client c;
	struct bridge *b;
	int r;

	a_client_that_has_both_gets_aes(state);
	old.priority = NORMAL ":-VERS-ALL:+VERS-TLS1.2";
	c = client_new(*state);
	start(&c, 3);
	b = secure(&c, &old, &r);
	assert_true(r < 0);
	bridge_close(b);
	turns(&rig, 5);
}

/* Without it, who learns a key can read what was recorded before. */
static void there_is_forward_secrecy_or_nothing(void **state)
{
	struct manner m = {.priority = "NORMAL:-KX-ALL:+PSK", .user = "mirror", .key = KEY_1};
	struct client c = client_new(*state);
	struct bridge *b;
	int r;

	start(&c, 3);
	b = secure(&c, &m, &r);
	assert_true(r < 0);
	bridge_close(b);
}

int main(void)
{
#define TEST(name)         cmocka_unit_test_setup_teardown(name, set_up, tear_down)
#define TEST_OFFERED(name) cmocka_unit_test_setup_teardown(name, set_up_offered, tear_down)
	const struct CMUnitTest tests[] = {
		TEST(required_tls_comes_before_all_else),
		TEST(required_tls_ends_who_names_an_export),
		TEST(tls_needs_fixed_newstyle),
		TEST_OFFERED(offered_tls_is_a_choice),
		TEST(tls_is_begun_once),
		TEST_OFFERED(tls_forgets_what_was_said_before),
		TEST_OFFERED(contexts_do_not_outlive_starttls),
		TEST_OFFERED(plain_text_behind_starttls_ends_it),
		TEST_OFFERED(starttls_waits_for_earlier_answers),
		TEST(what_is_no_tls_ends_it),
		cmocka_unit_test_setup_teardown(the_handshake_of_tls_has_to_end_in_time,
						set_up_hasty, tear_down),
		TEST(a_client_may_vanish_in_the_midst_of_it),
		TEST(the_server_may_stop_in_the_midst_of_it),
		TEST(versions_before_1_2_are_refused),
		TEST(a_wrong_key_and_an_unknown_user_are_refused_alike),
		TEST(a_client_that_has_both_gets_aes),
		cmocka_unit_test_setup_teardown(where_only_1_3_will_do, set_up_1_3, tear_down),
		TEST(there_is_forward_secrecy_or_nothing),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
