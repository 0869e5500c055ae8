/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The command line: a table of commands, one file per command (or family). It speaks the control
 * protocol and links no engine.
 */
#ifndef BM_CLI_CLI_H
#define BM_CLI_CLI_H

#include <getopt.h>
#include <jansson.h>
#include <stdint.h>

#include "blockmirror/client.h"

enum progress_style { PROGRESS_AUTO, PROGRESS_BAR, PROGRESS_PLAIN, PROGRESS_JSON, PROGRESS_NONE };

/*
 * What a command does beside following a job: stop() says whether the job has lost its sense and
 * is to be cancelled; revive() starts the disk's process again when it is gone: 0, and *client is
 * one of the new process. An interrupt cancels the job, too.
 */
struct cli_care {
	bool (*stop)(void *arg);
	int (*revive)(void *arg, struct bm_client **client);
	void *arg;
};

/*
 * Who watches a disk of a running QEMU being moved (relocate --qmp): began() before its job may
 * switch over, moved() when the disk is on its target, and QEMU has not got it back yet.
 */
struct cli_witness {
	void (*began)(void *arg, const char *disk, const json_t *job);
	void (*moved)(void *arg);
	void *arg;
};

struct cli {
	const struct cli_care *care;       /* NULL: none */
	const struct cli_witness *witness; /* NULL: none */
	const char *run_dir, *state_dir;
	bool json, run_dir_given;
	const json_t *config; /* base/config.h */
	bool config_good;     /* there were no mistakes in it */
	enum progress_style progress;
	const struct command *command;
};

struct command {
	const char *name;
	const char *synopsis; /* arguments and options */
	const char *summary;  /* one line */
	const char *help;     /* what more there is to say, or NULL */
	int (*run)(struct cli *cli, int argc, char **argv);
};

extern const struct command commands[]; /* ends with name NULL */

int cmd_serve(struct cli *cli, int argc, char **argv);
int cmd_list(struct cli *cli, int argc, char **argv);
int cmd_show(struct cli *cli, int argc, char **argv);
int cmd_stop(struct cli *cli, int argc, char **argv);
int cmd_upgrade(struct cli *cli, int argc, char **argv);
int cmd_forget(struct cli *cli, int argc, char **argv);
int cmd_relocate(struct cli *cli, int argc, char **argv);
int cmd_switch(struct cli *cli, int argc, char **argv);
int cmd_undo(struct cli *cli, int argc, char **argv);
int cmd_release(struct cli *cli, int argc, char **argv);
int cmd_copy(struct cli *cli, int argc, char **argv);
int cmd_verify(struct cli *cli, int argc, char **argv);
int cmd_job(struct cli *cli, int argc, char **argv);
int cmd_whois(struct cli *cli, int argc, char **argv);
int cmd_rate(struct cli *cli, int argc, char **argv);
int cmd_events(struct cli *cli, int argc, char **argv);
int cmd_peer(struct cli *cli, int argc, char **argv);
int cmd_recover(struct cli *cli, int argc, char **argv);
int cmd_hand_over(struct cli *cli, int argc, char **argv);
int cmd_adopt(struct cli *cli, int argc, char **argv);
int cmd_hand_back(struct cli *cli, int argc, char **argv);
int cmd_migrate(struct cli *cli, int argc, char **argv);
int cmd_machine(struct cli *cli, int argc, char **argv);
int cmd_hook(struct cli *cli, int argc, char **argv);
int cmd_drain(struct cli *cli, int argc, char **argv);
int cmd_balance(struct cli *cli, int argc, char **argv);
int cmd_maintenance(struct cli *cli, int argc, char **argv);

/*
 * config.c: the configuration, with its mistakes told or not; 0, or an exit code, when it has any;
 * --check-config; the datastore of that name, or NULL; what a move's parameters do not say, from
 * the defaults.
 */
json_t *cli_read_config(bool tell, bool *good);
int cli_wants_config(const struct cli *cli);
int cli_check_config(const struct cli *cli, const char *file);
const json_t *cli_datastore(const struct cli *cli, const char *name);
void cli_put_defaults(const struct cli *cli, json_t *params);

/*
 * getopt for a command: the options that all commands have are dealt with here; own options
 * (values ≥ 256, none needed: NULL) go to take(), which returns 0 or an exit code. Arguments end
 * up at argv[optind]. Returns 0, an exit code, or -1 when help was printed.
 */
int cli_options(struct cli *cli, int argc, char **argv, const struct option *own,
		int (*take)(int option, const char *value, void *arg), void *arg);

/* The number of arguments must be in [least, most]; prints usage and returns 2 when not. */
int cli_arguments(const struct cli *cli, int argc, int least, int most);

/* Prints the error as the user wants it (one line, or JSON), returns the exit code. */
int cli_fail(const struct cli *cli, const struct bm_error *error);

