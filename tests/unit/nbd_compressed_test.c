/* SPDX-License-Identifier: BSD-3-Clause */
/* Compressed writes (docs/nbd.md): who may send them, what they do, and what is refused. */
#include "tests/unit/nbd_tls_rig.h"

#include <sys/stat.h>
#include <zstd.h>

enum { COMPRESSED = 1 << 15, HEAD = 4, DATA_SIZE = 256 << 10, LONGEST = MIB };
#define CONTEXT "blockmirror:zstd"

static struct rig rig;
static char folder[64], keys[96];
static const struct manner mirror = {.user = "mirror", .key = KEY_1};
static uint8_t data[2 * MIB], frame[2 * MIB], back[2 * MIB];

static int set_up(void **state)
{
	const struct bm_tls_options tls = {.psk = keys};

	strcpy(folder, "/tmp/nbd_compressed.XXXXXX");
	if (!mkdtemp(folder))
		return -1;
	snprintf(keys, sizeof(keys), "%s/keys", folder);
	write_text(folder, "keys", "mirror:" KEY_1 "\n");
	chmod(keys, 0600);
	rig_open(&rig, NULL);
	for (size_t i = 0; i < sizeof(data); i++)
		data[i] = (uint8_t)(i / 100 * 7);
	*state = &rig;
	return nbd_server_set_tls(rig.server, NBD_TLS_ON, &tls, NULL);
}

static int tear_down(void **state)
{
	(void)state;
	rig_close(&rig);
	remove_folder(folder);
	return 0;
}

/* SET_ or LIST_META_CONTEXT of one query, or none. Whether the context was in the answer. */
static bool ask_by(struct client *c, uint32_t number, const char *export, const char *query)
{
	uint8_t bytes[8192];
	uint32_t type, length;
	bool selected = false;

	put(c, "IHAVEOPT", 8);
	put32(c, number);
	put32(c, (uint32_t)(4 + strlen(export) + 4 + (query ? 4 + strlen(query) : 0)));
	put32(c, (uint32_t)strlen(export));
	put(c, export, strlen(export));
	put32(c, query ? 1 : 0);
	if (query) {
		put32(c, (uint32_t)strlen(query));
		put(c, query, strlen(query));
	}
	while ((type = option_reply(c, number, bytes, &length)) == REP_META)
		if (length == 4 + strlen(CONTEXT) && !memcmp(bytes + 4, CONTEXT, strlen(CONTEXT))) {
			assert_false(selected);
			selected = true;
		}
	assert_int_equal(type, ACK);
	return selected;
}

static bool ask(struct client *c, const char *export)
{
	return ask_by(c, SET_META, export, CONTEXT);
}

static struct client ready(struct bridge **b, enum mode mode)
{
	struct client c = new_secure_client(&rig, &mirror, b);

	choose_mode(&c, mode);
	assert_true(ask(&c, ""));
	go(&c, "");
	return c;
}

/* A payload of length bytes of data: its length. */
static uint32_t squeeze(size_t length)
{
	const uint32_t head = htobe32((uint32_t)length);

	memcpy(frame, &head, HEAD);
	return (uint32_t)(HEAD +
			  ZSTD_compress(frame + HEAD, sizeof(frame) - HEAD, data, length, 1));
}

static void send_frame(struct client *c, uint64_t cookie, uint64_t offset, uint32_t length)
{
	request(c, WRITE, COMPRESSED, cookie, offset, length);
	put(c, frame, length);
}

/* What the image holds. */
static void expect_image(struct client *c, uint64_t offset, const uint8_t *bytes, uint32_t length)
{
	struct chunk chunk;

	request(c, READ, 0, 99, offset, length);
	for (uint32_t done = 0; done < length; done += chunk.length) {
		chunk = get_chunk_header(c);
		assert_int_equal(chunk.type, DATA);
		chunk.length -= 8;
		assert_in_range(chunk.length, 1, length - done);
		assert_int_equal(get64(c), offset + done);
		get(c, back + done, chunk.length);
	}
	assert_memory_equal(back, bytes, length);
}

static void it_is_what_was_compressed(void **state)
{
	static const size_t lengths[] = {1, 512, 4096, 100000, DATA_SIZE, LONGEST};

	(void)state;
	for (enum mode mode = STRUCTURED_REPLIES; mode < MODES; mode++) {
		struct bridge *b;
		struct client c = ready(&b, mode);

		for (size_t i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++) {
			send_frame(&c, i, 4096 * i, squeeze(lengths[i]));
			expect_simple(&c, i, 0);
			expect_image(&c, 4096 * i, data, (uint32_t)lengths[i]);
		}
		assert_true(last_client(&rig).bytes_written >= LONGEST);
		secure_close(&c, b);
	}
}

