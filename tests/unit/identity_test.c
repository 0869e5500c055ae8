/* SPDX-License-Identifier: BSD-3-Clause */
/* Who is who by a certificate, and what is wrong with one, in words. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <gnutls/x509.h>
#include <stdlib.h>
#include <string.h>

#include "blockmirror/base/certificate.h"
#include "blockmirror/base/identity.h"

static void assert_host(const char *written, const char *expected)
{
	char *name = bm_identity_of_host(written);

	if (expected)
		assert_string_equal(name, expected);
	else
		assert_null(name);
	free(name);
}

static void names_of_hosts_as_people_write_them(void **state)
{
	(void)state;
	assert_host("b.example", "dns:b.example");
	assert_host("dns:b.example", "dns:b.example");
	assert_host("10.0.0.1", "ip:10.0.0.1");
	assert_host("ip:2001:DB8:0::1", "ip:2001:db8::1");
	assert_host("2001:db8::1", "ip:2001:db8::1");
	assert_host("uri:spiffe://x/b", "uri:spiffe://x/b");
	assert_host("dn:CN=b,O=An Organisation", "dn:CN=b,O=An Organisation");
	assert_host("", NULL);
	assert_host("dns:", NULL);
	assert_host("ip:b.example", NULL);
	assert_host("CN=b", NULL);   /* of a DN it is not said that it is one */
	assert_host("b:7700", NULL); /* an address with a port */
	assert_host("other:b", NULL);
}

static const char *const named[] = {"dns:b.example", "dns:*.wild.example", "ip:10.0.0.1", NULL};
static const struct bm_identity holder = {.dn = "CN=b,O=X", .names = named};
static const struct bm_identity user = {.psk = "b"};

static void a_name_is_all_or_nothing(void **state)
{
	(void)state;
	assert_true(bm_identity_is(&holder, "dns:b.example"));
	assert_true(bm_identity_is(&holder, "dns:B.Example"));
	assert_true(bm_identity_is(&holder, "ip:10.0.0.1"));
	assert_true(bm_identity_is(&holder, "dn:CN=b,O=X"));
	assert_false(bm_identity_is(&holder, "dn:CN=b"));
	assert_false(bm_identity_is(&holder, "dns:b"));
	assert_false(bm_identity_is(&holder, "dns:b.example.org"));
	assert_false(bm_identity_is(&holder, "dns:any.wild.example")); /* nobody in particular */
	assert_false(bm_identity_is(&holder, "dns:10.0.0.1"));
	assert_false(bm_identity_is(&holder, "ip:10.0.0.10"));
	assert_false(bm_identity_is(&holder, "psk:b"));
	assert_true(bm_identity_is(&user, "psk:b"));
	assert_false(bm_identity_is(&user, "psk:bb"));
	assert_false(bm_identity_is(&user, "dns:b"));
	assert_false(bm_identity_is(&user, "dn:b"));
}

static void all_that_was_proven_is_told(void **state)
{
	char text[100], few[12];

	(void)state;
	assert_string_equal(bm_identity_tell(&holder, text, sizeof(text)),
			    "dn:CN=b,O=X, dns:b.example, dns:*.wild.example, ip:10.0.0.1");
	assert_string_equal(bm_identity_tell(&user, text, sizeof(text)), "psk:b");
	assert_string_equal(bm_identity_tell(&(struct bm_identity){0}, text, sizeof(text)),
			    "nobody in particular");
	assert_string_equal(bm_identity_tell(&holder, few, sizeof(few)), "dn:CN=b,O=X");
}

static void what_is_wrong_is_said_with_both_times(void **state)
{
	/* 2026-01-01 00:00:00 to 2026-12-31 23:59:59 */
	const struct bm_validity year = {1767225600, 1798761599};
	char text[BM_CERTIFICATE_TEXT];

	(void)state;
	assert_string_equal(
		bm_certificate_words(GNUTLS_CERT_INVALID | GNUTLS_CERT_NOT_ACTIVATED, &year,
				     year.from - 1, text),
		"its certificate is not valid before 2026-01-01 00:00:00 UTC, and the clock here "
		"says 2025-12-31 23:59:59 UTC: a clock is wrong, or another certificate is wanted");
	assert_string_equal(
		bm_certificate_words(GNUTLS_CERT_INVALID | GNUTLS_CERT_EXPIRED, &year,
				     year.until + 1, text),
		"its certificate has expired at 2026-12-31 23:59:59 UTC, and the clock here says "
		"2027-01-01 00:00:00 UTC: a clock is wrong, or another certificate is wanted");
	bm_certificate_words(GNUTLS_CERT_INVALID | GNUTLS_CERT_EXPIRED, &year, year.until, text);
	assert_non_null(strstr(text, "of the authority that signed its own is not valid at"));
}

/* One certificate may have several faults: whose it is comes before when it is good. */
static void the_worst_is_told_first(void **state)
{
	static const struct {
		unsigned status;
		const char *words;
		gnutls_alert_description_t alert;
	} rows[] = {
		{GNUTLS_CERT_REVOKED | GNUTLS_CERT_EXPIRED, "was revoked",
		 GNUTLS_A_CERTIFICATE_REVOKED},
		{GNUTLS_CERT_SIGNER_NOT_FOUND | GNUTLS_CERT_EXPIRED, "not signed by",
		 GNUTLS_A_UNKNOWN_CA},
		{GNUTLS_CERT_EXPIRED | GNUTLS_CERT_PURPOSE_MISMATCH, "is not valid at",
		 GNUTLS_A_CERTIFICATE_EXPIRED},
		{GNUTLS_CERT_NOT_ACTIVATED, "is not valid at", GNUTLS_A_CERTIFICATE_EXPIRED},
		{GNUTLS_CERT_PURPOSE_MISMATCH, "another purpose", GNUTLS_A_UNSUPPORTED_CERTIFICATE},
		{GNUTLS_CERT_SIGNATURE_FAILURE, "signature", GNUTLS_A_BAD_CERTIFICATE},
	};
	const struct bm_validity always = {0, INT32_MAX};
	char text[BM_CERTIFICATE_TEXT];

	(void)state;
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		unsigned status = rows[i].status | GNUTLS_CERT_INVALID;

		bm_certificate_words(status, &always, 1, text);
		assert_non_null(strstr(text, rows[i].words));
		assert_int_equal(bm_certificate_alert(status), rows[i].alert);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(names_of_hosts_as_people_write_them),
		cmocka_unit_test(a_name_is_all_or_nothing),
		cmocka_unit_test(all_that_was_proven_is_told),
		cmocka_unit_test(what_is_wrong_is_said_with_both_times),
		cmocka_unit_test(the_worst_is_told_first),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
