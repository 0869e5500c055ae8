/* SPDX-License-Identifier: BSD-3-Clause */
/* Following a job: a bar on a terminal, a line a second elsewhere, and the last words. */
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/units.h"
#include "blockmirror/cli/cli.h"

enum {
	POLL_MS = 150,
	AGAIN_MS = 3000,
	POLLS_PER_LINE = 7,
	LINE = 512,
	BAR_WIDTH = 20,
	BAR_LEAST = 4
};

static volatile sig_atomic_t interrupted;

static void on_interrupt(int number)
{
	(void)number;
	interrupted = 1;
}

static double percent_of(const json_t *p)
{
	double total = (double)cli_number(p, "total");

	return total > 0 ? (double)cli_number(p, "done") * 100 / total : 0;
}

static void put_bar(char *bar, double percent, int width)
{
	int filled = (int)(percent * width / 100);

	bar[0] = '[';
	for (int i = 0; i < width; i++)
		bar[1 + i] = i < filled ? '=' : i == filled ? '>' : ' ';
	bar[width + 1] = ']';
	bar[width + 2] = '\0';
}

__attribute__((format(printf, 4, 5))) static size_t add(char *line, size_t width, size_t used,
							const char *format, ...)
{
	va_list args;
	int n;

	va_start(args, format);
	n = vsnprintf(line + used, width - used, format, args);
	va_end(args);
	return n < 0 || used + (size_t)n >= width ? width - 1 : used + (size_t)n;
}

/* "412M", "1.3G": where there is little room. */
static const char *short_size(char out[BM_UNITS_TEXT], uint64_t bytes)
{
	static const char units[] = "BKMGTPE";
	double value = (double)bytes;
	int unit = 0;

	for (; value >= 1000 && units[unit + 1]; unit++)
		value /= 1024;
	snprintf(out, BM_UNITS_TEXT, unit && value < 10 ? "%.1f%c" : "%.0f%c", value, units[unit]);
	return out;
}

/* What keeps it from going on, or from being quicker. */
static const char *obstacle(const json_t *p)
{
	const char *target = cli_text(p, "target");

	if (!strcmp(target, "target-lost") || !strcmp(target, "target-full") ||
	    !strcmp(target, "paused"))
		return target;
	return cli_text(p, "limiter");
}

static bool has_time_left(const json_t *p)
{
	return json_is_integer(json_object_get(p, "left_ns")) && cli_number(p, "dirty");
}

/* As much as fits 80 columns; the bar takes what the rest leaves. */
static void bar_line(const json_t *job, char *line, size_t width)
{
	const json_t *p = json_object_get(job, "progress");
	char rest[LINE] = "", drawn[BAR_WIDTH + 3] = "", a[BM_UNITS_TEXT], b[BM_UNITS_TEXT];
	uint64_t p99 = cli_number(p, "guest_p99"), before = cli_number(p, "guest_p99_before");
	size_t used = 0, taken;
	double percent = percent_of(p);

	used = add(rest, sizeof(rest), used, " %s dirty, %s/s",
		   short_size(a, cli_number(p, "dirty")), short_size(b, cli_number(p, "rate")));
	if (p99)
		used = add(rest, sizeof(rest), used, ", p99 %s (was %s)",
			   bm_format_duration(a, p99),
			   before ? bm_format_duration(b, before) : "?");
	if (*obstacle(p))
		used = add(rest, sizeof(rest), used, ", %s", obstacle(p));
	if (has_time_left(p))
		used = add(rest, sizeof(rest), used, ", %s left",
			   bm_format_duration(a, cli_number(p, "left_ns")));
	taken = strlen(cli_text(job, "phase")) + strlen(" 100% ") + used + 1;
	if (width > taken + BAR_LEAST + 2)
		put_bar(drawn, percent,
			width - taken - 2 < BAR_WIDTH ? (int)(width - taken - 2) : BAR_WIDTH);
	snprintf(line, width, "%s %3.0f%% %s%s", cli_text(job, "phase"), percent, drawn, rest);
}

