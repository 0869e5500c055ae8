/* SPDX-License-Identifier: BSD-3-Clause */
/* Whom an NBD device is told to believe: what is not said for sure is refused before connecting. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "blockmirror/dev/nbd.h"

static char good[64], authority[96], bare[96];

static int set_up(void **state)
{
	(void)state;
	strcpy(good, "/tmp/dev_nbd_tls_test.XXXXXX");
	if (!mkdtemp(good))
		return -1;
	snprintf(authority, sizeof(authority), "%s/ca-cert.pem", good);
	snprintf(bare, sizeof(bare), "%s/bare", good);
	close(open(authority, O_CREAT | O_WRONLY, 0600));
	return mkdir(bare, 0700);
}

static int tear_down(void **state)
{
	(void)state;
	unlink(authority);
	return rmdir(bare) | rmdir(good);
}

/* %s in format is the folder that has an authority in it. */
static void expect(const char *format, enum bm_code code, const char *told)
{
	struct bm_error error = {0};
	char uri[300];
	int r;

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
	snprintf(uri, sizeof(uri), format, good, good);
#pragma GCC diagnostic pop
	r = bm_nbd_check_tls(uri, &error);
	if (r == 0 ? code != BM_OK : error.code != code || !strstr(error.text, told))
		fail_msg("%s: %s", uri, r ? error.text : "was accepted");
}

static void what_is_said_clearly_is_accepted(void **state)
{
	(void)state;
	expect("nbds://host/?tls-certificates=%s", BM_OK, "");
	expect("nbds://host:1/a%%3Bb%%23?tls-certificates=%s&x=1", BM_OK, "");
	expect("nbds+unix:///?socket=/s&tls-certificates=%s", BM_OK, "");
	expect("nbds+unix:///?socket=/s&tls-certificates=%%2F%s", BM_OK, "");
	expect("nbds://me@host/?tls-psk-file=/keys", BM_OK, "");
	expect("nbd://host/x", BM_OK, "");
	expect("nbd+unix:///?socket=/tls-certificates", BM_OK, "");
}

static void nobody_is_not_everybody(void **state)
{
	(void)state;
	expect("nbds://host/", BM_E_URI, "whom to trust");
	expect("nbds+unix:///?socket=/s", BM_E_URI, "whom to trust");
	expect("nbds://host/?tls-certificates=", BM_E_URI, "whom to trust");
	expect("nbds://host/?tls-psk-file=", BM_E_URI, "whom to trust");
	expect("nbds://host/?xtls-certificates=%s", BM_E_URI, "whom to trust");
	expect("nbds://host/tls-certificates=%s", BM_E_URI, "whom to trust");
}

/* libnbd would take the system's authorities, and believe everybody (CVE-2024-7383). */
static void a_folder_without_an_authority_is_refused(void **state)
{
	(void)state;
	expect("nbds://host/?tls-certificates=%s/bare", BM_E_NOT_FOUND, "ca-cert.pem");
	expect("nbds://host/?tls-certificates=%s/none", BM_E_NOT_FOUND, "ca-cert.pem");
	expect("nbds://host/?tls-certificates=%s/ca-cert.pem", BM_E_NOT_FOUND, "ca-cert.pem");
}

/* In each of these libnbd sees no folder, or another one, where we would see a good one. */
static void what_libnbd_reads_otherwise_is_refused(void **state)
{
	(void)state;
	expect("nbds://host/#?tls-certificates=%s", BM_E_URI, "%23");
	expect("nbds://host/?a=1;tls-certificates=%s&b=2", BM_E_URI, "%3B");
	expect("nbds://host/?tls-certificates=%s&tls-certificates=%s/bare", BM_E_URI, "twice");
	expect("nbds://host/?tls-certificates=%s&tls%%2Dcertificates=%s/bare", BM_E_URI, "escaped");
}

/* Who names keys wants TLS, and would not have it. */
static void plain_uris_have_nobody_to_trust(void **state)
{
	(void)state;
	expect("nbd://host/?tls-certificates=%s", BM_E_URI, "nbds");
	expect("nbd+unix:///?socket=/s&tls-psk-file=/keys", BM_E_URI, "nbds");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_is_said_clearly_is_accepted),
		cmocka_unit_test(nobody_is_not_everybody),
		cmocka_unit_test(a_folder_without_an_authority_is_refused),
		cmocka_unit_test(what_libnbd_reads_otherwise_is_refused),
		cmocka_unit_test(plain_uris_have_nobody_to_trust),
	};

	return cmocka_run_group_tests(tests, set_up, tear_down);
}
