/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What is told of a machine's move: lines on standard error while it lasts, and at its end what it
 * took, with the pause in its parts.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "blockmirror/base/units.h"
#include "blockmirror/cli/machine.h"

#define EVERY 1000000000ull /* ns between two lines that say the same with other numbers */

static uint64_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void put_disks(const json_t *report)
{
	const json_t *disk;
	size_t i;

	json_array_foreach(json_object_get(report, "disks"), i, disk)
		if (cli_number(disk, "total"))
			fprintf(stderr, "%s %s %" PRIu64 " %%", i ? "," : "",
				cli_text(disk, "name"),
				cli_number(disk, "done") * 100 / cli_number(disk, "total"));
}

static void put_memory(const json_t *memory)
{
	char left[BM_UNITS_TEXT], rate[BM_UNITS_TEXT], dirty[BM_UNITS_TEXT];

	if (cli_number(memory, "tries") > 1)
		fprintf(stderr, ", try %" PRIu64, cli_number(memory, "tries"));
	fprintf(stderr, ", round %" PRIu64 ": %s left, %s/s sent, %s/s changed",
		cli_number(memory, "round"), bm_format_size(left, cli_number(memory, "remaining")),
		bm_format_size(rate, cli_number(memory, "rate")),
		bm_format_size(dirty, cli_number(memory, "dirty_rate")));
	if (cli_number(memory, "throttle"))
		fprintf(stderr, ", its guest slowed down by %" PRIu64 " %%",
			cli_number(memory, "throttle"));
}

/* Those that are over and were not told of. */
static void put_rounds(const json_t *report, struct machine_told *told)
{
	const json_t *memory = json_object_get(report, "memory"), *round;
	char bytes[BM_UNITS_TEXT], wire[BM_UNITS_TEXT], took[BM_UNITS_TEXT];
	size_t i;

	if (cli_number(memory, "tries") != told->tries)
		told->round = 0;
	told->tries = cli_number(memory, "tries");
	json_array_foreach(json_object_get(memory, "rounds"), i, round) {
		if (cli_number(round, "try") != told->tries ||
		    cli_number(round, "round") <= told->round)
			continue;
		told->round = cli_number(round, "round");
		fprintf(stderr, "%s: round %" PRIu64 ": %s of RAM, %s on the wire, %s\n",
			cli_text(report, "machine"), told->round,
			bm_format_size(bytes, cli_number(round, "bytes")),
			bm_format_size(wire, cli_number(round, "wire_bytes")),
			bm_format_duration(took, cli_number(round, "took_ns")));
	}
}

void machine_tell(const struct cli *cli, const json_t *report, struct machine_told *told)
{
	const char *phase = cli_text(report, "phase");
	bool doubt = json_object_get(report, "doubt");
	bool same = !strcmp(phase, told->phase) && doubt == told->doubt;

	if (cli->progress == PROGRESS_NONE || (cli->json && cli->progress == PROGRESS_AUTO))
		return;
	if (cli->progress != PROGRESS_JSON)
		put_rounds(report, told);
	if (same && (now() < told->at + EVERY ||
		     (strcmp(phase, "mirroring") != 0 && strcmp(phase, "memory") != 0)))
		return;
	snprintf(told->phase, sizeof(told->phase), "%s", phase);
	told->doubt = doubt;
	told->at = now();
	if (cli->progress == PROGRESS_JSON) {
		json_dumpf(report, stderr, JSON_COMPACT);
		fputc('\n', stderr);
		return;
	}
	fprintf(stderr, "%s: %s", cli_text(report, "machine"), doubt ? "in doubt" : phase);
	if (!strcmp(phase, "mirroring"))
		put_disks(report);
	if (!strcmp(phase, "memory") && json_object_get(report, "memory"))
		put_memory(json_object_get(report, "memory"));
	fputc('\n', stderr);
	cli_print_doubt(stderr, "  ", report);
}

static void put_parts(const json_t *pause)
{
	static const char *const names[][2] = {{"ram_ns", "the rest of the RAM"},
					       {"device_ns", "device state"},
					       {"vote_ns", "vote"},
					       {"gate_ns", "source lets go"},
					       {"disks_ns", "disks"},
					       {"decision_ns", "decision"},
					       {"start_ns", "start there"}};
	const char *between = "  pause: ";
	char text[BM_UNITS_TEXT];

	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		if (json_object_get(pause, names[i][0])) {
			printf("%s%s %s", between, names[i][1],
			       bm_format_duration(text, cli_number(pause, names[i][0])));
			between = ", ";
		}
	putchar('\n');
}

void machine_tell_sums(const json_t *report)
{
	const json_t *memory = json_object_get(report, "memory"), *disk;
	char bytes[BM_UNITS_TEXT], wire[BM_UNITS_TEXT], rest[BM_UNITS_TEXT];
	uint64_t copied = 0;
	size_t i;

	if (json_object_get(report, "pause"))
		put_parts(json_object_get(report, "pause"));
	if (memory)
		printf("  RAM:   %s, %s on the wire, in %" PRIu64
		       " rounds; %s of it in the pause\n",
		       bm_format_size(bytes, cli_number(memory, "bytes")),
		       bm_format_size(wire, cli_number(memory, "wire_bytes")),
		       cli_number(memory, "round"),
		       bm_format_size(rest, cli_number(memory, "rest_bytes")));
	json_array_foreach(json_object_get(report, "disks"), i, disk)
		copied += cli_number(disk, "copied");
	printf("  disks: %s copied\n", bm_format_size(bytes, copied));
}