void cli_progress_line(const json_t *job, char *line, size_t width)
{
	const json_t *p = json_object_get(job, "progress");
	char text[BM_UNITS_TEXT], other[BM_UNITS_TEXT];
	size_t used = 0;

	used = add(line, width, used, "%s %5.1f %%", cli_text(job, "phase"), percent_of(p));
	used = add(line, width, used, ", %s dirty", bm_format_size(text, cli_number(p, "dirty")));
	used = add(line, width, used, ", %s/s", bm_format_size(text, cli_number(p, "rate")));
	if (cli_number(p, "guest_p99"))
		used = add(line, width, used, ", guest p99 %s (before %s)",
			   bm_format_duration(text, cli_number(p, "guest_p99")),
			   cli_number(p, "guest_p99_before")
				   ? bm_format_duration(other, cli_number(p, "guest_p99_before"))
				   : "?");
	if (*obstacle(p))
		used = add(line, width, used, ", limit: %s", obstacle(p));
	if (json_object_get(job, "unreadable"))
		used = add(line, width, used, ", %s unreadable",
			   bm_format_size(text, cli_number(job, "unreadable_bytes")));
	if (has_time_left(p))
		add(line, width, used, ", %s left",
		    bm_format_duration(text, cli_number(p, "left_ns")));
}

static size_t columns(void)
{
	struct winsize size;

	return ioctl(STDERR_FILENO, TIOCGWINSZ, &size) < 0 || !size.ws_col ? 80 : size.ws_col;
}

static enum progress_style style_of(const struct cli *cli)
{
	if (cli->progress != PROGRESS_AUTO)
		return cli->progress;
	if (cli->json)
		return PROGRESS_NONE;
	return isatty(STDERR_FILENO) ? PROGRESS_BAR : PROGRESS_PLAIN;
}

/* Shows where the job is; n counts the calls, changed says that the phase is another one. */
static void show(const struct cli *cli, const json_t *job, int n, bool changed)
{
	enum progress_style style = style_of(cli);
	char line[LINE];
	size_t width = columns() < LINE ? columns() : LINE;

	if (style == PROGRESS_NONE || (style != PROGRESS_BAR && !changed && n % POLLS_PER_LINE))
		return;
	if (style == PROGRESS_JSON) {
		json_dumpf(job, stderr, JSON_COMPACT);
		fputc('\n', stderr);
		return;
	}
	if (style == PROGRESS_BAR) {
		bar_line(job, line, width);
		fprintf(stderr, "\r%s\033[K", line);
	} else {
		cli_progress_line(job, line, sizeof(line));
		fprintf(stderr, "%s\n", line);
	}
}

static void end_bar(const struct cli *cli)
{
	if (style_of(cli) == PROGRESS_BAR)
		fputs("\r\033[K", stderr);
}

static json_t *number_of(const char *id)
{
	const char *dot = strrchr(id, '.');

	return dot ? json_pack("{s:i}", "number", atoi(dot + 1)) : json_object();
}

void cli_catch_interrupt(void)
{
	const struct sigaction action = {.sa_handler = on_interrupt};

	sigaction(SIGINT, &action, NULL); /* without SA_RESTART: a call that waits is woken */
}

static void say_goes_on(const struct cli *cli, const char *id)
{
	bm_free char *hint = cli_hint(cli);

	fprintf(stderr,
		"blockmirror: job %s goes on; '%s job wait %s' waits for it, '%s job cancel %s' "
		"stops it\n",
		id, hint, id, hint, id);
}

static int interrupt(const struct cli *cli, struct bm_client *client, const char *id, bool cancel,
		     json_t **job)
{
	struct bm_error error;

	end_bar(cli);
	if (!cancel) {
		say_goes_on(cli, id);
		return 130;
	}
	fputs("blockmirror: interrupted, cancelling\n", stderr);
	if (bm_client_call(client, "job.cancel", number_of(id), job, &error) < 0)
		cli_fail(cli, &error);
	return 130;
}

bool cli_left_out(const json_t *job)
{
	return json_is_true(json_object_get(job, "rest_copied"));
}

