/* SPDX-License-Identifier: BSD-3-Clause */
/* Who gets in by TLS, and what he may open then: certificates, keys, the ACL, and their changes. */
#include "tests/unit/nbd_tls_rig.h"

#include <sys/stat.h>

#include "nbd-server/acl.h"

static struct rig rig;
static char folder[64], keys[96], rules[96];
static struct authority authority, stranger;
static struct nbd_acl *acl; /* NULL: everybody may do everything */
static const struct manner mirror = {.user = "mirror", .key = KEY_1};

static const char *const versions[] = {NORMAL, NORMAL ":-VERS-ALL:+VERS-TLS1.2"};

static enum nbd_access access_of(void *arg, const struct bm_identity *who, const char *export)
{
	(void)arg;
	return acl ? nbd_acl_access(acl, who, export) : NBD_ACCESS_WRITE;
}

/* As an administrator does it: at every moment there is the old file or the new one, whole. */
static void replace_text(const char *name, const char *text)
{
	char from[100], to[100];

	write_text(folder, "new", text);
	snprintf(from, sizeof(from), "%s/new", folder);
	snprintf(to, sizeof(to), "%s/%s", folder, name);
	assert_int_equal(rename(from, to), 0);
}

static gnutls_x509_crt_t make(const struct authority *a, const struct wanted *wanted)
{
	return issue(a, folder, wanted);
}

static void make_files(void)
{
	gnutls_x509_crt_t server;

	strcpy(folder, "/tmp/nbd_access_test.XXXXXX");
	assert_non_null(mkdtemp(folder));
	snprintf(keys, sizeof(keys), "%s/keys", folder);
	snprintf(rules, sizeof(rules), "%s/acl", folder);
	write_text(folder, "keys", "mirror:" KEY_1 "\nother:" KEY_2 "\n");
	chmod(keys, 0600);
	authority_new(&authority, "CN=authority");
	authority_new(&stranger, "CN=authority"); /* of the same name */
	write_certificate(folder, "ca-cert.pem", authority.certificate);
	server = make(&authority, &(struct wanted){.name = "server", .dn = "CN=server"});
	gnutls_x509_crt_deinit(server);
}

static int set_up_with(void **state, enum nbd_tls_mode mode, const struct bm_tls_options *tls)
{
	const struct nbd_server_options options = {.access = access_of};

	make_files();
	acl = NULL;
	rig_open(&rig, &options);
	*state = &rig;
	return nbd_server_set_tls(rig.server, mode, tls, NULL);
}

static int set_up(void **state)
{
	const struct bm_tls_options tls = {.psk = keys};

	return set_up_with(state, NBD_TLS_REQUIRE, &tls);
}

static int set_up_offered(void **state)
{
	const struct bm_tls_options tls = {.psk = keys};

	return set_up_with(state, NBD_TLS_ON, &tls);
}

static int set_up_x509(void **state)
{
	const struct bm_tls_options tls = {.certificates = folder};

	return set_up_with(state, NBD_TLS_REQUIRE, &tls);
}

static int set_up_mutual(void **state)
{
	const struct bm_tls_options tls = {
		.certificates = folder, .psk = keys, .verify_peer = true};

	return set_up_with(state, NBD_TLS_REQUIRE, &tls);
}

static int tear_down(void **state)
{
	(void)state;
	rig_close(&rig);
	nbd_acl_free(acl);
	authority_free(&authority);
	authority_free(&stranger);
	remove_folder(folder);
	return 0;
}

static void use_acl(const char *text)
{
	replace_text("acl", text);
	assert_int_equal(nbd_acl_open(rules, &acl, NULL), 0);
}

static unsigned clients(void)
{
	return nbd_server_clients(rig.server, NULL, 0);
}

/*
 * Whether the server lets him in; if so, his identity is expected. Under TLS 1.3 a client hears of
 * what is wrong with his certificate only after his own handshake.
 */
