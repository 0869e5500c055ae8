/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Calls a fuzz target for each file of a folder: replay FOLDER. TAP, one line for all of them, and
 * one for each that is not as it should be: the process dies (a sanitizer, a demand), or it takes
 * longer than a second. The inputs run in a child, which is begun again behind the one that killed
 * it.
 */
#include "tests/fuzz/fuzz.h"

#include <dirent.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "blockmirror/base/cleanup.h"

enum { LARGEST = 1 << 20, HANGS = 60 /* s */ };

/* What the child is at, and what it has found. */
struct progress {
	int next, slow;
};

static int not_hidden(const struct dirent *entry)
{
	return entry->d_name[0] != '.';
}

static double cpu_seconds(void)
{
	struct timespec t;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* Memory of just that size: what is read behind its end is seen. */
static void replay(const char *path)
{
	bm_free uint8_t *all = malloc(LARGEST), *data = NULL;
	FILE *file = fopen(path, "r");
	size_t size;

	demand(file && all);
	size = fread(all, 1, LARGEST, file);
	fclose(file);
	data = malloc(size ? size : 1);
	demand(data);
	memcpy(data, all, size);
	LLVMFuzzerTestOneInput(data, size);
}

static void replay_all(const char *folder, struct dirent **files, int count,
		       struct progress *progress)
{
	for (; progress->next < count; progress->next++) {
		double start = cpu_seconds();
		char path[4096];

		snprintf(path, sizeof(path), "%s/%s", folder, files[progress->next]->d_name);
		alarm(HANGS);
		replay(path);
		alarm(0);
		if (cpu_seconds() - start > 1) {
			progress->slow++;
			printf("# %s: %.1f s\n", path, cpu_seconds() - start);
		}
	}
	exit(0); /* where leaks are looked for */
}

static int check(const char *folder, struct dirent **files, int count)
{
	struct progress *progress = mmap(NULL, sizeof(*progress), PROT_READ | PROT_WRITE,
					 MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	int failed = 0, status = 1, line = 0;

	demand(progress != MAP_FAILED);
	while (status) {
		pid_t child;

		fflush(stdout);
		child = fork();
		if (!child)
			replay_all(folder, files, count, progress);
		demand(child > 0 && waitpid(child, &status, 0) == child);
		if (!status)
			break;
		failed++;
		printf("not ok %d - %s/%s\n", ++line, folder,
		       progress->next < count ? files[progress->next]->d_name
					      : ": something was leaked");
		if (progress->next++ >= count)
			break;
	}
	failed += progress->slow;
	printf("%s %d - %s: %d inputs, %d failed\n1..%d\n", failed || !count ? "not ok" : "ok",
	       line + 1, folder, count, failed, line + 1);
	return failed || !count;
}

int main(int argc, char **argv)
{
	struct dirent **files;
	int count = argc == 2 ? scandir(argv[1], &files, not_hidden, alphasort) : -1;
	int status;

	if (count < 0) {
		fprintf(stderr, "usage: replay FOLDER\n");
		return 2;
	}
	status = check(argv[1], files, count);
	while (count--)
		free(files[count]);
	free(files);
	return status;
}
