/* SPDX-License-Identifier: BSD-3-Clause */
/* The serving side of the control protocol: bytes that are no lines, and clients that go amid them.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "blockmirror/base/rpc.h"

static struct bm_loop *loop;
static struct bm_rpc *rpc;
static int client, gone;

static void method_hello(void *arg, struct bm_rpc_call *call, json_t *params)
{
	(void)arg;
	(void)params;
	*bm_rpc_version(call) = 7;
	bm_rpc_reply(call, json_pack("{s:b}", "known", bm_rpc_identity(call) != NULL));
}

static void method_take(void *arg, struct bm_rpc_call *call, json_t *params)
{
	(void)arg;
	bm_rpc_swallow(call, (uint64_t)json_integer_value(json_object_get(params, "bytes")));
}

static void note_gone(void *arg)
{
	(void)arg;
	gone++;
}

static int set_up(void **state)
{
	static const struct bm_rpc_table methods[] = {
		{"hello", method_hello}, {"take", method_take}, {NULL, NULL}};
	int fd[2];

	(void)state;
	gone = 0;
	loop = bm_loop_new();
	if (bm_rpc_new(loop, methods, NULL, &rpc) || socketpair(AF_UNIX, SOCK_STREAM, 0, fd) < 0)
		return -1;
	client = fd[1];
	return bm_rpc_serve_fd(rpc, fd[0], note_gone);
}

static int tear_down(void **state)
{
	(void)state;
	close(client);
	bm_rpc_free(rpc);
	bm_loop_free(loop);
	return 0;
}

static void turns(void)
{
	for (int i = 0; i < 20; i++)
		bm_loop_turn(loop, 1000000);
}

static void say(const char *text)
{
	assert_int_equal(send(client, text, strlen(text), 0), strlen(text));
	turns();
}

/* What it answers to all so far: "" when nothing. */
static const char *answers(void)
{
	static char text[4096];
	ssize_t n = recv(client, text, sizeof(text) - 1, MSG_DONTWAIT);

	text[n > 0 ? n : 0] = '\0';
	return text;
}

static void bytes_are_swallowed_and_then_answered(void **state)
{
	(void)state;
	say("{\"id\":1,\"method\":\"take\",\"params\":{\"bytes\":6}}\n{}\n");
	assert_string_equal(answers(), "");
	say("\n\n\n{\"id\":2,\"method\":\"hello\"}\n");
	assert_string_equal(
		answers(), "{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{\"v\":1}}\n"
			   "{\"jsonrpc\":\"2.0\",\"id\":2,\"result\":{\"known\":false,\"v\":7}}\n");
	assert_int_equal(gone, 0);
}

static void who_goes_amid_them_is_gone(void **state)
{
	(void)state;
	say("{\"id\":1,\"method\":\"take\",\"params\":{\"bytes\":1000}}\nsome");
	shutdown(client, SHUT_WR);
	turns();
	assert_int_equal(gone, 1);
}

static void so_is_the_server(void **state)
{
	(void)state;
	say("{\"id\":1,\"method\":\"take\",\"params\":{\"bytes\":1000}}\nsome");
	assert_int_equal(gone, 0); /* bm_rpc_free() has a call that nobody answers any more */
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
	const struct CMUnitTest tests[] = {
		TEST(bytes_are_swallowed_and_then_answered),
		TEST(who_goes_amid_them_is_gone),
		TEST(so_is_the_server),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