static bool gets_in(const struct manner *manner, const char *identity)
{
	struct client c = client_new(&rig);
	struct bridge *b;
	bool in;
	int r;

	start(&c, 3);
	b = secure(&c, manner, &r);
	turns(&rig, 5);
	in = clients() == 1;
	if (in) {
		assert_int_equal(r, 0);
		assert_string_equal(last_client(&rig).identity, identity);
		go(&c, "");
		request(&c, READ, 0, 1, 0, 512);
		expect_simple(&c, 1, 0);
	}
	if (r)
		bridge_close(b);
	else
		secure_close(&c, b);
	turns(&rig, 5);
	assert_int_equal(clients(), 0);
	return in;
}

static bool comes_in_as(const char *name, const char *identity)
{
	struct manner manner = {.folder = folder, .name = name};
	bool in[2];

	for (int i = 0; i < 2; i++) {
		manner.priority = versions[i];
		in[i] = gets_in(&manner, identity);
	}
	assert_int_equal(in[0], in[1]);
	return in[0];
}

/* Certificates */

static void a_server_certificate_asks_nothing_of_clients(void **state)
{
	gnutls_x509_crt_t crt = make(&stranger, &(struct wanted){.name = "any", .dn = "CN=any"});

	(void)state;
	assert_true(comes_in_as(NULL, ""));
	assert_true(comes_in_as("any", "")); /* it was not asked for, and proves nothing */
	gnutls_x509_crt_deinit(crt);
}

static void clients_need_a_certificate_of_the_authority(void **state)
{
	const struct wanted rows[] = {
		{.name = "good", .dn = "CN=host a,O=us"},
		{.name = "client", .dn = "CN=c", .purpose = GNUTLS_KP_TLS_WWW_CLIENT},
		{.name = "expired", .dn = "CN=host a,O=us", .days = -1},
		{.name = "purpose", .dn = "CN=c", .purpose = GNUTLS_KP_TLS_WWW_SERVER},
		{.name = "stranger", .dn = "CN=host a,O=us"},
	};
	const char *const identity[] = {"dn:CN=host a,O=us", "dn:CN=c", NULL, NULL, NULL};

	(void)state;
	assert_false(comes_in_as(NULL, ""));
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		gnutls_x509_crt_t crt = make(i == 4 ? &stranger : &authority, &rows[i]);

		assert_int_equal(comes_in_as(rows[i].name, identity[i]), identity[i] != NULL);
		gnutls_x509_crt_deinit(crt);
	}
	assert_true(gets_in(&mirror, "psk:mirror")); /* who has a key needs none */
}

/* The list that comes later is read without a word. */
static void what_was_revoked_is_refused(void **state)
{
	gnutls_x509_crt_t a = make(&authority, &(struct wanted){.name = "a", .dn = "CN=a"});
	gnutls_x509_crt_t b = make(&authority, &(struct wanted){.name = "b", .dn = "CN=b"});

	(void)state;
	assert_true(comes_in_as("a", "dn:CN=a"));
	write_revoked(&authority, folder, a);
	assert_false(comes_in_as("a", ""));
	assert_true(comes_in_as("b", "dn:CN=b"));
	gnutls_x509_crt_deinit(a);
	gnutls_x509_crt_deinit(b);
}

/* Mistakes */

static void wrong_files_are_told(void **state)
{
	static const struct {
		const char *name, *text; /* text NULL: it is not there */
		const char *told;
	} rows[] = {
		{"ca-cert.pem", NULL, "ca-cert.pem"},
		{"ca-cert.pem", "no certificate\n", "ca-cert.pem"},
		{"ca-crl.pem", "no list\n", "ca-crl.pem"},
		{"server-cert.pem", NULL, "server-cert.pem"},
		{"server-key.pem", NULL, "server-key.pem"},
		{"server-key.pem", "no key\n", "server-key.pem"},
		{"keys", NULL, "keys"},
		{"keys", "", "no keys"},
		{"keys", "# a word\n\nmirror\n", "line 3"},
		{"keys", ":" KEY_1 "\n", "line 1"},
		{"keys", "mirror:abcd\n", "digits"},
		{"keys", "mirror:" KEY_1 "0\n", "digits"},
		{"keys", "mirror:" KEY_1 "zz\n", "hexadecimal"},
		{"keys", "mirror:" KEY_1 "\nmirror:" KEY_2 "\n", "line 2"},
		{"keys", "mirror:" KEY_1 KEY_1 "00\n", "digits"},
	};
	struct bm_error error;

	(void)state;
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		char kept[100], path[100];

		snprintf(path, sizeof(path), "%s/%s", folder, rows[i].name);
		snprintf(kept, sizeof(kept), "%s/kept", folder);
		assert_true(!rename(path, kept) || !strcmp(rows[i].name, "ca-crl.pem"));
		if (rows[i].text)
			replace_text(rows[i].name, rows[i].text);
		assert_true(nbd_server_reload_tls(rig.server, &error) < 0);
		assert_non_null(strstr(error.text, rows[i].told));
		assert_null(strstr(error.text, "0001020304")); /* no part of a key */
		unlink(path);
		rename(kept, path);
		assert_int_equal(nbd_server_reload_tls(rig.server, &error), 0);
	}
}