bool cli_held(const json_t *job)
{
	return json_object_get(job, "held") && !strcmp(cli_text(job, "phase"), "in-sync");
}

static bool over(const json_t *job, bool stop_in_sync)
{
	const char *phase = cli_text(job, "phase");

	return cli_left_out(job) || cli_held(job) || !strcmp(phase, "ended") ||
	       !strcmp(phase, "undo-window") || (stop_in_sync && !strcmp(phase, "in-sync"));
}

/* The disk's process ended: the one that follows goes on with the job. */
static int job_interrupted(const struct cli *cli, const char *id)
{
	struct bm_error error;

	bm_fail(&error, BM_E_INTERRUPTED,
		"job %s is interrupted: the disk's process ended; it goes on when the disk is "
		"served again, and 'blockmirror job wait %s' waits for it then",
		id, id);
	return cli_fail(cli, &error);
}

int cli_begin(const struct cli *cli, struct bm_client *client, const char *method, json_t *params,
	      const char *name, json_t **job)
{
	struct bm_error error;
	int r;

	cli_catch_interrupt();
	r = bm_client_call(client, method, params, job, &error);
	if (!r)
		return 0;
	if (interrupted) {
		if (name)
			say_goes_on(cli, name);
		return 130;
	}
	return r == -ECONNRESET && name ? job_interrupted(cli, name) : cli_fail(cli, &error);
}

/* One that follows a dead process does not know what that one was told last. */
static bool was_handed_over(struct bm_client *client)
{
	json_t *disk = NULL;
	bool handed = !bm_client_call(client, "show", NULL, &disk, NULL) &&
		      json_integer_value(json_object_get(disk, "took_over_from")) > 0;

	json_decref(disk);
	return handed;
}

/* Another process may have the disk soon, by an upgrade. */
static bool find_again(const struct cli *cli, const char *id, struct bm_client **client)
{
	bm_free char *name = strndup(id, (size_t)(strrchr(id, '.') - id));

	bm_client_close(*client);
	*client = NULL;
	for (int i = 0; name && i < AGAIN_MS / POLL_MS && !interrupted; i++) {
		if (!cli_connect(cli, name, client, NULL))
			return was_handed_over(*client);
		poll(NULL, 0, POLL_MS);
	}
	return false;
}

static bool come_again(const struct cli *cli, const char *id, struct bm_client **client)
{
	return cli->care ? !cli->care->revive(cli->care->arg, client) : find_again(cli, id, client);
}

int cli_follow(const struct cli *cli, struct bm_client **client, const char *id, bool stop_in_sync,
	       bool one_off, json_t **job)
{
	struct bm_error error;
	char phase[32] = "";
	json_t *now = NULL;

	cli_catch_interrupt();
	for (int n = 0;; n++) {
		if (interrupted || (cli->care && cli->care->stop(cli->care->arg)))
			return interrupt(cli, *client, id, one_off || cli->care, job);
		if (bm_client_call(*client, "job.show", number_of(id), &now, &error) < 0) {
			if (interrupted || (error.code == BM_E_UNREACHABLE && !one_off &&
					    come_again(cli, id, client)))
				continue;
			end_bar(cli);
			return error.code == BM_E_UNREACHABLE ? job_interrupted(cli, id)
							      : cli_fail(cli, &error);
		}
		if (over(now, stop_in_sync))
			break;
		show(cli, now, n, strcmp(phase, cli_text(now, "phase")) != 0);
		snprintf(phase, sizeof(phase), "%s", cli_text(now, "phase"));
		json_decref(now);
		poll(NULL, 0, POLL_MS);
	}
	end_bar(cli);
	*job = now;
	return 0;
}