/* Many at once, with plain ones between them, in bytes that come as they come. */
static void they_mix_with_others(void **state)
{
	struct bridge *b;
	struct client c = ready(&b, STRUCTURED_REPLIES);
	uint32_t length = squeeze(DATA_SIZE);

	(void)state;
	for (unsigned i = 0; i < 60; i += 2) {
		send_frame(&c, i, (uint64_t)i * DATA_SIZE, length);
		request(&c, WRITE, 0, i + 1, (uint64_t)(i + 1) * DATA_SIZE, 4096);
		put(&c, data, 4096);
	}
	for (unsigned i = 0; i < 60; i++) {
		assert_int_equal(get32(&c), 0x67446698);
		assert_int_equal(get32(&c), 0);
		assert_true(get64(&c) < 60);
	}
	for (unsigned i = 0; i < 60; i += 2) {
		expect_image(&c, (uint64_t)i * DATA_SIZE, data, DATA_SIZE);
		expect_image(&c, (uint64_t)(i + 1) * DATA_SIZE, data, 4096);
	}
	secure_close(&c, b);
}

/* Each is answered, changes nothing, and what comes next is understood. */
static void what_is_damaged_is_refused(void **state)
{
	static const uint8_t zeros[DATA_SIZE];
	struct bridge *b;
	struct client c = ready(&b, STRUCTURED_REPLIES);
	uint32_t length = squeeze(DATA_SIZE), longer;

	(void)state;
	frame[HEAD] ^= 1; /* no frame */
	send_frame(&c, 1, 0, length);
	expect_error(&c, 1, EINVAL);
	length = squeeze(DATA_SIZE);
	send_frame(&c, 2, 0, length - 1); /* cut off */
	expect_error(&c, 2, EINVAL);
	/* Two frames that are so much together, and one with a frame to be skipped. */
	length = squeeze(DATA_SIZE / 2);
	memcpy(frame + length, frame + HEAD, length - HEAD);
	memcpy(frame, "\0\4\0\0", HEAD);
	send_frame(&c, 10, 0, 2 * length - HEAD);
	expect_error(&c, 10, EINVAL);
	length = squeeze(DATA_SIZE);
	memcpy(frame + length, "\x50\x2a\x4d\x18\4\0\0\0skip", 12);
	send_frame(&c, 11, 0, length + 12);
	expect_error(&c, 11, EINVAL);
	length = squeeze(DATA_SIZE);
	memcpy(frame, "\0\4\0\1", HEAD); /* one byte more than there is */
	send_frame(&c, 3, 0, length);
	expect_error(&c, 3, EINVAL);
	memcpy(frame, "\0\3\377\377", HEAD); /* one less */
	send_frame(&c, 4, 0, length);
	expect_error(&c, 4, EINVAL);
	memcpy(frame, "\0\0\0\0", HEAD);
	send_frame(&c, 5, 0, length);
	expect_error(&c, 5, EINVAL);
	send_frame(&c, 6, 0, HEAD); /* nothing in it */
	expect_error(&c, 6, EINVAL);
	expect_image(&c, 0, zeros, DATA_SIZE);
	longer = squeeze(LONGEST + 1);
	send_frame(&c, 7, 0, longer);
	expect_error(&c, 7, EINVAL);
	memset(frame, 0, sizeof(frame));
	request(&c, WRITE, COMPRESSED, 8, 0, LONGEST + 1); /* a payload that is too long */
	put(&c, frame, LONGEST + 1);
	expect_error(&c, 8, EINVAL);
	expect_image(&c, 0, zeros, DATA_SIZE);
	send_frame(&c, 9, 0, squeeze(DATA_SIZE));
	expect_simple(&c, 9, 0);
	expect_image(&c, 0, data, DATA_SIZE);
	secure_close(&c, b);
}

/* The bounds are those of the data, which the header does not tell. */
static void it_ends_where_the_export_ends(void **state)
{
	struct bridge *b;
	struct client c = ready(&b, STRUCTURED_REPLIES);
	uint32_t length = squeeze(DATA_SIZE);

	(void)state;
	assert_true(length < DATA_SIZE - 4096);
	send_frame(&c, 1, DISK - DATA_SIZE + 4096, length);
	expect_error(&c, 1, ENOSPC);
	send_frame(&c, 2, DISK - DATA_SIZE, length);
	expect_simple(&c, 2, 0);
	expect_image(&c, DISK - DATA_SIZE, data, DATA_SIZE);
	secure_close(&c, b);
}

static void refused_without(struct client *c)
{
	uint32_t length = squeeze(4096);

	send_frame(c, 1, 0, length);
	expect_error(c, 1, EINVAL);
}