static void a_key_of_another_certificate_is_told(void **state)
{
	gnutls_x509_crt_t crt = make(&authority, &(struct wanted){.name = "b", .dn = "CN=b"});
	struct bm_error error;
	char from[100], to[100];

	(void)state;
	snprintf(from, sizeof(from), "%s/b-key.pem", folder);
	snprintf(to, sizeof(to), "%s/server-key.pem", folder);
	assert_int_equal(rename(from, to), 0);
	assert_true(nbd_server_reload_tls(rig.server, &error) < 0);
	assert_non_null(strstr(error.text, "server-key.pem"));
	assert_true(comes_in_as(NULL, "")); /* by what was there before */
	gnutls_x509_crt_deinit(crt);
}

static void tls_that_proves_nothing_is_refused(void **state)
{
	const struct bm_tls_options wrong[] = {
		{0},
		{.psk = keys, .verify_peer = true},
		{.psk = keys, .priority = "NORMAL:+NONSENSE"},
		{.certificates = "/nowhere"},
	};
	struct nbd_server *server;
	struct bm_error error;

	(void)state;
	for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
		server = nbd_server_new(rig.loop, NULL);
		assert_true(nbd_server_set_tls(server, NBD_TLS_REQUIRE, &wrong[i], &error) < 0);
		assert_true(strlen(error.text) > 10);
		nbd_server_free(server);
	}
}

/* Changes */

static void keys_are_changed_without_a_restart(void **state)
{
	const struct manner fresh = {.user = "mirror", .key = KEY_2};
	struct bridge *b;
	struct client c = secured(*state, &mirror, &b, "", SIMPLE_REPLIES);

	replace_text("keys", "mirror:" KEY_2 "\n");
	request(&c, READ, 0, 1, 0, 512); /* who is there stays */
	expect_simple(&c, 1, 0);
	secure_close(&c, b);
	turns(&rig, 5);
	assert_true(gets_in(&fresh, "psk:mirror"));
	assert_false(gets_in(&mirror, ""));
	replace_text("keys", "half a fi"); /* what is not right does not replace what is */
	assert_true(gets_in(&fresh, "psk:mirror"));
	replace_text("keys", "mirror:" KEY_1 "\n");
	assert_true(gets_in(&mirror, "psk:mirror"));
	assert_false(gets_in(&fresh, ""));
}

static size_t shown_certificate(uint8_t *bytes)
{
	const struct manner manner = {.folder = folder};
	const gnutls_datum_t *chain;
	unsigned count = 0;
	struct bridge *b;
	struct client c = new_secure_client(&rig, &manner, &b);
	size_t size;

	chain = gnutls_certificate_get_peers(b->session, &count);
	assert_int_equal(count, 1);
	assert_true(chain->size < 4096);
	size = chain->size;
	memcpy(bytes, chain->data, size);
	secure_close(&c, b);
	return size;
}

static void the_certificate_is_changed_without_a_restart(void **state)
{
	uint8_t before[4096], after[4096];
	size_t size = shown_certificate(before);
	gnutls_x509_crt_t crt;

	(void)state;
	assert_int_equal(shown_certificate(after), size);
	assert_memory_equal(before, after, size);
	crt = make(&authority, &(struct wanted){.name = "server", .dn = "CN=renewed server"});
	assert_int_not_equal(shown_certificate(after), size);
	gnutls_x509_crt_deinit(crt);
}

