/* SPDX-License-Identifier: BSD-3-Clause */
/* Other people's programs, run to their end. */
#include "blockmirror/base/run.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/pidfd.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/spawn.h"

enum { WORDS = 64 << 10, OUTPUT = 1 << 20, LAST = 4000, ASK_MS = 50, SIGNALLED = 128 };

static uint64_t clock_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* Memory that cannot grow: a program that says the same for days takes none of ours. */
int bm_words_new(void)
{
	bm_close int fd = memfd_create("words", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	if (fd < 0 || ftruncate(fd, WORDS) < 0 ||
	    fcntl(fd, F_ADD_SEALS, F_SEAL_GROW | F_SEAL_SHRINK) < 0)
		return -errno;
	return bm_steal_fd(fd);
}

char *bm_words_read(int fd, const char *program, char *out, size_t size)
{
	off_t end = lseek(fd, 0, SEEK_CUR); /* it writes by this descriptor */
	off_t start = end > LAST ? end - LAST : 0;
	char text[LAST + 1], *line = text, *found = NULL, *next;
	ssize_t n = end > start ? pread(fd, text, (size_t)(end - start), start) : 0;
	size_t length = strlen(program);

	text[n > 0 ? n : 0] = '\0';
	for (next = text; next; next = strchr(next, '\n')) {
		next += *next == '\n';
		if (!*next)
			break;
		line = next;
		if (!strncmp(line, program, length) && !strncmp(line + length, ": ", 2))
			found = line + length + 2;
	}
	snprintf(out, size, "%s", found ? found : line);
	out[strcspn(out, "\n")] = '\0';
	return out;
}

bool bm_process_ends(int pidfd, uint64_t ns, bool (*interrupted)(void *arg), void *arg)
{
	struct pollfd p = {.fd = pidfd, .events = POLLIN};
	uint64_t end = clock_ns() + ns;

	do {
		if (poll(&p, 1, ns ? ASK_MS : 0) > 0)
			return true;
	} while (clock_ns() < end && !(interrupted && interrupted(arg)));
	return false;
}

/* Until it closes what it prints to, or enough is enough. */
static int read_output(int fd, bool (*interrupted)(void *arg), void *arg, char *text)
{
	struct pollfd p = {.fd = fd, .events = POLLIN};
	size_t length = 0;
	ssize_t n = 1;

	while (n) {
		if (interrupted && interrupted(arg))
			return -EINTR;
		if (poll(&p, 1, ASK_MS) <= 0)
			continue;
		n = read(fd, text + length, OUTPUT - length);
		if (n < 0 && errno != EINTR)
			return -errno;
		length += n > 0 ? (size_t)n : 0;
		if (length == OUTPUT)
			return -EFBIG;
	}
	text[length] = '\0';
	return 0;
}

int bm_run(char *const argv[], bool (*interrupted)(void *arg), void *arg, char **output, char *why,
	   size_t size)
{
	bm_close int words = bm_words_new(), printed = -1, tied = -1, held = -1;
	int lifeline[2] = {-1, -1}, status = 0, pid, r;
	bm_free char *text = malloc(OUTPUT + 1);
	const struct bm_spawn spawn = {.argv = argv, .output = &printed, .lifeline = lifeline};

	*why = '\0';
	if (words < 0 || !text)
		return words < 0 ? words : -ENOMEM;
	pid = bm_spawn_helper(&spawn, words);
	if (pid < 0)
		return pid;
	tied = lifeline[0];
	held = lifeline[1];
	r = read_output(printed, interrupted, arg, text);
	if (r < 0)
		kill(pid, SIGKILL);
	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	if (r < 0)
		return r;
	bm_words_read(words, argv[0], why, size);
	if (output)
		*output = bm_steal(text);
	return WIFSIGNALED(status) ? SIGNALLED + WTERMSIG(status) : WEXITSTATUS(status);
}