/* What "usage" means: an error of the user's, with the way to the help. Returns 2. */
int cli_usage(const struct cli *cli, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Prints a value and a newline; takes it over. */
void cli_print_json(json_t *value);

/* RUN/disks/NAME.sock, malloc()ed. */
char *cli_socket(const struct cli *cli, const char *name);

int cli_connect(const struct cli *cli, const char *name, struct bm_client **client,
		struct bm_error *error);

/*
 * serve.c: starts a blockmirror-disk that outlives us, and waits until it is ready. options: more
 * of its own, NULL ends them; *nbd: its address, malloc()ed. Its pid, or -errno.
 */
int cli_start_disk(const struct cli *cli, const char *name, const char *image,
		   const char *const *options, char **nbd, struct bm_error *error);

/* daemon.c: whether blockmirrord runs; a client of its control socket. */
bool cli_daemon(const struct cli *cli, struct bm_client **client);

/* What it answers soon, or NULL; params is taken over. */
json_t *cli_daemon_ask(const struct cli *cli, const char *method, json_t *params);

/* What it says about a disk, or NULL: there is no daemon, or it does not know it. */
json_t *cli_supervision(const struct cli *cli, const char *name);

/*
 * Whether the disk's process ended more than once, so that another one follows later, or may soon
 * end, too; and why, as an error.
 */
bool cli_daemon_waits(const json_t *disk);
int cli_daemon_why(const json_t *disk, struct bm_error *error);

/* One call, however long it takes; params is taken over. */
int cli_daemon_call(const struct cli *cli, const char *method, json_t *params, json_t **result,
		    struct bm_error *error);

/* Whether name is the name of a disk that is served now. */
bool cli_is_served(const struct cli *cli, const char *name);

/* Calls show for each disk in RUN; a disk that does not answer has {"name", "state": "not
 * running"}. */
json_t *cli_all_disks(const struct cli *cli);

/*
 * A transient blockmirror-disk --one-off, and a client connected to it. It ends with the client.
 */
int cli_one_off(const struct cli *cli, struct bm_client **client, struct bm_error *error);

/* Sizes, rates and guest latency as options have them; exit code 2 with a message, or 0. */
int cli_size(const struct cli *cli, const char *option, const char *value, uint64_t *bytes);
int cli_latency(const struct cli *cli, const char *value, json_t **latency);
/* --window */
struct bm_day_window;
int cli_window(const struct cli *cli, const char *value, struct bm_day_window *window);
/* --target-deadline, --on-target-loss */
int cli_deadline(const struct cli *cli, const char *value, json_t **deadline);
int cli_target_loss(const struct cli *cli, const char *value, json_t **loss);

/* libvirt.c: how libvirt's installed version names the disk that is served at socket, as XML. */
void cli_put_libvirt(const char *name, const char *socket);

/* Convenience for answers: 0 and "" when absent. */
uint64_t cli_number(const json_t *object, const char *key);
const char *cli_text(const json_t *object, const char *key);

/* "blockmirror", with --run-dir if that was given: for hints. malloc()ed. */
char *cli_hint(const struct cli *cli);

/*
 * Calls a method that begins a job, and may take long to do so; params is taken over. SIGINT gives
 * 130 and says what becomes of the job of disk name (NULL: of a one-off, which ends with us).
 * Returns 0, or an exit code, with the error printed.
 */
int cli_begin(const struct cli *cli, struct bm_client *client, const char *method, json_t *params,
	      const char *name, json_t **job);

/* relocate.c: moves a disk, and follows that; params is taken over. Returns an exit code. */
int cli_relocate(const struct cli *cli, const char *name, json_t *params);

/*
 * slip_cmd.c: the same for a disk of a running QEMU, which has it before and after.
 */
int cli_relocate_slipped(struct cli *cli, const char *qmp, const char *drive, const char *target,
			 json_t *params);
/* Whether something of that was left to be completed, or undone. */
bool cli_slip_is_left(const struct cli *cli, const char *qmp, const char *drive);

/* migrate.c: the host that has a disk's storage serves the disk, too. Returns an exit code. */
int cli_hand_over(const struct cli *cli, const char *name);

/*
 * Follows a job until it has ended (or is in sync, when stop_in_sync), showing progress, also when
 * another process takes the disk over: then *client is one of that one. SIGINT leaves the job
 * alone, says so, and gives 130; of a one-off it cancels the job. job is its last state.
 */
int cli_follow(const struct cli *cli, struct bm_client **client, const char *id, bool stop_in_sync,
	       bool one_off, json_t **job);

/* From now on SIGINT is not the end, but noted for cli_begin() and cli_follow(). */
void cli_catch_interrupt(void);

/* All is copied but what cannot be read, and was to be left out: it comes no further by itself. */
bool cli_left_out(const json_t *job);

/* In sync, and not switched over, since a hook had something against it. */
bool cli_held(const json_t *job);

/* The last lines about a job; returns the exit code. */
int cli_job_ended(const struct cli *cli, const json_t *job);

/* What a job does when its target is slow, or away; a line of its own, after label. */
void cli_print_target_rules(const char *label, const json_t *job);

/* One line of progress as people read it, at most width bytes. */
void cli_progress_line(const json_t *job, char *line, size_t width);

#endif