/* The ACL */

static void wrong_lines_are_told(void **state)
{
	static const struct {
		const char *text, *told;
	} rows[] = {
		{"anyone\n", "line 1"},
		{"anyone * read-write more\n", "line 1"},
		{"# x\n\nanyone * write\n", "line 3"},
		{"psk: * read-only\n", "who is"},
		{"nobody * read-only\n", "who is"},
		{"everyone:x * read-only\n", "who is"},
		{"p:x * read-only\n", "who is"},
		{"ip:1.2.3 * read-only\n", "not an IP address"},
		{"psk:\"a * read-only\n", "quote"},
		{"psk:a * read-only\npsk:b *\n", "line 2"},
	};
	struct nbd_acl *made;
	struct bm_error error;

	(void)state;
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		replace_text("acl", rows[i].text);
		assert_true(nbd_acl_open(rules, &made, &error) < 0);
		assert_int_equal(error.code, BM_E_USAGE);
		assert_non_null(strstr(error.text, rows[i].told));
	}
	assert_true(nbd_acl_open("/nowhere", &made, &error) < 0);
	assert_int_equal(error.code, BM_E_NOT_FOUND);
}

static void lines_give_and_nothing_else_does(void **state)
{
	static const char *const some[] = {"dns:Host.Example", "ip:10.0.0.1", "uri:urn:x:Y", NULL};
	static const char *const none[] = {NULL};
	static const struct bm_identity nobody = {.names = none},
					key = {.psk = "a b", .names = none},
					host = {.dn = "CN=h,O=\"x\"", .names = some};
	static const struct {
		const char *line;
		const struct bm_identity *who;
		const char *export;
		enum nbd_access access;
	} rows[] = {
		{"", &key, "", NBD_ACCESS_NONE},
		{"anyone * read-only", &nobody, "x", NBD_ACCESS_READ},
		{"anyone \"\" read-only", &nobody, "", NBD_ACCESS_READ},
		{"anyone \"\" read-only", &nobody, "x", NBD_ACCESS_NONE},
		{"anyone \"*\" read-only", &nobody, "x", NBD_ACCESS_NONE},
		{"anyone \"*\" read-only", &nobody, "*", NBD_ACCESS_READ},
		{"psk:\"a b\" x read-write # y", &key, "x", NBD_ACCESS_WRITE},
		{"psk:\"a b\" x read-write", &key, "X", NBD_ACCESS_NONE},
		{"psk:a x read-write", &key, "x", NBD_ACCESS_NONE},
		{"dn:\"a b\" x read-write", &key, "x", NBD_ACCESS_NONE},
		{"\"dn:CN=h,O=\\\"x\\\"\" x read-write", &host, "x", NBD_ACCESS_WRITE},
		{"dn:CN=h x read-write", &host, "x", NBD_ACCESS_NONE},
		{"dns:host.example x read-only", &host, "x", NBD_ACCESS_READ},
		{"dns:host x read-only", &host, "x", NBD_ACCESS_NONE},
		{"dns:*.example x read-only", &host, "x", NBD_ACCESS_NONE},
		{"ip:10.0.0.1 x read-only", &host, "x", NBD_ACCESS_READ},
		{"uri:urn:x:Y x read-only", &host, "x", NBD_ACCESS_READ},
		{"uri:urn:x:y x read-only", &host, "x", NBD_ACCESS_NONE},
		{"psk:host.example x read-only", &host, "x", NBD_ACCESS_NONE},
		{"anyone * read-only\nip:10.0.0.1 x read-write\nanyone x read-only", &host, "x",
		 NBD_ACCESS_WRITE},
	};

	(void)state;
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		struct nbd_acl *made;

		replace_text("acl", rows[i].line);
		assert_int_equal(nbd_acl_open(rules, &made, NULL), 0);
		assert_int_equal(nbd_acl_access(made, rows[i].who, rows[i].export), rows[i].access);
		nbd_acl_free(made);
	}
}

static uint32_t try_export(struct client *c, uint32_t number, const char *name)
{
	uint8_t data[300];

	option(c, number, data, info_data(data, name));
	return final_reply(c, number);
}

