/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * blockmirror-nbd --stdio under AFL++, which gives a program a file to read and no one who reads
 * what it says. epoll(7) takes no files: what is in the file becomes a pipe, and a thread takes
 * what the server says, so that it never waits for a client. Then the program's own main() runs.
 */
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum { MOST = 1 << 20 /* bytes that a pipe holds */ };

int __real_main(int argc, char **argv);
int __wrap_main(int argc, char **argv);

static void must(int good)
{
	if (good)
		return;
	perror("stdio_main");
	abort();
}

/* A pipe that holds all that there is; behind it comes the end. */
static void fill(int target)
{
	static char bytes[MOST];
	size_t used = 0;
	ssize_t n;
	int ends[2];

	while (used < MOST && (n = read(target, bytes + used, MOST - used)) > 0)
		used += (size_t)n;
	must(!pipe(ends) && fcntl(ends[1], F_SETPIPE_SZ, MOST) >= MOST);
	must(write(ends[1], bytes, used) == (ssize_t)used);
	must(dup2(ends[0], target) == target && !close(ends[0]) && !close(ends[1]));
}

static void *take(void *arg)
{
	char bytes[1 << 16];

	while (read(*(int *)arg, bytes, sizeof(bytes)) > 0)
		;
	return NULL;
}

static void drain(int target)
{
	static int ends[2];
	pthread_t thread;

	must(!pipe(ends) && dup2(ends[1], target) == target && !close(ends[1]));
	must(!pthread_create(&thread, NULL, take, ends));
}

int __wrap_main(int argc, char **argv)
{
	fill(STDIN_FILENO);
	drain(STDOUT_FILENO);
	return __real_main(argc, argv);
}