/* Without TLS a connection may be passed on; who may not write has nothing to compress. */
static void only_who_has_agreed_on_it_may(void **state)
{
	struct bridge *b;
	struct client c = client_new(&rig);

	(void)state;
	start(&c, 3);
	choose_mode(&c, STRUCTURED_REPLIES);
	assert_false(ask(&c, ""));
	go(&c, "");
	refused_without(&c);
	client_close(&c);

	c = new_secure_client(&rig, &mirror, &b);
	choose_mode(&c, STRUCTURED_REPLIES);
	go(&c, "");
	refused_without(&c);
	secure_close(&c, b);
	c = new_secure_client(&rig, &mirror, &b);
	choose_mode(&c, STRUCTURED_REPLIES);
	assert_false(ask(&c, "small")); /* which is read-only */
	secure_close(&c, b);
	/* What was selected for another export is void. */
	c = new_secure_client(&rig, &mirror, &b);
	choose_mode(&c, STRUCTURED_REPLIES);
	assert_true(ask(&c, "slow"));
	go(&c, "");
	refused_without(&c);
	secure_close(&c, b);
}

/* "the server MUST return all the metadata contexts that are available to the client to select" */
static void it_is_listed_for_who_may_select_it(void **state)
{
	struct bridge *b;
	struct client c = new_secure_client(&rig, &mirror, &b);

	(void)state;
	choose_mode(&c, STRUCTURED_REPLIES);
	assert_true(ask_by(&c, LIST_META, "", NULL));
	assert_true(ask_by(&c, LIST_META, "", CONTEXT));
	assert_true(ask_by(&c, LIST_META, "", "blockmirror:"));
	assert_false(ask_by(&c, LIST_META, "", "base:"));
	assert_false(ask_by(&c, LIST_META, "small", NULL)); /* which is read-only */
	assert_false(ask_by(&c, SET_META, "", "blockmirror:"));
	go(&c, "");
	refused_without(&c);
	secure_close(&c, b);
}

/* Before anything is written, and has memory of the connection's pool. */
static void its_memory_is_counted(void **state)
{
	struct nbd_server_usage before, usage;
	struct bridge *b;
	struct client c = new_secure_client(&rig, &mirror, &b);
	ZSTD_DCtx *zstd = ZSTD_createDCtx();

	(void)state;
	nbd_server_get_usage(rig.server, &before);
	choose_mode(&c, STRUCTURED_REPLIES);
	assert_true(ask(&c, ""));
	go(&c, "");
	nbd_server_get_usage(rig.server, &usage);
	ZSTD_decompressDCtx(zstd, back, sizeof(back), frame + HEAD, squeeze(LONGEST) - HEAD);
	assert_true(usage.memory >= before.memory + LONGEST + ZSTD_sizeof_DCtx(zstd));
	ZSTD_freeDCtx(zstd);
	secure_close(&c, b);
}

static void its_flag_is_for_writes(void **state)
{
	struct bridge *b;
	struct client c = ready(&b, STRUCTURED_REPLIES);

	(void)state;
	request(&c, READ, COMPRESSED, 1, 0, 4096);
	expect_error(&c, 1, EINVAL);
	request(&c, ZEROES, COMPRESSED, 2, 0, 4096);
	expect_error(&c, 2, EINVAL);
	secure_close(&c, b);
}

/* A client that goes in the middle of a payload leaves nothing behind. */
static void it_may_be_cut_off(void **state)
{
	struct bridge *b;
	struct client c = ready(&b, STRUCTURED_REPLIES);
	uint32_t length = squeeze(DATA_SIZE);

	(void)state;
	request(&c, WRITE, COMPRESSED, 1, 0, length);
	put(&c, frame, length / 2);
	turns(&rig, 20);
	secure_close(&c, b);
	assert_int_equal(nbd_server_clients(rig.server, NULL, 0), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(it_is_what_was_compressed, set_up, tear_down),
		cmocka_unit_test_setup_teardown(they_mix_with_others, set_up, tear_down),
		cmocka_unit_test_setup_teardown(what_is_damaged_is_refused, set_up, tear_down),
		cmocka_unit_test_setup_teardown(it_ends_where_the_export_ends, set_up, tear_down),
		cmocka_unit_test_setup_teardown(only_who_has_agreed_on_it_may, set_up, tear_down),
		cmocka_unit_test_setup_teardown(it_is_listed_for_who_may_select_it, set_up,
						tear_down),
		cmocka_unit_test_setup_teardown(its_memory_is_counted, set_up, tear_down),
		cmocka_unit_test_setup_teardown(its_flag_is_for_writes, set_up, tear_down),
		cmocka_unit_test_setup_teardown(it_may_be_cut_off, set_up, tear_down),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