/* How many exports LIST shows. */
static unsigned listed(struct client *c)
{
	uint8_t payload[8192];
	uint32_t length;
	unsigned count = 0;

	option(c, LIST, NULL, 0);
	while (option_reply(c, LIST, payload, &length) == REP_SERVER)
		count++;
	return count;
}

/* What he may not open does not exist for him, whichever way he asks. */
static void what_is_not_given_is_unknown(void **state)
{
	struct bridge *b;
	struct client c;
	unsigned found;
	uint32_t id;

	use_acl("psk:mirror \"\" read-write\npsk:mirror slow read-only\npsk:other * read-only\n");
	c = new_secure_client(*state, &mirror, &b);
	choose_mode(&c, STRUCTURED_REPLIES);
	assert_int_equal(listed(&c), 2);
	assert_int_equal(try_export(&c, INFO, "small"), UNKNOWN);
	assert_int_equal(try_export(&c, GO, "small"), UNKNOWN);
	assert_int_equal(meta(&c, SET_META, "small", "base:allocation", &found, &id), UNKNOWN);
	assert_int_equal(meta(&c, LIST_META, "small", NULL, &found, &id), UNKNOWN);
	assert_int_equal(try_export(&c, INFO, "slow"), ACK);
	option(&c, EXPORT_NAME, "small", 5);
	expect_end(&c);
	secure_close(&c, b);
}

/* A good name asked for first does not lend its rights to the next one. */
static void rights_are_those_of_the_export_that_is_opened(void **state)
{
	struct bridge *b;
	struct client c;

	use_acl("psk:mirror \"\" read-write\npsk:mirror slow read-only\n");
	c = new_secure_client(*state, &mirror, &b);
	assert_int_equal(try_export(&c, INFO, ""), ACK);
	go(&c, "slow");
	request(&c, TRIM, 0, 1, 0, 512);
	expect_simple(&c, 1, EPERM);
	secure_close(&c, b);
	c = new_secure_client(*state, &mirror, &b);
	assert_int_equal(try_export(&c, INFO, "slow"), ACK);
	go(&c, "");
	request(&c, TRIM, 0, 1, 0, 512);
	expect_simple(&c, 1, 0);
	secure_close(&c, b);
}

/* rule 12, 13: refused with EPERM, the data of a WRITE dropped, and the stream stays in step */
static void read_only_is_kept_under_tls(void **state)
{
	use_acl("psk:mirror * read-only\n");
	for (enum mode mode = SIMPLE_REPLIES; mode < MODES; mode++) {
		uint8_t data[300], reply[8192];
		uint32_t length;
		struct bridge *b;
		struct client c = new_secure_client(*state, &mirror, &b);

		option(&c, INFO, data, info_data(data, "slow"));
		assert_int_equal(option_reply(&c, INFO, reply, &length), REP_INFO);
		assert_true(length == 12 && reply[11] & 2); /* READ_ONLY */
		assert_int_equal(final_reply(&c, INFO), ACK);
		choose_mode(&c, mode);
		go(&c, "slow");
		for (unsigned i = 0; i < 3; i++) {
			request(&c, WRITE, i ? FUA : 0, i, 0, 1 + i * MIB);
			payload(&c, 0, 1 + i * MIB);
			expect_error(&c, i, EPERM);
		}
		request(&c, TRIM, 0, 4, 0, 4096);
		expect_error(&c, 4, EPERM);
		request(&c, ZEROES, 0, 5, 0, 4096);
		expect_error(&c, 5, EPERM);
		assert_int_equal(rig.slow.count, 0);
		request(&c, READ, 0, 6, 100, 512);
		turns(&rig, 20);
		slow_release(&rig.slow, false);
		if (mode == SIMPLE_REPLIES)
			expect_simple(&c, 6, 0), expect_data(&c, 100, 512);
		else
			expect_chunk(&c, 6, DATA, 8 + 512);
		secure_close(&c, b);
	}
}