/* How a copy is told of: with the instant, where the disk went on. */
static void print_copy(const json_t *job)
{
	uint64_t at = cli_number(job, "cut_at");
	time_t seconds = (time_t)(at / 1000000000);
	char text[BM_UNITS_TEXT], time[64] = "";
	struct tm tm;

	printf("; the copy is %s", cli_text(job, "target"));
	if (json_object_get(job, "longest_stall") && localtime_r(&seconds, &tm) &&
	    strftime(time, sizeof(time), "%F %T", &tm))
		printf(", as the disk was at %s.%03u", time, (unsigned)(at / 1000000 % 1000));
	if (cli_number(job, "longest_stall"))
		printf("; longest guest request since then %s",
		       bm_format_duration(text, cli_number(job, "longest_stall")));
	putchar('\n');
}

static void print_summary(const json_t *job)
{
	const json_t *p = json_object_get(job, "progress");
	bool undone = !strcmp(cli_text(job, "state"), "undone");
	char copied[BM_UNITS_TEXT], zero[BM_UNITS_TEXT], took[BM_UNITS_TEXT], stall[BM_UNITS_TEXT];

	printf("%s: %s copied, %s skipped as zero, %" PRIu64 " writes mirrored, ",
	       cli_text(job, "id"), bm_format_size(copied, cli_number(p, "copied_bytes")),
	       bm_format_size(zero, cli_number(p, "zero_bytes")), cli_number(p, "mirrored_writes"));
	if (cli_number(p, "verified_bytes"))
		printf("%s verified, ", bm_format_size(copied, cli_number(p, "verified_bytes")));
	printf("%s", bm_format_duration(took, cli_number(job, "took_ns")));
	if (!strcmp(cli_text(job, "kind"), "copy"))
		print_copy(job);
	else
		printf("; longest guest stall at the switch %s; the disk is %s %s\n",
		       bm_format_duration(stall, cli_number(job, "longest_stall")),
		       undone ? "back on" : "on", cli_text(job, undone ? "source" : "target"));
	if (!strcmp(cli_text(job, "phase"), "undo-window"))
		printf("%s: undo takes it back, release ends that; else it ends by itself\n",
		       cli_text(job, "id"));
}

static void say_left_out(const struct cli *cli, const json_t *job)
{
	bm_free char *hint = cli_hint(cli);
	const char *id = cli_text(job, "id");
	const json_t *range;
	size_t i;

	fprintf(stderr,
		"blockmirror: job %s: E_IO: %" PRIu64
		" bytes of the source cannot be read, and are not on the target:\n",
		id, cli_number(job, "unreadable_bytes"));
	json_array_foreach(json_object_get(job, "unreadable"), i, range)
		fprintf(stderr, "  from %" PRIu64 " to %" PRIu64 "\n", cli_number(range, "offset"),
			cli_number(range, "offset") + cli_number(range, "length"));
	fprintf(stderr,
		"All else is copied. The disk stays on %s, and is mirrored: it switches over as "
		"soon as the guest has written these anew, or they can be read again (tried once a "
		"minute). '%s job cancel %s' gives it up.\n",
		cli_text(job, "source"), hint, id);
}

int cli_job_ended(const struct cli *cli, const json_t *job)
{
	const json_t *held = cli_held(job) ? json_object_get(job, "held") : NULL;
	const json_t *failure = held ? held : json_object_get(job, "error");
	struct bm_error error = {0};

	if (failure) {
		error.code = bm_code_by_name(cli_text(failure, "code"));
		snprintf(error.text, sizeof(error.text), "job %s: %s", cli_text(job, "id"),
			 cli_text(failure, "message"));
	}
	if (cli->json)
		cli_print_json(json_incref((json_t *)job));
	else if (cli_left_out(job))
		say_left_out(cli, job);
	else if (failure)
		cli_fail(cli, &error);
	else
		print_summary(job);
	if (held && !cli->json) {
		bm_free char *hint = cli_hint(cli);
		const char *id = cli_text(job, "id");

		fprintf(stderr,
			"The disk stays on %s, and is mirrored. '%s switch %.*s' asks again, '%s "
			"job "
			"cancel %s' gives it up.\n",
			cli_text(job, "source"), hint, (int)(strrchr(id, '.') - id), id, hint, id);
	}
	return held                           ? bm_code_exit(error.code)
	       : failure || cli_left_out(job) ? 1
					      : 0; /* a job that failed, whatever for */
}