/* "SELECTIVETLS mode": he may open it after STARTTLS, so that is what he is told to do */
static void who_comes_in_the_clear_is_told_of_tls(void **state)
{
	struct client c = client_new(*state);
	struct bridge *b;

	use_acl("anyone small read-only\npsk:mirror * read-write\n");
	start(&c, 3);
	assert_int_equal(listed(&c), 1);
	assert_int_equal(try_export(&c, INFO, "slow"), TLS_REQD);
	assert_int_equal(try_export(&c, GO, "no such export"), TLS_REQD); /* it is not told apart */
	b = secure(&c, &mirror, NULL);
	assert_int_equal(listed(&c), 3);
	assert_int_equal(try_export(&c, GO, "no such export"), UNKNOWN);
	go(&c, "");
	request(&c, TRIM, 0, 1, 0, 512);
	expect_simple(&c, 1, 0);
	secure_close(&c, b);
}

static void the_acl_is_changed_without_a_restart(void **state)
{
	struct bridge *b;
	struct client c;

	use_acl("psk:mirror * read-only\n");
	c = new_secure_client(*state, &mirror, &b);
	assert_int_equal(listed(&c), 3);
	replace_text("acl", "psk:other * read-write\n");
	assert_int_equal(listed(&c), 0);
	assert_int_equal(try_export(&c, GO, ""), UNKNOWN);
	replace_text("acl", "psk:mirror * read-wri"); /* not right: what was given before stays */
	assert_int_equal(try_export(&c, GO, ""), UNKNOWN);
	replace_text("acl", "psk:mirror * read-write\n");
	go(&c, "");
	request(&c, TRIM, 0, 1, 0, 512);
	expect_simple(&c, 1, 0);
	secure_close(&c, b);
}

/* A name that goes on behind a NUL is not the name before it. */
static void names_of_certificates_give_access(void **state)
{
	static const char nul[] = "\x30\x13\x82\x11host.example\0evil";
	static const char whole[] = "\x30\x0e\x82\x0chost.example";
	const struct wanted rows[] = {
		{.name = "a", .dn = "CN=a", .dns = "host.example", .uri = "urn:x"},
		{.name = "b", .dn = "CN=b", .san = whole, .san_length = sizeof(whole) - 1},
		{.name = "c", .dn = "CN=c", .san = nul, .san_length = sizeof(nul) - 1},
		{.name = "d", .dn = "CN=d", .dns = "host.example.evil"},
	};

	use_acl("dns:host.example \"\" read-write\n");
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		const struct manner manner = {.folder = folder, .name = rows[i].name};
		gnutls_x509_crt_t crt = make(&authority, &rows[i]);
		struct bridge *b;
		struct client c = new_secure_client(*state, &manner, &b);

		assert_int_equal(try_export(&c, GO, ""), i < 2 ? ACK : UNKNOWN);
		secure_close(&c, b);
		gnutls_x509_crt_deinit(crt);
	}
}

int main(void)
{
#define TEST(name)         cmocka_unit_test_setup_teardown(name, set_up, tear_down)
#define TEST_OFFERED(name) cmocka_unit_test_setup_teardown(name, set_up_offered, tear_down)
#define TEST_X509(name)    cmocka_unit_test_setup_teardown(name, set_up_x509, tear_down)
#define TEST_MUTUAL(name)  cmocka_unit_test_setup_teardown(name, set_up_mutual, tear_down)
	const struct CMUnitTest tests[] = {
		TEST_X509(a_server_certificate_asks_nothing_of_clients),
		TEST_MUTUAL(clients_need_a_certificate_of_the_authority),
		TEST_MUTUAL(what_was_revoked_is_refused),
		TEST_MUTUAL(wrong_files_are_told),
		TEST_X509(a_key_of_another_certificate_is_told),
		TEST(tls_that_proves_nothing_is_refused),
		TEST(keys_are_changed_without_a_restart),
		TEST_X509(the_certificate_is_changed_without_a_restart),
		TEST(wrong_lines_are_told),
		TEST(lines_give_and_nothing_else_does),
		TEST(what_is_not_given_is_unknown),
		TEST(rights_are_those_of_the_export_that_is_opened),
		TEST(read_only_is_kept_under_tls),
		TEST_OFFERED(who_comes_in_the_clear_is_told_of_tls),
		TEST(the_acl_is_changed_without_a_restart),
		TEST_MUTUAL(names_of_certificates_give_access),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
